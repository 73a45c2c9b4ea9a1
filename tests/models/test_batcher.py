import asyncio
import threading

import pytest

from esckit.errors import BackendError
from esckit.models.engine import Job, ReadJob, WriteJob, Written
from esckit.models.local import Batcher
from esckit.types import Sampling, StopReason


class FakeEngine:
    """Finishes one job per call, in the order of arrival; keeps account of what it was given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.waves: list[int] = []
        self.dropped: list[Job] = []
        self.todo: list[Job] = []
        self.threads: set[str] = set()
        self.n_cleared = 0
        self.gate = threading.Event()
        self.gate.set()

    def advance(self, arrivals, dropped, interrupted):
        self.threads.add(threading.current_thread().name)
        self.waves.append(len(arrivals))
        self.dropped += dropped
        self.todo = [job for job in [*self.todo, *arrivals] if job not in dropped]
        while not self.gate.wait(0.002):
            if interrupted():
                return {}
        if self.error is not None:
            raise self.error
        return {self.todo.pop(0): Written((1,), StopReason.STOP)} if self.todo else {}

    def clear(self):
        self.n_cleared += 1
        self.todo = []


def job() -> WriteJob:
    return WriteJob((1, 2), Sampling(), 0, frozenset())


def test_requests_of_one_turn_meet_in_one_wave():
    engine = FakeEngine()

    async def main():
        batcher = Batcher(engine)
        await asyncio.gather(*(batcher.run(job()) for _ in range(5)))
        await batcher.aclose()

    asyncio.run(main())
    assert engine.waves[0] == 5
    assert all("esckit-model" in name for name in engine.threads)


@pytest.mark.parametrize(
    ("error", "expected"), [(RuntimeError("mkldnn"), BackendError), (ZeroDivisionError("a bug"), ZeroDivisionError)]
)
def test_an_error_reaches_every_waiter_and_the_next_starts_new(error, expected):
    engine = FakeEngine(error)

    async def main():
        batcher = Batcher(engine)
        outcomes = await asyncio.gather(*(batcher.run(job()) for _ in range(3)), return_exceptions=True)
        engine.error = None
        again = await batcher.run(job())
        await batcher.aclose()
        return outcomes, again

    outcomes, again = asyncio.run(main())
    assert [type(outcome) for outcome in outcomes] == [expected] * 3
    assert isinstance(again, Written)
    assert engine.n_cleared == 1


def test_a_cancelled_request_does_not_break_the_batch():
    engine, jobs = FakeEngine(), [job() for _ in range(3)]
    engine.gate.clear()

    async def main():
        batcher = Batcher(engine)
        tasks = [asyncio.create_task(batcher.run(asked)) for asked in jobs]
        await asyncio.sleep(0.02)
        tasks[1].cancel()
        await asyncio.sleep(0.02)
        engine.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.aclose()
        return outcomes

    first, second, third = asyncio.run(main())
    assert isinstance(second, asyncio.CancelledError)
    assert isinstance(first, Written)
    assert isinstance(third, Written)
    assert engine.dropped == [jobs[1]]


def test_late_requests_interrupt_and_join():
    engine = FakeEngine()
    engine.gate.clear()

    async def main():
        batcher = Batcher(engine)
        first = asyncio.create_task(batcher.run(job()))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(batcher.run(job()))
        await asyncio.sleep(0.02)
        engine.gate.set()
        await asyncio.gather(first, second)
        await batcher.aclose()

    asyncio.run(main())
    assert engine.waves[:2] == [1, 1]


def test_closing_cancels_calls_and_a_later_loop_can_go_on():
    engine = FakeEngine()
    engine.gate.clear()
    batcher = Batcher(engine)

    async def closed():
        task = asyncio.create_task(batcher.run(job()))
        await asyncio.sleep(0.01)
        await batcher.aclose()
        await batcher.aclose()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def later():
        engine.gate.set()
        result = await batcher.run(job())
        await batcher.aclose()
        return result

    asyncio.run(closed())
    assert isinstance(asyncio.run(later()), Written)


def test_a_loop_that_ends_leaves_no_request_behind():
    engine = FakeEngine()
    engine.gate.clear()
    batcher = Batcher(engine)

    async def abandoned():
        task = asyncio.create_task(batcher.run(ReadJob((1,), ((2,),))))
        await asyncio.sleep(0.01)
        return task

    async def later():
        engine.gate.set()
        result = await batcher.run(job())
        await batcher.aclose()
        return result

    assert asyncio.run(abandoned()).cancelled()
    assert isinstance(asyncio.run(later()), Written)
    assert engine.n_cleared == 1
