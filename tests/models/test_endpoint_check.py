"""Keys, the check before a run, and what a server is found to offer."""

import json
import logging
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.errors import BackendError, ConfigError
from esckit.models.chat_api import label_probabilities
from esckit.models.endpoint import EndpointModel
from esckit.models.transport import Patience
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
