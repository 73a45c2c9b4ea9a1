"""An endpoint as a model: requests and answers, fields that a server lacks, addresses."""

import logging

import pytest

from esckit.errors import BackendError, ConfigError
from esckit.models.endpoint import EndpointModel
from esckit.models.endpoints import checked_base_url, is_loopback, load_endpoint, load_endpoints
from esckit.types import Message, Sampling, StopReason
from tests.models.endpoint_calls import HELLO, complete, run
from tests.models.fake_server import Canned, FakeServer, completion, refusal

# ---------------------------------------------------------------- a request and its answer


def test_a_reply_holds_text_stop_reason_and_usage(server: FakeServer) -> None:
    server.usual = completion("Grüße, \U0001f9e1 «ça va»?")
    reply = run(server, complete())

    assert reply.text == "Grüße, \U0001f9e1 «ça va»?"
    assert reply.stop_reason is StopReason.STOP
    assert (reply.usage.calls, reply.usage.prompt_tokens, reply.usage.completion_tokens) == (1, 7, 3)


def test_unicode_reaches_the_server_unchanged(server: FakeServer) -> None:
    messages = [Message("user", 'naïve \U0001f62d 你好 \u2028 \\ "')]
    run(server, lambda model: model.complete(messages, Sampling(), seed=0))
    assert server.chats[0]["messages"] == [{"role": "user", "content": messages[0].content}]


def test_every_sampling_field_is_sent_and_the_seed_in_31_bits(server: FakeServer) -> None:
    sampling = Sampling(
        temperature=0.7, top_p=0.9, top_k=80, max_tokens=64, repetition_penalty=1.1, stop=("Patient:", "\n\n")
    )
    seed = 7846760151267754813
    run(server, lambda model: model.complete(HELLO, sampling, seed=seed))

    assert server.chats == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}],
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 80,
            "repetition_penalty": 1.1,
            "max_tokens": 64,
            "seed": seed & 0x7FFFFFFF,
            "stop": ["Patient:", "\n\n"],
        }
    ]


def test_an_answer_cut_at_the_limit_says_so(server: FakeServer) -> None:
    server.usual = completion("and then", "length")
    assert run(server, complete()).stop_reason is StopReason.LENGTH


def test_a_blank_answer_is_what_the_model_said(server: FakeServer) -> None:
    server.usual = completion("")
    assert run(server, complete()).text == ""


def test_no_text_before_the_limit_is_a_cut_blank_answer(server: FakeServer) -> None:
    server.usual = completion(None, "length")
    reply = run(server, complete())
    assert (reply.text, reply.stop_reason) == ("", StopReason.LENGTH)


def test_missing_usage_is_no_usage(server: FakeServer) -> None:
    server.usual = completion()
    del server.usual.body["usage"]
    assert run(server, complete()).usage.prompt_tokens == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Canned("<html>busy</html>"), "Invalid JSON"),
        (Canned(""), "no chat completion"),
        (Canned('{"choices": [{"message": {"content": "half'), "Invalid JSON"),
        (Canned('{"choices":[{"message":{"content":"\\ud83d"},"finish_reason":"stop"}]}'), "no chat completion"),
        (Canned({"error": {"message": "upstream"}}), "choices: is missing"),
        (Canned({"choices": []}), "choices"),
        (Canned([1, 2]), "no chat completion"),
        (completion(None), "without text"),
        (completion("so far", "content_filter"), "content filter"),
        (completion("calling", "tool_calls"), "finish_reason 'tool_calls'"),
        (completion("odd", None), "finish_reason None"),
    ],
)
def test_what_is_no_answer_is_a_typed_error_at_once(server: FakeServer, answer: Canned, expected: str) -> None:
    server.usual = answer
    with pytest.raises(BackendError, match=expected):
        run(server, complete())
    assert len(server.chats) == 1


def test_a_refusal_is_no_answer(server: FakeServer) -> None:
    server.usual = completion(None)
    server.usual.body["choices"][0]["message"]["refusal"] = "I cannot help with that."
    with pytest.raises(BackendError, match="refusal"):
        run(server, complete())


# ---------------------------------------------------------------- fields that a server lacks


def test_a_refused_field_is_left_out_for_the_rest_with_one_warning(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.refused_fields = {
        "top_k": "Unrecognized request argument supplied: top_k",
        "repetition_penalty": "Unrecognized request argument supplied: repetition_penalty",
    }

    async def ask_twice(model: EndpointModel) -> tuple[str, ...]:
        for seed in range(2):
            await model.complete(HELLO, Sampling(top_k=80, repetition_penalty=1.1), seed=seed)
        return model.notes

    with caplog.at_level(logging.WARNING):
        notes = run(server, ask_twice, label="fake")

    assert notes == (
        "fake/m does not take top_k; its requests go without it",
        "fake/m does not take repetition_penalty; its requests go without it",
    )
    assert [record.getMessage() for record in caplog.records] == list(notes)
    assert len(server.chats) == 4
    assert all(body["temperature"] == 1.0 for body in server.chats)


def test_a_neutral_value_goes_without_a_word(server: FakeServer) -> None:
    server.refused_fields = {"top_k": "Unrecognized request argument supplied: top_k"}

    async def ask(model: EndpointModel) -> tuple[str, ...]:
        await model.complete(HELLO, Sampling(), seed=0)
        return model.notes

    assert run(server, ask) == ()
    assert "top_k" not in server.chats[-1]


def test_what_a_server_is_known_to_lack_is_never_sent(server: FakeServer) -> None:
    async def ask(model: EndpointModel) -> tuple[str, ...]:
        await model.complete(HELLO, Sampling(top_k=80), seed=0)
        return model.notes

    assert len(run(server, ask, lacks=("top_k", "repetition_penalty"))) == 1
    assert len(server.chats) == 1


def test_the_newer_name_of_the_token_limit_is_found(server: FakeServer) -> None:
    server.refused_fields = {
        "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. "
        "Use 'max_completion_tokens' instead."
    }
    run(server, complete(max_tokens=9))
    assert "max_tokens" not in server.chats[-1]
    assert server.chats[-1]["max_completion_tokens"] == 9


def test_a_model_without_temperature_is_used_without_it(server: FakeServer) -> None:
    server.refused_fields = {"temperature": "Unsupported value: 'temperature' does not support 0.7 with this model."}

    async def ask(model: EndpointModel) -> tuple[str, ...]:
        await model.complete(HELLO, Sampling(temperature=0.7), seed=0)
        return model.notes

    assert run(server, ask, label="fake") == ("fake/m does not take temperature; its requests go without it",)


@pytest.mark.parametrize(
    "reason",
    [
        "temperature must be between 0 and 2",
        "max_tokens is too large: this model's maximum context length is 4096 tokens",
        "please stop sending this; seed your own model",
    ],
)
def test_a_bad_value_is_an_error_and_not_left_out(server: FakeServer, reason: str) -> None:
    server.usual = refusal(reason)
    with pytest.raises(BackendError, match="HTTP 400"):
        run(server, complete(temperature=3.0))
    assert len(server.chats) == 1


def test_a_field_refused_by_a_validator_is_left_out(server: FakeServer) -> None:
    detail = [{"type": "extra_forbidden", "loc": ["body", "top_k"], "msg": "Extra inputs are not permitted"}]
    server.queue.append(Canned({"detail": detail}, 422))
    assert run(server, complete(top_k=5)).text == "hello"
    assert "top_k" not in server.chats[-1]


# ---------------------------------------------------------------- addresses


def test_shipped_endpoints() -> None:
    assert set(load_endpoints()) == {"openai", "local"}
    assert load_endpoint("openai").api_key_env == "OPENAI_API_KEY"
    local = load_endpoint("local")
    assert local.api_key_env is None
    assert is_loopback(local.base_url)
    with pytest.raises(ConfigError, match="did you mean 'local'"):
        load_endpoint("lokal")


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        checked_base_url(url)


@pytest.mark.parametrize(
    "url", ["http://me:hunter2@host/v1", "https://host/v1?api_key=hunter2", "https://host/v1#hunter2"]
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_base_url(url)
    assert "hunter2" not in str(caught.value)


def test_names_hold_endpoint_and_model(server: FakeServer) -> None:
    async def name(model: EndpointModel) -> str:
        return model.name

    assert run(server, name, label="openai") == "openai/m"
    assert run(server, name) == f"{server.url.removeprefix('http://')}/m"
