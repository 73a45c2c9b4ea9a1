"""What may pass is tried again, a bounded number of times."""

import asyncio
import time
from datetime import UTC, datetime

import pytest

from esckit.errors import BackendError
from esckit.models.endpoint import EndpointModel
from esckit.models.retries import RetryPolicy, is_transient, retry_after_s
from esckit.models.transport import Patience
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
