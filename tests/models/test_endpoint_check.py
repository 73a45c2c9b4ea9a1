"""Keys, the check before a run, and what a server is found to offer."""

import base64
import json
import logging
import math
import time
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.errors import BackendError, ConfigError, EsckitError
from esckit.models.chat_api import label_probabilities
from esckit.models.endpoint import EndpointModel
from esckit.models.transport import Timeouts
from tests.models.endpoint_calls import HELLO, KEY, check, complete, dead_url, run
from tests.models.fake_server import Canned, FakeServer, completion, refusal, with_log_probs

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


def test_a_key_in_place_of_a_variables_name_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="is not set") as caught:
        EndpointModel("http://127.0.0.1:9/v1", "m", api_key_env="gsk_aB3dE5fG7hI9jK1lM3nO5")
    assert "aB3dE5" not in str(caught.value)


def test_a_wrong_key_is_one_config_error_that_does_not_repeat_it(server: FakeServer, key: str) -> None:
    server.usual = server.models = refusal(f"Incorrect API key provided: {KEY}", status=401)
    for use in (check, complete()):
        with pytest.raises(ConfigError, match="ESC_TEST_KEY") as caught:
            run(server, use, api_key_env=key)
        assert KEY not in str(caught.value)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "written",
    [
        KEY,
        KEY.replace("/", "\\/"),
        KEY.replace("/", "\\u002f"),
        quote(KEY, safe=""),
        KEY.replace("/", "&#47;"),
        KEY.replace("/", "&#x2F;"),
        base64.b64encode(KEY.encode()).decode().rstrip("="),
    ],
)
def test_an_echoed_key_is_blotted_out_everywhere(
    server: FakeServer, key: str, caplog: pytest.LogCaptureFixture, written: str
) -> None:
    server.queue.append(Canned(json.dumps({"error": {"message": f"no credit for {KEY}"}}), 500))
    server.usual = completion()
    server.usual.body = json.dumps(server.usual.body).replace("hello", f"your key is {written}")
    with caplog.at_level(logging.INFO):
        reply = run(server, complete(), api_key_env=key)
    assert reply.text.startswith("your key is [key]")
    assert written[2:] not in reply.text
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


def test_check_asks_for_the_models_and_one_token(server: FakeServer) -> None:
    run(server, check)
    assert [request.path for request in server.requests] == ["/v1/models", "/v1/chat/completions"]


def test_check_of_a_dead_port_is_one_error_within_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(BackendError, match="cannot reach"):
        run(dead_url(), check, timeouts=None)
    assert time.monotonic() - began < 10.0


def test_check_of_a_server_that_hangs_ends_in_time(server: FakeServer) -> None:
    server.models.wait_s = 1.0
    began = time.monotonic()
    with pytest.raises(BackendError, match=r"within 0\.2 s"):
        run(server, check, timeouts=Timeouts(check_s=0.2))
    assert time.monotonic() - began < 1.0


def test_check_ends_within_ten_seconds_by_default() -> None:
    assert Timeouts().check_s < 10.0


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


def test_check_passes_for_a_listed_model_that_needs_more_tokens(server: FakeServer) -> None:
    server.usual = refusal("Could not finish the message because the output limit was reached")

    async def capabilities(model: EndpointModel) -> frozenset[str]:
        await model.check()
        return model.capabilities

    assert run(server, capabilities) == frozenset()


def test_check_of_a_server_without_chat_is_an_error(server: FakeServer) -> None:
    server.models = server.usual = Canned({"detail": "Not Found"}, 404)
    with pytest.raises(ConfigError, match="404"):
        run(server, check)


@pytest.mark.parametrize("answer", [Canned("no POST here", 405), Canned("no POST here", 501), Canned("<html>hello")])
def test_check_of_a_server_of_something_else_says_what_is_expected(server: FakeServer, answer: Canned) -> None:
    server.models = server.usual = answer
    with pytest.raises(EsckitError, match=r"takes no chat requests|no completion") as caught:
        run(server, check)
    assert caught.value.expected == "a server with an OpenAI-compatible interface"
    assert "base_url (it ends in /v1 for most servers)" in str(caught.value.hint)


def test_a_slow_first_answer_is_waited_for_and_said(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server.usual = with_log_probs([("Hi", -0.1)])
    server.usual.wait_s = 0.4
    timeouts = Timeouts(check_s=0.2, timeout_s=5.0)
    assert run(server, checked_capabilities, timeouts=timeouts) == {"next_token"}
    assert "has not answered within 0.2 s; waiting for up to 5 s" in caplog.text


def test_a_server_that_says_when_to_come_back_is_asked_again(server: FakeServer) -> None:
    server.models = refusal("no list", status=404)
    loading = refusal("still loading", status=503, headers={"Retry-After": "0.4"})
    server.queue.extend([loading, loading])
    server.usual = with_log_probs([("Hi", -0.1)])
    timeouts = Timeouts(check_s=0.6, timeout_s=20.0, max_retries=3, first_wait_s=0.01, max_wait_s=1.0)
    assert run(server, checked_capabilities, timeouts=timeouts) == {"next_token"}


def test_a_listed_model_that_never_answers_is_enough_to_start(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.usual.wait_s = 1.0
    timeouts = Timeouts(check_s=0.1, timeout_s=0.3, max_retries=0)
    assert run(server, checked_capabilities, timeouts=timeouts) == frozenset()
    assert "whether it offers log-probabilities is unknown" in caplog.text


def test_a_probe_that_fails_for_now_does_not_stop_the_start(server: FakeServer) -> None:
    server.usual = refusal("busy", status=500)
    assert run(server, checked_capabilities) == frozenset()


@pytest.mark.parametrize("where", ["http://elsewhere.example/v1/chat/completions?token=x", "https://127.0.0.1:1/v1"])
def test_a_redirect_to_another_address_is_refused(server: FakeServer, where: str) -> None:
    server.models = server.usual = Canned("", 307, {"Location": where})
    with pytest.raises(ConfigError, match="redirects to") as caught:
        run(server, check)
    assert server.url in str(caught.value)
    assert where.partition("?")[0] in str(caught.value)
    assert "token=x" not in str(caught.value)


def test_a_redirect_to_another_server_sends_it_nothing(server: FakeServer) -> None:
    with FakeServer().running() as other:
        server.usual = Canned("", 308, {"Location": f"{other.url}/chat/completions"})
        with pytest.raises(ConfigError, match=other.url):
            run(server, complete())
        assert other.requests == []


def test_a_redirect_within_one_server_is_followed(server: FakeServer) -> None:
    server.queue.append(Canned("", 307, {"Location": "/v2/chat"}))
    assert run(server, complete()).text == "hello"
    assert server.requests[-1].path == "/v2/chat"
    assert server.requests[-1].body == server.requests[0].body


# ---------------------------------------------------------------- read-outs


async def checked_capabilities(model: EndpointModel) -> frozenset[str]:
    await model.check()
    return model.capabilities


def test_log_probabilities_are_found_by_check(server: FakeServer) -> None:
    server.usual = with_log_probs([("Hi", -0.1)])
    assert run(server, checked_capabilities) == {"next_token"}
    assert server.chats[0]["logprobs"] is True


def test_a_server_that_ignores_the_wish_offers_none(server: FakeServer) -> None:
    assert run(server, checked_capabilities) == frozenset()


def test_a_server_that_refuses_the_wish_offers_none(server: FakeServer) -> None:
    server.refused_fields = {"logprobs": "logprobs is not supported by this model"}
    assert run(server, checked_capabilities) == frozenset()
    assert len(server.chats) == 2


def test_nothing_is_claimed_before_it_is_found(server: FakeServer) -> None:
    async def capabilities(model: EndpointModel) -> frozenset[str]:
        return model.capabilities

    assert run(server, capabilities) == frozenset()


def test_next_token_counts_unlisted_labels_as_zero(server: FakeServer) -> None:
    listed = [("A", math.log(0.5)), (" A", math.log(0.1)), ("B\n", math.log(0.2)), ("The", math.log(0.1))]
    server.usual = with_log_probs(listed)

    token = run(server, lambda model: model.next_token(HELLO, ["A", "B", "C"]), log_probs=True)

    assert token.probabilities == pytest.approx((0.6, 0.2, 0.0))
    assert token.label_mass == pytest.approx(0.8)
    assert token.usage.calls == 1
    body = server.chats[0]
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)
    assert (body["temperature"], body["top_p"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("says", "asked"),
    [
        ("Cannot request more than 5 logprobs.", [20, 5]),
        ("top_logprobs must be at most 5 when logprobs is set", [20, 5]),
        ("logprobs must be at most 8", [20, 8]),
        ("Requested sample logprobs of 20, which is greater than max allowed: 5", [20, 5]),
        ("Invalid value for 'top_logprobs': must be in [0, 5], got 20", [20, 5]),
        ("top_logprobs: Input should be less than or equal to 5", [20, 5]),
        ("model llama-3.1-8b: top_logprobs 20 is not supported, use 11 or fewer", [20, 11]),
        ("too many log-probabilities", [20, 10, 5]),
    ],
)
def test_as_many_alternatives_are_asked_for_as_are_allowed(server: FakeServer, says: str, asked: list[int]) -> None:
    server.usual = with_log_probs([("1", -0.5)])
    server.queue.extend([refusal(says)] * (len(asked) - 1))

    async def read_twice(model: EndpointModel) -> None:
        await model.next_token(HELLO, ["1"])
        await model.next_token(HELLO, ["1"])

    run(server, read_twice, log_probs=True)
    assert [body["top_logprobs"] for body in server.chats] == [*asked, asked[-1]]


def test_a_validators_bound_on_alternatives_is_read(server: FakeServer) -> None:
    error = {
        "type": "less_than_equal",
        "loc": ["body", "top_logprobs"],
        "msg": "too large",
        "input": 20,
        "ctx": {"le": 5},
    }
    server.queue.append(Canned({"detail": [error]}, 422))
    server.usual = with_log_probs([("1", -0.5)])
    run(server, lambda model: model.next_token(HELLO, ["1"]), log_probs=True)
    assert [body["top_logprobs"] for body in server.chats] == [20, 5]


@pytest.mark.parametrize("log_p", [math.nan, math.inf, -math.inf, 0.7, "x", True])
def test_a_log_probability_that_is_none_is_a_typed_failure(server: FakeServer, log_p: object) -> None:
    server.usual = with_log_probs([("2", -1.0), ("1", log_p)])
    with pytest.raises(BackendError, match="log-probability") as caught:
        run(server, lambda model: model.next_token(HELLO, ["1", "2"]), log_probs=True)
    assert caught.value.kind == "not_finite"


def test_a_log_probability_below_all_floats_is_no_chance_at_all(server: FakeServer) -> None:
    server.usual = with_log_probs([("2", -1.0), ("1", -(10**400))])
    token = run(server, lambda model: model.next_token(HELLO, ["1", "2"]), log_probs=True)
    assert token.probabilities == (0.0, pytest.approx(math.exp(-1.0)))


def test_an_unknown_number_is_not_zero_for_a_label(server: FakeServer) -> None:
    server.usual = with_log_probs([("2", math.log(0.5)), ("The", None)])
    token = run(server, lambda model: model.next_token(HELLO, ["1", "2"]), log_probs=True)
    assert token.probabilities == pytest.approx((0.0, 0.5))

    server.usual = with_log_probs([("2", math.log(0.5)), (" 1", None)])
    with pytest.raises(BackendError, match="no log-probability for '1'"):
        run(server, lambda model: model.next_token(HELLO, ["1", "2"]), log_probs=True)


def test_tokens_beyond_all_probability_are_a_typed_failure(server: FakeServer) -> None:
    server.usual = with_log_probs([("1", -0.1), ("2", -0.1)])
    with pytest.raises(BackendError, match=r"1\.81 together"):
        run(server, lambda model: model.next_token(HELLO, ["1", "2"]), log_probs=True)


def test_the_older_form_of_log_probabilities_is_read(server: FakeServer) -> None:
    older = {"tokens": ["1"], "token_logprobs": [-0.5], "top_logprobs": [{"1": math.log(0.6), " 2": math.log(0.3)}]}
    server.usual = completion("1", "length", logprobs=older)
    token = run(server, lambda model: model.next_token(HELLO, ["1", "2"]), log_probs=True)
    assert token.probabilities == pytest.approx((0.6, 0.3))


@pytest.mark.parametrize("log_probs", [None, [], "none", {}, {"content": None}, {"content": [{"top_logprobs": None}]}])
def test_empty_log_probabilities_are_none(server: FakeServer, log_probs: object) -> None:
    server.usual = completion("1", "length", logprobs=log_probs)
    with pytest.raises(BackendError, match="without log-probabilities") as caught:
        run(server, lambda model: model.next_token(HELLO, ["1"]), log_probs=True)
    assert caught.value.kind == "no_log_probs"


def test_small_temperatures_do_not_divide_by_zero() -> None:
    assert label_probabilities({"A": 0.6, "B": 0.4}, ["A", "B"], 1e-4) == ((1.0, 0.0), 1.0)


def test_log_probs_without_alternatives_are_no_distribution(server: FakeServer) -> None:
    server.usual = with_log_probs([("Hi", -0.1)])
    del server.usual.body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert run(server, checked_capabilities) == frozenset()


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
