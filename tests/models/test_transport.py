"""What may pass is tried again, a bounded number of times."""

import asyncio
import gzip
import json
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from esckit.errors import BackendError, ConfigError, ModelError, OutageError
from esckit.models.endpoint import EndpointModel
from esckit.models.faults import retry_after_s
from esckit.models.transport import Timeouts
from esckit.types import Sampling
from tests.models.endpoint_calls import HELLO, check, complete, dead_url, run
from tests.models.fake_server import Canned, FakeServer, completion, refusal


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


@pytest.mark.parametrize("header", ["Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 31 Dec 9999999999 23:59:59 GMT", "1e99"])
def test_absurd_times_to_wait_neither_end_nor_stall_a_run(server: FakeServer, header: str) -> None:
    server.queue.append(refusal("slow down", status=429, headers={"Retry-After": header}))
    assert run(server, complete()).text == "hello"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Canned({"error": {"message": "rate limited upstream", "code": 429}}), "rate limited upstream"),
        (Canned({"error": "overloaded"}), "overloaded"),
        (Canned({"choices": []}), "no choices"),
        (Canned("<html><title>502 Bad Gateway</title></html>"), "502 Bad Gateway"),
        (Canned(""), "nothing"),
        (Canned('{"choices": [{"mess'), "no JSON object"),
    ],
)
def test_a_200_that_holds_an_error_is_retried_as_that_error(server: FakeServer, bad: Canned, words: str) -> None:
    server.queue.append(bad)
    assert run(server, complete()).text == "hello"
    assert len(server.chats) == 2

    server.usual = bad
    with pytest.raises(BackendError, match=words) as caught:
        run(server, complete())
    assert "HTTP 200" in str(caught.value)
    assert caught.value.attempts == 4


@pytest.mark.parametrize(
    "bad",
    [
        Canned({"error": {"message": "invalid request", "code": 400}}),
        Canned({"error": {"message": "no credit", "code": 402}}),
        Canned('data: {"choices": []}\n\n'),
    ],
)
def test_a_200_that_will_not_pass_is_tried_once(server: FakeServer, bad: Canned) -> None:
    server.usual = bad
    with pytest.raises(BackendError):
        run(server, complete())
    assert len(server.chats) == 1


def test_a_field_refused_inside_a_200_is_learnt(server: FakeServer) -> None:
    server.queue.append(Canned({"error": {"message": "Unsupported parameter: 'top_k'", "code": 400}}))
    assert run(server, complete(top_k=5)).text == "hello"
    assert "top_k" not in server.chats[-1]


@pytest.mark.parametrize(
    ("failed", "kind"),
    [
        (refusal("slow", status=429), "rate_limit"),
        (refusal("no credit", status=429, code="insufficient_quota"), "quota"),
        (refusal("boom", status=500), "server_error"),
        (refusal("no", status=403), "no_access"),
        (refusal("maximum context length is 2048 tokens"), "too_long"),
        (refusal("bad"), "bad_request"),
        (Canned(None, is_dropped=True), "unreachable"),
        (Canned("", wait_s=1.0), "timeout"),
        (Canned("<html>"), "unreadable"),
    ],
)
def test_each_fault_is_counted_under_its_own_kind(server: FakeServer, failed: Canned, kind: str) -> None:
    server.usual = failed
    with pytest.raises(BackendError) as caught:
        run(server, complete(), timeouts=Timeouts(timeout_s=0.5, max_retries=0))
    assert caught.value.kind == kind


def test_the_first_fault_of_a_kind_is_logged_in_its_words(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server.usual = refusal("bad things")

    async def ask_twice(model: EndpointModel) -> None:
        for seed in range(2):
            with pytest.raises(BackendError):
                await model.complete(HELLO, Sampling(), seed=seed)

    run(server, ask_twice)
    (logged,) = [record.getMessage() for record in caplog.records]
    assert "bad things" in logged
    assert "bad_request" in logged


# ---------------------------------------------------------------- sizes


def packed(n_bytes: int) -> bytes:
    return gzip.compress(b" " * n_bytes + json.dumps(completion().body).encode())


def test_a_packed_answer_is_unpacked(server: FakeServer) -> None:
    server.usual = Canned(packed(10), headers={"Content-Encoding": "gzip"})
    assert run(server, complete()).text == "hello"


@pytest.mark.parametrize(
    ("body", "encoding", "expected"),
    [
        (packed(100_000_000), "gzip", "when unpacked"),
        (b"x" * 9_000_000, "identity", "more than 8,388,608 bytes"),
        (b"x", "br", "content encoding 'br'"),
        (b"x", "gzip", "is not valid gzip"),
    ],
)
def test_a_body_without_measure_is_refused_at_once(
    server: FakeServer, body: bytes, encoding: str, expected: str
) -> None:
    server.usual = Canned(body, headers={"Content-Encoding": encoding})
    with pytest.raises(BackendError, match=expected) as caught:
        run(server, complete())
    assert caught.value.kind == "unreadable"
    assert len(server.chats) == 1


def test_errors_have_no_larger_bodies(server: FakeServer) -> None:
    server.usual = Canned(packed(100_000_000), 400, {"Content-Encoding": "gzip"})
    with pytest.raises(BackendError, match="when unpacked"):
        run(server, complete())


# ---------------------------------------------------------------- in the middle of a run


@pytest.mark.parametrize("status", [401, 404])
def test_a_single_401_or_404_after_answers_is_a_slip(server: FakeServer, status: int) -> None:
    server.queue.extend([completion(), refusal("?", status=status)])

    async def ask_twice(model: EndpointModel) -> str:
        await model.complete(HELLO, Sampling(), seed=0)
        return (await model.complete(HELLO, Sampling(), seed=1)).text

    assert run(server, ask_twice) == "hello"


async def then_only(model: EndpointModel, server: FakeServer, later: Canned) -> None:
    await model.complete(HELLO, Sampling(), seed=0)
    server.usual = later
    await model.complete(HELLO, Sampling(), seed=1)


@pytest.mark.parametrize(("status", "kind"), [(401, "no_access"), (404, "not_found")])
def test_401_or_404_for_one_call_is_the_failure_of_that_call(server: FakeServer, status: int, kind: str) -> None:
    with pytest.raises(BackendError) as caught:
        run(server, lambda model: then_only(model, server, refusal("?", status=status)))
    assert caught.value.kind == kind


def test_a_key_that_is_revoked_stops_the_run(server: FakeServer) -> None:
    server.models = refusal("?", status=401)
    with pytest.raises(ConfigError, match="does not accept the key"):
        run(server, lambda model: then_only(model, server, refusal("?", status=401)))


def test_a_model_that_is_gone_stops_the_run(server: FakeServer) -> None:
    server.models = Canned({"data": [{"id": "another"}]})
    with pytest.raises(ConfigError, match="does not know the model"):
        run(server, lambda model: then_only(model, server, refusal("?", status=404)))


BRIEF = Timeouts(timeout_s=0.2, outage_s=0.3, max_retries=2, first_wait_s=0.01, max_wait_s=0.05)


@pytest.mark.parametrize(
    "gone", [Canned(None, is_dropped=True), Canned("", wait_s=1.0), Canned("bad gateway", 502)], ids=str
)
def test_a_server_that_dies_stops_the_run_in_bounded_time(server: FakeServer, gone: Canned) -> None:
    async def die(model: EndpointModel) -> None:
        await model.check()
        server.models = gone
        await then_only(model, server, gone)

    began = time.monotonic()
    with pytest.raises(OutageError, match="has stopped answering") as caught:
        run(server, die, timeouts=BRIEF)
    assert time.monotonic() - began < 8.0
    assert caught.value.exit_code == 3
    assert not isinstance(caught.value, ModelError)


def test_a_call_that_hangs_on_a_live_server_is_its_own_failure(server: FakeServer) -> None:
    with pytest.raises(BackendError, match="no answer") as caught:
        run(server, lambda model: then_only(model, server, Canned("", wait_s=0.5)), timeouts=BRIEF)
    assert caught.value.kind == "timeout"


def test_a_server_that_comes_back_in_time_costs_no_failure(server: FakeServer) -> None:
    async def come_back(model: EndpointModel) -> str:
        await model.check()
        server.models = server.usual = Canned(None, is_dropped=True)
        asking = asyncio.create_task(model.complete(HELLO, Sampling(), seed=0))
        while [request.path for request in server.requests].count("/v1/models") < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        server.models, server.usual = Canned({"data": []}), completion("back")
        return (await asking).text

    timeouts = replace(BRIEF, outage_s=5.0)
    assert run(server, come_back, timeouts=timeouts) == "back"


def test_a_server_that_hangs_is_given_up(server: FakeServer) -> None:
    server.usual.wait_s = 1.0
    timeouts = Timeouts(timeout_s=0.1, max_retries=1, first_wait_s=0.01)
    with pytest.raises(BackendError, match=r"no answer from http://127.* within 0\.1 s") as caught:
        run(server, complete(), timeouts=timeouts)
    assert caught.value.attempts == 2


def test_a_hang_that_passes_is_retried(server: FakeServer) -> None:
    slow = completion("late")
    slow.wait_s = 0.5
    server.queue.append(slow)
    timeouts = Timeouts(timeout_s=0.2, max_retries=1, first_wait_s=0.01)
    assert run(server, complete(), timeouts=timeouts).text == "hello"


def test_a_dropped_connection_is_retried_also_in_check(server: FakeServer) -> None:
    server.queue.append(Canned(None, is_dropped=True))
    assert run(server, complete()).text == "hello"

    server.models = Canned("boom", 500)
    server.queue.append(Canned(None, is_dropped=True))
    run(server, check)


def test_a_refused_connection_is_a_backend_error_after_retries() -> None:
    with pytest.raises(BackendError, match="cannot reach http://127") as caught:
        run(dead_url(), complete())
    assert caught.value.attempts == 4


def test_waits_double_and_have_an_upper_bound() -> None:
    limits = Timeouts(max_retries=9, first_wait_s=1.0, max_wait_s=20.0)
    assert [limits.wait_s(n) for n in (1, 2, 3, 4, 5, 6)] == [1.0, 2.0, 4.0, 8.0, 16.0, 20.0]
    assert limits.wait_s(1, 7.5) == 7.5
    assert limits.wait_s(1, 7200.0) == 20.0


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "12"}, 12.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Sun, 22 Nov 2026 10:00:30 GMT"}, 30.0),
        ({"retry-after": "Sun, 22 Nov 2026 09:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Fri, 31 Dec 2027 23:59:59 +99999999999999999999"}, None),
        ({"retry-after": "Fri, 31 Dec 99999999999999999999 23:59:59 GMT"}, None),
        ({"retry-after": "Mon, 01 Jan 0001 00:00:00 +2359"}, 0.0),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers, now=datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)) == expected


def test_every_request_in_flight_has_a_connection(server: FakeServer) -> None:
    server.usual.wait_s = 0.5

    async def ask_often(model: EndpointModel) -> None:
        await asyncio.gather(*(model.complete(HELLO, Sampling(), seed=seed) for seed in range(500)))

    run(server, ask_often, timeouts=Timeouts(concurrency=150, timeout_s=30.0))
    assert server.most_at_once == 150


def test_no_more_requests_at_once_than_allowed(server: FakeServer) -> None:
    server.usual.wait_s = 0.03

    async def ask_often(model: EndpointModel) -> None:
        await asyncio.gather(*(model.complete(HELLO, Sampling(), seed=seed) for seed in range(12)))

    run(server, ask_often, timeouts=Timeouts(concurrency=3, timeout_s=5.0))
    assert server.most_at_once == 3
    assert sorted(body["seed"] for body in server.chats) == list(range(12))
