"""Spreading independent units of work, such as futures or trees, with a bound on how many are in flight.

A finished unit frees its place at once; there is no lock-step. Results arrive in any order, so whatever must be
reproducible is keyed by ids and sorted at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from esckit.errors import FailureRateError

HOPELESS = 0.5
"""Share of failed units that ends a run whose units are worth having even where more failed than is allowed."""


T = TypeVar("T")

R = TypeVar("R")


class Progress(Protocol):
    """Shows how far a run is; implemented by the CLI."""

    def start(self, total: int, done: int = 0) -> None:
        """Begin a run of ``total`` units, of which ``done`` are there already."""
        ...

    def advance(self, n: int = 1, **counts: int) -> None:
        """Count finished units; ``counts`` are running totals to show beside them."""
        ...

    def close(self) -> None:
        """End the display."""
        ...


class NoProgress:
    """Shows nothing."""

    def start(self, total: int, done: int = 0) -> None:
        """Do nothing."""

    def advance(self, n: int = 1, **counts: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class FailureRate:
    """Watches the share of failed units.

    Attributes:
        allowed: Largest allowed share, in [0, 1].
        min_units: Finished units before the share is judged while the run goes on.
        what: Plural noun for messages.
        retry: The recipe's field that has failed units done again.
        n: Finished units.
        n_failed: Those that failed.
        failed: What happened to those, for messages.
        hopeless: The run goes on up to this share even where less is allowed, and is judged at its end.
    """

    allowed: float
    min_units: int
    what: str
    retry: str
    n: int = 0
    n_failed: int = 0
    failed: str = "failed"
    hopeless: float = 0.0

    def count(self, *, failed: bool) -> None:
        """Count a finished unit."""
        self.n += 1
        self.n_failed += failed

    def add(self, *, failed: bool) -> None:
        """Count a finished unit, and judge.

        Raises:
            FailureRateError: If the share is passed after at least ``min_units``.
        """
        self.count(failed=failed)
        self.watch()

    def watch(self) -> None:
        """Raise a :class:`~esckit.errors.FailureRateError` if the share is passed after at least ``min_units``."""
        if self.n >= self.min_units and self.n_failed > self.hopeless * self.n:
            self.judge()

    @property
    def is_passed(self) -> bool:
        """Whether more units failed than is allowed, however few there are."""
        return self.n_failed > self.allowed * self.n

    def judge(self) -> None:
        """Raise a :class:`~esckit.errors.FailureRateError` if the share is passed, however few units there are."""
        if self.is_passed:
            raise FailureRateError(
                f"{self.n_failed} of {self.n} {self.what} {self.failed}",
                expected=f"at most {self.allowed:.1%} (max_failure_rate)",
                hint="What is done is kept; failures.jsonl says why. Fix the cause, then run the same command with "
                f"--set {self.retry}=true, or allow more with --set max_failure_rate=SHARE",
            )


async def run_units(
    units: Iterable[T], work: Callable[[T], Awaitable[R]], *, limit: int, on_result: Callable[[R], None]
) -> None:
    """Work on all units with at most ``limit`` in flight.

    Args:
        units: The work, taken lazily in order.
        work: Does one unit.
        limit: Units in flight, at least 1.
        on_result: Takes each result as soon as it is there; called from one task at a time.

    Raises:
        Exception: The first error of ``work`` or ``on_result``; the other units in flight are cancelled.
    """
    waiting = iter(units)

    async def worker() -> None:
        for unit in waiting:
            on_result(await work(unit))

    workers = [asyncio.create_task(worker()) for _ in range(limit)]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
