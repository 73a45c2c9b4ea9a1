"""Where concurrent requests meet: the asyncio side of the local model.

Requests made in the same turn of the event loop reach the engine together; those that come later join the running batch
between two steps. The engine works in one thread of its own, so the event loop stays free.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from esckit.errors import BackendError

if TYPE_CHECKING:
    from esckit.models.decode import Engine, Job, Result


class Batcher:
    """Hands jobs to an engine and results back to whoever waits for them.

    One event loop at a time may use it. When that loop ends, what was in flight is forgotten.

    Args:
        engine: What does the work.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ids = itertools.count()
        self._arrivals: list[Job] = []
        self._dropped: set[int] = set()
        self._waiters: dict[int, asyncio.Future[Result]] = {}
        self._wake = threading.Event()
        self._driver: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None

    async def run(self, job: Job) -> Result:
        """Wait for the result of a job; its id is given here.

        Raises:
            BackendError: If the batch that held the job failed.
        """
        loop = asyncio.get_running_loop()
        job = replace(job, id=next(self._ids))
        if self._driver is None or self._driver.done() or self._driver.get_loop() is not loop:
            self._driver = loop.create_task(self._drive())
            self._driver.add_done_callback(self._driver_ended)
        waiter: asyncio.Future[Result] = loop.create_future()
        self._waiters[job.id] = waiter
        self._arrivals.append(job)
        self._wake.set()
        try:
            return await waiter
        finally:
            if self._waiters.pop(job.id, None) is not None:  # cancelled: nobody waits for it any more
                self._arrivals = [other for other in self._arrivals if other.id != job.id]
                self._dropped.add(job.id)
                self._wake.set()

    async def aclose(self) -> None:
        """Stop the thread; requests in flight are cancelled. A later request starts it again."""
        driver = self._driver
        if driver is not None and not driver.done() and driver.get_loop() is asyncio.get_running_loop():
            driver.cancel()
            await asyncio.wait([driver])
        self._wake.set()
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None

    async def _drive(self) -> None:
        """Feed the engine until nobody waits."""
        loop = asyncio.get_running_loop()
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="esckit-model")
        while self._waiters:
            await asyncio.sleep(0)  # everybody who is ready in this turn of the loop comes along
            arrivals, dropped = self._arrivals, self._dropped
            self._arrivals, self._dropped = [], set()
            self._wake.clear()
            results = await loop.run_in_executor(
                self._thread, self._engine.advance, arrivals, dropped, self._wake.is_set
            )
            for job_id, result in results.items():
                self._settle(job_id, result)

    def _driver_ended(self, driver: asyncio.Task[None]) -> None:
        """After a failure or the end of the event loop: tell every waiter and empty the engine."""
        error = None if driver.cancelled() else driver.exception()
        if error is None and not driver.cancelled():
            return
        self._wake.set()
        waiters, self._waiters = self._waiters, {}
        self._arrivals, self._dropped = [], set()
        if self._thread is not None:
            self._thread.submit(self._engine.clear)
        for waiter in waiters.values():
            if waiter.done():
                continue
            if error is None:
                waiter.cancel()
            elif isinstance(error, RuntimeError):  # what torch raises, running out of memory included
                failure = BackendError(f"the local model failed: {type(error).__name__}: {error}")
                failure.__cause__ = error
                waiter.set_exception(failure)
            else:
                waiter.set_exception(error)

    def _settle(self, job_id: int, result: Result) -> None:
        waiter = self._waiters.pop(job_id, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(result)
