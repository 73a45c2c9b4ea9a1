"""The cases of an evaluation on disk: reading them back, sorting them, and what follows from them.

Playing the cases of an evaluation that are not on disk yet, file after file, each appended as it ends.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import Field

from esckit.evaluate.cases import Case, Episode, PairCase, ProbeCase, ResponseCase, SycophancyCase
from esckit.evaluate.setup import Setup
from esckit.evaluate.suites.suite import Player, Unit, Work
from esckit.play.executor import HOPELESS, FailureRate, Progress, run_units
from esckit.records import read_records, write_records
from esckit.roles.cast import Casting
from esckit.roles.pool import ModelPool
from esckit.runs import RunFolder
from esckit.types import Record

EXAMPLES = "examples"

EPISODES = "episodes.jsonl"

MOSTLY_UNPARSED = "mostly_unparsed"

MISSING = "missing"
"""Why a case has no value of which a file of predictions has no line."""


K = TypeVar("K", bound=Case)


class FailedCase(Record):
    """A line of ``failures.jsonl``: a case that has no value, and why."""

    suite: str
    id: str
    stage: str
    kind: str


class OutcomeExample(Record):
    """What one critic made of a dialogue: exact values turn by turn, and the turns of success."""

    values: tuple[str, ...] = ()
    strict: int | None = None
    lenient: int | None = None
    unscored: str | None = None


class DialogueExample(Record):
    """A line of ``examples/dialogue.jsonl``; the conversation itself is in ``episodes.jsonl``."""

    SCHEMA: ClassVar[str] = "esckit.example.dialogue/1"

    id: str
    dialogue_id: str
    turns: int
    outcomes: dict[str, OutcomeExample] = Field(default_factory=dict)


def case_file(file: str) -> str:
    """Return where in a run folder the cases of a file stand."""
    return EPISODES if file == "dialogue" else f"{EXAMPLES}/{file}.jsonl"


def read_cases(folder: Path, file: str, kind: type[K]) -> dict[str, K]:
    """Return the cases on disk by id; a case that was played again counts as its latest self."""
    path = folder / case_file(file)
    if not path.is_file():
        return {}
    return {case.id: case for case in read_records(kind, path, allow_cut=True)}


def settle(folder: Path, works: Sequence[Work]) -> int:
    """Sort every file of cases by its plan, and write what follows from them; return how many cases there are."""
    failed: list[FailedCase] = []
    n_cases = 0
    for work in works:
        found = read_cases(folder, work.file, work.kind)
        cases = [found[unit.id] for unit in work.units if unit.id in found]
        if not cases:
            continue
        n_cases += len(cases)
        write_records(folder / case_file(work.file), cases)
        failed += [entry for case in cases for entry in _failures(work, case)]
        if work.kind is Episode:
            examples = [_example(case) for case in cases if isinstance(case, Episode)]
            write_records(folder / EXAMPLES / f"{work.file}.jsonl", examples)
    write_records(folder / "failures.jsonl", failed)
    return n_cases


def _example(episode: Episode) -> DialogueExample:
    from esckit.evaluate.selfplay import CriticOutcome, read_outcome

    outcomes = {}
    for critic in episode.critics:
        outcome = read_outcome(episode, critic)
        outcomes[critic] = (
            OutcomeExample(values=tuple(map(str, outcome.values)), strict=outcome.strict, lenient=outcome.lenient)
            if isinstance(outcome, CriticOutcome)
            else OutcomeExample(unscored=outcome.reason)
        )
    return DialogueExample(id=episode.id, dialogue_id=episode.dialogue_id, turns=len(episode.turns), outcomes=outcomes)


def _failures(work: Work, case: Case) -> Iterator[FailedCase]:
    """Yield what went wrong in a case, by who it went wrong with."""
    stages = {"strategy": "strategist", "reward": "reward"}
    if case.unscored is not None:
        yield FailedCase(suite=work.suite, id=case.id, stage=stages.get(work.suite, "supporter"), kind=case.unscored)
    if isinstance(case, Episode):
        for failure in [*([case.failure] if case.failure else []), *case.critic_failures.values()]:
            yield FailedCase(suite=work.suite, id=case.id, stage=failure.stage, kind=failure.kind)
        if _has_unsound_reading(case):
            yield FailedCase(suite=work.suite, id=case.id, stage="critic", kind=MOSTLY_UNPARSED)
    stage = "scorer" if isinstance(case, ResponseCase) else "judge"
    for kind in _readers_failures(case):
        yield FailedCase(suite=work.suite, id=case.id, stage=stage, kind=kind)


def _readers_failures(case: Case) -> list[str]:
    """Return how the judges, or the scorer, of what was said failed."""
    if isinstance(case, ResponseCase):
        return [case.nll_unscored] if case.nll_unscored else []
    if isinstance(case, PairCase):
        return [judgement.unscored for judgement in case.judgements if judgement.unscored]
    if isinstance(case, ProbeCase | SycophancyCase):
        return [case.judge_unscored] if case.judge_unscored else []
    if isinstance(case, Episode):
        return [turn.ratings_unscored for turn in case.turns if turn.ratings_unscored]
    return []


def failure_kinds(case: Case) -> list[str]:
    """Return how a case failed: whoever was asked, in whatever way; nothing if all of it is scored.

    A dialogue in which half of a critic's answers or more were unreadable somewhere has a value that says little.
    """
    kinds = [*([case.unscored] if case.unscored else []), *_readers_failures(case)]
    if isinstance(case, Episode):
        kinds += [case.failure.kind] if case.failure else []
        kinds += [one.kind for one in case.critic_failures.values()]
        kinds += [MOSTLY_UNPARSED] if _has_unsound_reading(case) else []
    return kinds


def _has_unsound_reading(episode: Episode) -> bool:
    return any(reading.is_mostly_unparsed for turn in episode.turns for reading in turn.readings.values())


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
    chat = {role: one for role, one in recipe.roles().items() if role in roles and role not in _NOT_CHAT}
    async with ModelPool(recipe.executor, recipe.budget) as pool:
        await pool.prepare(chat)
        casting = Casting(
            pool,
            recipe.models.bindings(),
            recipe.prompts.model_dump(),
            recipe.settings.max_attempts,
            setup.taxonomy,
            recipe.strategist.readout,
        )
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
    if stock.n_missing:
        folder.begin_attempt()
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
            folder.book(pool.spent())
            folder.update_manifest(determinism=pool.determinism(), **pool.facts())
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
