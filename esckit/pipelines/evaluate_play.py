"""Playing the cases of an evaluation that are not on disk yet, file after file, each appended as it ends."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from esckit.evaluate.cases import Case
from esckit.pipelines.evaluate_files import MISSING, case_file, failure_kinds, read_cases, settle
from esckit.pipelines.evaluate_players import Casting
from esckit.pipelines.evaluate_setup import Setup
from esckit.pipelines.evaluate_suites.work import Player, Unit, Work
from esckit.pipelines.executor import HOPELESS, FailureRate, Progress, run_units
from esckit.pipelines.models import ModelPool
from esckit.runs import RunFolder

MIN_CASES_FOR_RATE = 20
# These are no chat models: their suites load them.
_NOT_CHAT = ("scorer", "reward")


@dataclass(frozen=True, slots=True)
class Stock:
    """What there is of an evaluation.

    Attributes:
        done: Cases by file and id; those that are played join them.
        missing: Cases to be played, by file.
    """

    done: dict[str, dict[str, Case]]
    missing: dict[str, list[Unit]]

    @classmethod
    def of(cls, setup: Setup, folder: Path) -> Stock:
        """Return what is on disk, and what is not or failed and is to be tried again."""
        again = setup.recipe.resume.retry_failed
        done: dict[str, dict[str, Case]] = {}
        missing: dict[str, list[Unit]] = {}
        for work in setup.works:
            found: dict[str, Case] = {**read_cases(folder, work.file, work.kind)}
            done[work.file] = found
            missing[work.file] = [
                unit for unit in work.units if (case := found.get(unit.id)) is None or (again and is_failed(case))
            ]
        return cls(done, missing)

    @property
    def n_missing(self) -> int:
        """Cases to be played."""
        return sum(map(len, self.missing.values()))

    def rate(self, allowed: float) -> FailureRate:
        """Return the failure rate of what stays as it is."""
        waiting = {(file, unit.id) for file, units in self.missing.items() for unit in units}
        kept = [
            case for file, cases in self.done.items() for name, case in cases.items() if (file, name) not in waiting
        ]
        return FailureRate(
            allowed,
            MIN_CASES_FOR_RATE,
            "cases",
            "resume.retry_failed",
            len(kept),
            sum(map(is_failed, kept)),
            failed="failed or are unscored",
            hopeless=HOPELESS,
        )


@dataclass(frozen=True, slots=True)
class Stage:
    """The models of an evaluation, and what plays the cases of each file."""

    pool: ModelPool
    players: dict[str, Player]


@asynccontextmanager
async def staged(setup: Setup, stock: Stock) -> AsyncIterator[Stage]:
    """Load the models that missing cases need, and let them go at the end.

    Raises:
        EsckitError: If a model cannot be had, or cannot do what its role needs.
    """
    recipe = setup.recipe
    works = [work for work in setup.works if stock.missing[work.file]]
    roles = {role for work in works for role in work.roles}
    chat = [binding for role, binding in recipe.roles().items() if role in roles and role not in _NOT_CHAT]
    async with ModelPool(recipe.executor, recipe.budget) as pool:
        await pool.prepare(chat)
        casting = Casting(recipe, pool, setup.taxonomy)
        yield Stage(pool, {work.file: work.prepare(casting, stock.done) for work in works})


async def play_missing(
    setup: Setup, stock: Stock, stage: Stage | None, folder: RunFolder, progress: Progress
) -> FailureRate:
    """Play what is missing; every file is sorted at the end, whatever happens.

    Returns:
        The failure rate of all cases, not judged yet: what the others say is worth computing.

    Raises:
        FailureRateError: If so many cases failed that playing on is hopeless.
        BudgetError: If the budget is used up.
        StorageError: If the folder was moved or deleted, or cases are gone from it.
    """
    rate = stock.rate(setup.recipe.max_failure_rate)
    # Where no model is to be asked any more, going on costs nothing and brings the metrics.
    if any(work.roles and stock.missing[work.file] for work in setup.works):
        rate.watch()
    total = sum(len(work.units) for work in setup.works)
    progress.start(total, total - stock.n_missing)
    try:
        if stage is not None:
            for work in setup.works:
                if work.file in stage.players:
                    await _play_file(setup, work, stock, stage.players[work.file], folder, rate, progress)
    finally:
        progress.close()
        folder.require_present()
        n_settled = settle(folder.path, setup.works)
        if stage is not None:
            pool = stage.pool
            folder.update_manifest(determinism=pool.determinism(), spent=pool.spent(), **pool.facts())
    folder.require_whole(n_settled, total, "cases")
    return rate


def is_failed(case: Case) -> bool:
    """Return whether a case counts for ``max_failure_rate``; what a file of predictions lacks was not asked for."""
    return bool(set(failure_kinds(case)) - {MISSING})


async def _play_file(
    setup: Setup, work: Work, stock: Stock, play: Player, folder: RunFolder, rate: FailureRate, progress: Progress
) -> None:
    units: Sequence[Unit] = stock.missing[work.file]
    with folder.appender(case_file(work.file)) as cases, folder.appender("metrics.jsonl") as timings:

        async def timed(unit: Unit) -> tuple[Case, float]:
            began = time.perf_counter()
            return await play(unit), time.perf_counter() - began

        def take(result: tuple[Case, float]) -> None:
            case, seconds = result
            cases.append(case)
            timings.append({"file": work.file, "case": case.id, "seconds": round(seconds, 3)})
            stock.done[work.file][case.id] = case
            rate.count(failed=is_failed(case))
            if work.roles:
                rate.watch()
            progress.advance(failed=rate.n_failed)

        await run_units(units, timed, limit=setup.recipe.concurrency.cases, on_result=take)
