"""The cases of an evaluation on disk: reading them back, sorting them, and what follows from them.

Playing the cases of an evaluation that are not on disk yet, file after file, each appended as it ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import Field

from esckit.evaluate.cases import Case, Episode, PairCase, ProbeCase, ResponseCase, SycophancyCase
from esckit.evaluate.setup import Setup
from esckit.evaluate.suites.suite import Unit, Work
from esckit.play.runner import HOPELESS, AsyncioExecutor, FailureRate, UnitFile, latest, play_units
from esckit.protocols import Progress
from esckit.records import write_records
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

CaseFile = UnitFile[Unit, Case]


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
    return latest(folder / case_file(file), kind)


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


def case_files(setup: Setup) -> list[CaseFile]:
    """Return the files of cases in the order in which they are played; they are not read yet."""
    return [
        UnitFile(
            case_file(work.file),
            work.kind,
            [(unit.id, unit) for unit in work.units],
            is_failed=is_failed,
            is_retried=is_failed if setup.recipe.resume.retry_failed else None,
            timed_as="case",
            timed_in={"file": work.file},
            asks_models=bool(work.roles),
        )
        for work in setup.works
    ]


@asynccontextmanager
async def staged(setup: Setup, files: Sequence[CaseFile]) -> AsyncIterator[ModelPool]:
    """Load the models that missing cases need, tell the files what plays them, and let the models go at the end.

    Raises:
        EsckitError: If a model cannot be had, or cannot do what its role needs.
    """
    recipe = setup.recipe
    missing = [(work, file) for work, file in zip(setup.works, files, strict=True) if file.missing]
    roles = {role for work, _ in missing for role in work.roles}
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
        done = {work.file: file.done for work, file in zip(setup.works, files, strict=True)}
        for work, file in missing:
            file.play = work.prepare(casting, done)
        yield pool


async def play_missing(
    setup: Setup, files: Sequence[CaseFile], pool: ModelPool | None, folder: RunFolder, progress: Progress
) -> FailureRate:
    """Play what is missing; every file is sorted at the end, whatever happens.

    Returns:
        The failure rate of all cases, not judged yet: what the others say is worth computing.

    Raises:
        FailureRateError: If so many cases failed that playing on is hopeless.
        BudgetError: If the budget is used up.
        StorageError: If the folder was moved or deleted, or cases are gone from it.
    """
    rate = FailureRate(
        setup.recipe.max_failure_rate,
        MIN_CASES_FOR_RATE,
        "cases",
        "resume.retry_failed",
        failed="failed or are unscored",
        hopeless=HOPELESS,
    )
    try:
        await play_units(
            files,
            folder,
            executor=AsyncioExecutor(setup.recipe.concurrency.cases),
            rate=rate,
            progress=progress,
            settled=lambda: _write_beside(folder.path, setup.works, files),
        )
    finally:
        if pool is not None:
            folder.book(pool.spent())
            folder.update_manifest(determinism=pool.determinism(), **pool.facts())
    return rate


def _write_beside(folder: Path, works: Sequence[Work], files: Sequence[CaseFile]) -> None:
    """Write what follows from the cases: why some have no value, and what critics made of the dialogues."""
    failed: list[FailedCase] = []
    for work, file in zip(works, files, strict=True):
        failed += [entry for case in file.records for entry in _failures(work, case)]
        if work.kind is Episode and file.records:
            examples = [_example(case) for case in file.records if isinstance(case, Episode)]
            write_records(folder / EXAMPLES / f"{work.file}.jsonl", examples)
    write_records(folder / "failures.jsonl", failed)


def is_failed(case: Case) -> bool:
    """Return whether a case counts for ``max_failure_rate``; what a file of predictions lacks was not asked for."""
    return bool(set(failure_kinds(case)) - {MISSING})
