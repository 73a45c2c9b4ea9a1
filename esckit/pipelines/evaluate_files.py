"""The cases of an evaluation on disk: reading them back, sorting them, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import Field

from esckit.evaluate.cases import Case, Episode, PairCase, ProbeCase, ResponseCase, SycophancyCase
from esckit.pipelines.evaluate_suites.work import Work
from esckit.records import read_records, write_records
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
    from esckit.evaluate.outcomes import CriticOutcome, read_outcome

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
