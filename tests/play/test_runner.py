"""Spreading units: the bound holds, the first error ends it, the allowed failure rate is kept."""

import asyncio

import pytest

from esckit.errors import FailureRateError
from esckit.play.executor import spread
from esckit.play.runner import FailureRate


def add(rate: FailureRate, *, failed: bool) -> None:
    rate.count(failed=failed)
    rate.watch()


def test_the_limit_holds_and_places_are_freed_at_once() -> None:
    in_flight, peak, done, late = 0, 0, [], asyncio.Event()

    async def work(n: int) -> int:
        nonlocal in_flight, peak
        in_flight += 1
        peak = max(peak, in_flight)
        # The first unit ends after the last but one has: lock-step would never get there.
        await (late.wait() if n == 0 else asyncio.sleep(0))
        if n == 8:
            late.set()
        in_flight -= 1
        return n

    asyncio.run(spread(range(10), work, done.append, limit=3))
    assert peak == 3
    assert sorted(done) == list(range(10))


def test_the_first_error_cancels_what_is_in_flight() -> None:
    cancelled = []

    async def work(n: int) -> int:
        if n == 1:
            raise ValueError("no")
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.append(n)
            raise
        return n

    with pytest.raises(ValueError, match="no"):
        asyncio.run(spread(range(5), work, lambda n: None, limit=3))
    assert sorted(cancelled) == [0, 2]


def test_the_failure_rate_waits_for_enough_units() -> None:
    rate = FailureRate(0.02, 50, "futures", "simulation.retry_failed")
    for _ in range(49):
        add(rate, failed=True)
    with pytest.raises(FailureRateError, match="50 of 50 futures failed"):
        add(rate, failed=True)


def test_the_failure_rate_is_judged_over_all_units_at_the_end() -> None:
    FailureRate(0.02, 50, "futures", "simulation.retry_failed", n=100, n_failed=2).judge()
    with pytest.raises(FailureRateError) as error:
        FailureRate(0.02, 50, "futures", "simulation.retry_failed", n=4, n_failed=1).judge()
    assert error.value.exit_code == 3


def test_units_worth_having_are_finished_and_judged_at_the_end() -> None:
    rate = FailureRate(0.05, 20, "cases", "resume.retry_failed", hopeless=0.5)
    for number in range(30):
        add(rate, failed=number % 2 == 1)
    assert rate.is_passed
    with pytest.raises(FailureRateError, match=r"15 of 30 cases failed.*resume\.retry_failed=true"):
        rate.judge()
    with pytest.raises(FailureRateError, match="16 of 31"):
        add(rate, failed=True)
