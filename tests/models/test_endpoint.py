import asyncio
import json
import logging
import math
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.errors import BackendError, ConfigError
from esckit.models.chat_api import label_probabilities
from esckit.models.endpoint import EndpointModel
from esckit.models.endpoints import checked_base_url, is_loopback, load_endpoint, load_endpoints
from esckit.models.retries import RetryPolicy, is_transient, retry_after_s
from esckit.models.transport import Patience
from esckit.types import Message, Sampling, StopReason
from tests.models.fake_server import Canned, FakeServer, completion, refusal, with_log_probs

T = TypeVar("T")

KEY = "sk-secret/0123456789"
HELLO = [Message("system", "Be kind."), Message("user", "Hello")]
QUICK = Patience(timeout_s=2.0, check_s=2.0, retries=RetryPolicy(max_retries=3, first_wait_s=0.01, max_wait_s=0.2))


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer().running() as running:
        yield running


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ESC_TEST_KEY", KEY)
    return "ESC_TEST_KEY"


def run(server_or_url: FakeServer | str, use: Callable[[EndpointModel], Awaitable[T]], **options: Any) -> T:
    """Make a model, use it, close it."""
    url = server_or_url if isinstance(server_or_url, str) else server_or_url.url
    options = {"patience": QUICK, "log_probs": False} | options

    async def go() -> T:
        model = EndpointModel(url, options.pop("model", "m"), **options)
        try:
            return await use(model)
        finally:
            await model.aclose()
            await model.aclose()

    return asyncio.run(go())


def complete(**sampling: Any) -> Callable[[EndpointModel], Awaitable[Any]]:
    return lambda model: model.complete(HELLO, Sampling.model_validate(sampling), seed=5)


def check(model: EndpointModel) -> Awaitable[None]:
    return model.check()


def dead_url() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/v1"


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
        (Canned({"error": {"message": "upstream"}}), "choices: Field required"),
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


# ---------------------------------------------------------------- retries


def test_500_twice_and_then_fine(server: FakeServer) -> None:
    server.queue.extend([refusal("oops", status=500), refusal("oops", status=503)])
    assert run(server, complete()).text == "hello"
    assert len(server.chats) == 3


@pytest.mark.parametrize("status", [408, 409, 429, 500, 529])
def test_what_may_pass_is_tried_a_bounded_number_of_times(server: FakeServer, status: int) -> None:
    server.usual = refusal("later", status=status)
    with pytest.raises(BackendError, match=f"HTTP {status}") as caught:
        run(server, complete())
    assert len(server.chats) == 4
    assert caught.value.attempts == 4


@pytest.mark.parametrize("status", [400, 403, 413, 451])
def test_what_will_not_pass_is_tried_once(server: FakeServer, status: int) -> None:
    server.usual = refusal("never", status=status)
    with pytest.raises(BackendError, match="never"):
        run(server, complete())
    assert len(server.chats) == 1


def test_an_account_without_credit_is_not_asked_again(server: FakeServer) -> None:
    server.usual = refusal("You exceeded your current quota", status=429, code="insufficient_quota")
    with pytest.raises(BackendError, match="quota"):
        run(server, complete())
    assert len(server.chats) == 1


def test_retry_after_is_honoured(server: FakeServer) -> None:
    server.queue.append(refusal("slow down", status=429, headers={"Retry-After": "0.15"}))
    began = time.monotonic()
    assert run(server, complete()).text == "hello"
    assert time.monotonic() - began >= 0.15


def test_retry_after_is_bounded(server: FakeServer) -> None:
    server.queue.append(refusal("slow down", status=429, headers={"Retry-After": "3600"}))
    began = time.monotonic()
    assert run(server, complete()).text == "hello"
    assert time.monotonic() - began < 2.0


def test_a_server_that_hangs_is_given_up(server: FakeServer) -> None:
    server.usual.wait_s = 1.0
    patience = Patience(timeout_s=0.1, retries=RetryPolicy(max_retries=1, first_wait_s=0.01))
    with pytest.raises(BackendError, match=r"no answer from http://127.* within 0\.1 s") as caught:
        run(server, complete(), patience=patience)
    assert caught.value.attempts == 2


def test_a_hang_that_passes_is_retried(server: FakeServer) -> None:
    slow = completion("late")
    slow.wait_s = 0.5
    server.queue.append(slow)
    patience = Patience(timeout_s=0.2, retries=RetryPolicy(max_retries=1, first_wait_s=0.01))
    assert run(server, complete(), patience=patience).text == "hello"


def test_a_dropped_connection_is_retried_also_in_check(server: FakeServer) -> None:
    server.queue.append(Canned(None, is_dropped=True))
    assert run(server, complete()).text == "hello"

    server.models = Canned("boom", 500)
    server.queue.append(Canned(None, is_dropped=True))
    run(server, check)


def test_a_refused_connection_is_a_backend_error_after_the_retries() -> None:
    with pytest.raises(BackendError, match="cannot reach http://127") as caught:
        run(dead_url(), complete())
    assert caught.value.attempts == 4


def test_waits_double_and_have_an_upper_bound() -> None:
    policy = RetryPolicy(max_retries=9, first_wait_s=1.0, max_wait_s=20.0)
    assert [policy.wait_s(n) for n in (1, 2, 3, 4, 5, 6)] == [1.0, 2.0, 4.0, 8.0, 16.0, 20.0]
    assert policy.wait_s(1, 7.5) == 7.5
    assert policy.wait_s(1, 7200.0) == 20.0


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "12"}, 12.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Sun, 22 Nov 2026 10:00:30 GMT"}, 30.0),
        ({"retry-after": "Sun, 22 Nov 2026 09:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers, now=datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)) == expected


def test_transient_statuses() -> None:
    assert [status for status in (400, 401, 403, 404, 408, 409, 422, 429, 500, 503) if is_transient(status, None)] == [
        408,
        409,
        429,
        500,
        503,
    ]


def test_no_more_requests_at_once_than_allowed(server: FakeServer) -> None:
    server.usual.wait_s = 0.03

    async def ask_often(model: EndpointModel) -> None:
        await asyncio.gather(*(model.complete(HELLO, Sampling(), seed=seed) for seed in range(12)))

    run(server, ask_often, patience=Patience(concurrency=3, timeout_s=5.0))
    assert server.most_at_once == 3
    assert sorted(body["seed"] for body in server.chats) == list(range(12))


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


# ---------------------------------------------------------------- keys


def test_the_key_comes_from_the_named_variable_only(
    server: FakeServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another-secret")
    run(server, complete(), api_key_env=key)
    run(server, complete())
    assert server.requests[0].key == f"Bearer {KEY}"
    assert "another-secret" not in str(server.requests[1].key)


@pytest.mark.parametrize("value", [None, "", "  ", "two words", "schlüssel", 'quo"te'])
def test_a_missing_or_broken_key_is_a_config_error_at_once(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESC_NO_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("ESC_NO_KEY", value)
    with pytest.raises(ConfigError, match="ESC_NO_KEY") as caught:
        EndpointModel("http://127.0.0.1:9/v1", "m", api_key_env="ESC_NO_KEY")
    assert not (value and value.strip()) or value not in str(caught.value)


def test_a_wrong_key_is_one_config_error_that_does_not_repeat_it(server: FakeServer, key: str) -> None:
    server.usual = server.models = refusal(f"Incorrect API key provided: {KEY}", status=401)
    for use in (check, complete()):
        with pytest.raises(ConfigError, match="ESC_TEST_KEY") as caught:
            run(server, use, api_key_env=key)
        assert KEY not in str(caught.value)
    assert len(server.requests) == 2


@pytest.mark.parametrize("written", [KEY, KEY.replace("/", "\\/")])
def test_an_echoed_key_is_blotted_out_everywhere(
    server: FakeServer, key: str, caplog: pytest.LogCaptureFixture, written: str
) -> None:
    server.queue.append(Canned(json.dumps({"error": {"message": f"no credit for {KEY}"}}), 500))
    server.usual = completion()
    server.usual.body = json.dumps(server.usual.body).replace("hello", f"your key is {written}")
    with caplog.at_level(logging.INFO):
        reply = run(server, complete(), api_key_env=key)
    assert reply.text == "your key is [key]"
    assert KEY not in caplog.text

    for bad in (refusal("x" * 395 + KEY), Canned(f"{'y' * 190} {KEY}"), Canned({"echo": KEY})):
        server.usual = bad
        with pytest.raises(BackendError) as caught:
            run(server, complete(), api_key_env=key)
        shown = f"{caught.value} {caught.value.samples} {caught.value.__cause__}"
        assert KEY[:8] not in shown


def test_the_key_is_in_no_name_and_no_repr(server: FakeServer, key: str) -> None:
    async def look(model: EndpointModel) -> str:
        return f"{model!r} {model.name} {model.notes} {vars(model)} {vars(model._transport)}"

    assert KEY not in run(server, look, api_key_env=key)


# ---------------------------------------------------------------- check


def test_check_of_a_good_server_asks_for_its_models_only(server: FakeServer) -> None:
    run(server, check)
    assert [request.path for request in server.requests] == ["/v1/models"]


def test_check_of_a_dead_port_is_one_error_within_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(BackendError, match="cannot reach"):
        run(dead_url(), check, patience=None)
    assert time.monotonic() - began < 10.0


def test_check_of_a_server_that_hangs_ends_in_time(server: FakeServer) -> None:
    server.models.wait_s = 1.0
    began = time.monotonic()
    with pytest.raises(BackendError, match=r"within 0\.2 s"):
        run(server, check, patience=Patience(check_s=0.2))
    assert time.monotonic() - began < 1.0


def test_check_ends_within_ten_seconds_by_default() -> None:
    assert Patience().check_s < 10.0


@pytest.mark.parametrize(
    "models", [Canned("not found", 404), Canned("boom", 500), Canned("<html>"), Canned({"data": 3})]
)
def test_check_asks_for_one_token_where_no_models_are_listed(server: FakeServer, models: Canned) -> None:
    server.models = models
    run(server, check)
    assert server.chats[0]["max_tokens"] == 1


def test_check_of_an_unknown_model_names_the_nearest(server: FakeServer) -> None:
    server.models = Canned({"data": [{"id": "qwen2.5-7b-instruct"}]})
    server.usual = refusal("The model does not exist", status=404)
    with pytest.raises(ConfigError, match=r"did you mean 'qwen2\.5-7b-instruct'"):
        run(server, check, model="qwen2.5-7b-instuct")


def test_check_of_a_listed_model_that_needs_more_than_one_token_is_fine(server: FakeServer) -> None:
    server.usual = refusal("Could not finish the message because the output limit was reached")

    async def capabilities(model: EndpointModel) -> frozenset[str]:
        await model.check()
        return model.capabilities

    assert run(server, capabilities, log_probs="auto") == frozenset()


def test_check_of_a_server_without_chat_is_an_error(server: FakeServer) -> None:
    server.models = server.usual = Canned({"detail": "Not Found"}, 404)
    with pytest.raises(ConfigError, match="404"):
        run(server, check)


# ---------------------------------------------------------------- read-outs


async def checked_capabilities(model: EndpointModel) -> frozenset[str]:
    await model.check()
    return model.capabilities


def test_log_probabilities_are_found_by_check(server: FakeServer) -> None:
    server.usual = with_log_probs([("Hi", -0.1)])
    assert run(server, checked_capabilities, log_probs="auto") == {"next_token"}
    assert server.chats[0]["logprobs"] is True


def test_a_server_that_ignores_the_wish_offers_none(server: FakeServer) -> None:
    assert run(server, checked_capabilities, log_probs="auto") == frozenset()


def test_a_server_that_refuses_the_wish_offers_none(server: FakeServer) -> None:
    server.refused_fields = {"logprobs": "logprobs is not supported by this model"}
    assert run(server, checked_capabilities, log_probs="auto") == frozenset()
    assert len(server.chats) == 2


def test_nothing_is_claimed_before_it_is_configured_or_found(server: FakeServer) -> None:
    async def capabilities(model: EndpointModel) -> frozenset[str]:
        return model.capabilities

    assert run(server, capabilities, log_probs="auto") == frozenset()
    assert run(server, capabilities, log_probs=True) == {"next_token"}


def test_next_token_reads_one_token_and_counts_unlisted_labels_as_zero(server: FakeServer) -> None:
    listed = [("A", math.log(0.5)), (" A", math.log(0.1)), ("B\n", math.log(0.2)), ("The", math.log(0.1))]
    server.usual = with_log_probs(listed)

    token = run(server, lambda model: model.next_token(HELLO, ["A", "B", "C"]), log_probs=True)

    assert token.probabilities == pytest.approx((0.6, 0.2, 0.0))
    assert token.label_mass == pytest.approx(0.8)
    assert token.usage.calls == 1
    body = server.chats[0]
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)
    assert (body["temperature"], body["top_p"]) == (1.0, 1.0)


def test_fewer_alternatives_are_asked_for_where_twenty_are_refused(server: FakeServer) -> None:
    refused = refusal("top_logprobs must be at most 5 when logprobs is set")
    server.queue.extend([refused, refused])
    server.usual = with_log_probs([("1", -0.5)])

    async def read_twice(model: EndpointModel) -> None:
        await model.next_token(HELLO, ["1"])
        await model.next_token(HELLO, ["1"])

    run(server, read_twice, log_probs=True)
    assert [body["top_logprobs"] for body in server.chats] == [20, 10, 5, 5]


def test_log_probabilities_without_alternatives_are_no_distribution(server: FakeServer) -> None:
    server.usual = with_log_probs([("Hi", -0.1)])
    del server.usual.body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert run(server, checked_capabilities, log_probs="auto") == frozenset()


def test_a_missing_distribution_is_an_error_and_not_zeros(server: FakeServer) -> None:
    with pytest.raises(BackendError, match="without log-probabilities"):
        run(server, lambda model: model.next_token(HELLO, ["1"]), log_probs=True)


def test_what_is_not_offered_is_a_config_error_without_a_request(server: FakeServer) -> None:
    with pytest.raises(ConfigError, match="readout: sampled"):
        run(server, lambda model: model.next_token(HELLO, ["1"]))
    with pytest.raises(ConfigError, match="readout: sampled"):
        run(server, lambda model: model.score(HELLO, ["Same"]), log_probs=True)
    with pytest.raises(ConfigError, match="positive"):
        run(server, lambda model: model.next_token(HELLO, ["1"], temperature=0.0), log_probs=True)
    assert server.requests == []


def test_temperature_acts_on_listed_tokens_and_the_rest() -> None:
    found, mass = label_probabilities({"A": 0.6, "B": 0.3}, ["A", "B"], 0.5)
    total = 0.36 + 0.09 + 0.01
    assert found == pytest.approx((0.36 / total, 0.09 / total))
    assert mass == pytest.approx(0.45 / total)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=20), st.floats(0.2, 5.0))
def test_label_mass_stays_in_its_range(weights: list[float], temperature: float) -> None:
    listed = {f"t{i}": weight / (sum(weights) + 0.1) for i, weight in enumerate(weights)}
    found, mass = label_probabilities(listed, list(listed), temperature)
    assert all(0.0 <= p <= 1.0 for p in found)
    assert 0.0 <= mass <= 1.0


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
