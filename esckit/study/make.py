"""``esckit study make``: from evaluations to sheets that raters fill in without knowing who wrote what.

The same seed and runs give the same study. Cases are drawn by their ids, one per dialogue while there are enough. Sides
are balanced twice: for every rater each system stands first equally often, and a question that one rater sees in one
order the next one sees in the other.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from esckit.errors import ConfigError, DataError
from esckit.evaluate.suites.pairwise import one_per_dialogue
from esckit.ledger import derive_seed
from esckit.records import digest, dump_json, write_atomic
from esckit.report.source import Run
from esckit.roles.critics import DIMENSIONS
from esckit.study.cases import ShownCase, SuiteName, shared_suite, shown_cases
from esckit.study.form import Shown, instructions, render_form
from esckit.study.key import AB_VALUES, ANSWERS, FORMS, KEY, RATING_VALUES, SHEETS, Asked, Kind, Question, StudyKey
from esckit.text import without_formulas

DEFAULT_DIMENSIONS = ("fluency", "identification", "comfort", "suggestion", "overall")

_NAMES = {"seeker": "Person", "supporter": "Supporter"}


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """What a study asks for.

    Attributes:
        kind: Two answers side by side, or one answer to rate.
        n_items: Cases; each is one question per pair of systems (``ab``) or per system (``rating``).
        n_raters: Raters; each answers all questions.
        n_checks: Attention checks for each rater.
        dimensions: What is asked of each question.
        suite: Suite whose cases are shown; None takes the first that all runs have.
    """

    kind: Kind
    n_items: int
    n_raters: int
    n_checks: int = 3
    dimensions: tuple[str, ...] = field(default=DEFAULT_DIMENSIONS)
    suite: SuiteName | None = None
    seed: int = 1


def make_study(runs: Mapping[str, Run], plan: StudyPlan, out: Path) -> dict[str, Any]:
    """Write the study into a new folder and return its facts.

    Args:
        runs: Evaluations by name, on the same cases.
        plan: What is asked for.
        out: The folder; it must not hold anything.

    Raises:
        ConfigError: If the folder is not empty, or the plan cannot be met.
        DataError: If the runs have too few cases in common, or their texts may not be shown.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty", expected="a new folder", hint="Choose another --out")
    if plan.kind == "ab" and len(runs) < 2:
        raise ConfigError("one run in a study of kind ab", expected="two at least, or --kind rating")
    suite = plan.suite or shared_suite(runs)
    _require_quotable(runs)
    found = shown_cases(runs, suite)
    if len(found) < plan.n_items:
        raise DataError(
            f"{len(found)} cases of {suite} that all runs answered, and --items {plan.n_items}",
            expected=f"--items {len(found)} at most",
        )
    chosen = one_per_dialogue(found, run_seed=plan.seed, limit=plan.n_items)
    key = _key(runs, plan, suite, chosen)
    by_id = {case.id: case for case in chosen}
    texts = {KEY: dump_json({"schema": StudyKey.SCHEMA, **key.model_dump(mode="json")}, indent=1) + "\n"}
    texts["instructions.md"] = instructions(key)
    for rater, asked in key.raters.items():
        shown = [_shown(key, by_id, each) for each in asked]
        texts[f"{SHEETS}/{rater}.csv"] = _sheet(key, rater, shown)
        texts[f"{FORMS}/{rater}.html"] = render_form(key, rater, shown)
    # The key last: a folder with one is whole.
    for name in sorted(texts, key=lambda name: name == KEY):
        write_atomic(out / name, texts[name])
    (out / ANSWERS).mkdir(exist_ok=True)
    n_questions = sum(not question.is_check for question in key.questions.values())
    return {
        "folder": str(out),
        "kind": plan.kind,
        "suite": suite,
        "systems": list(runs),
        "cases": len(chosen),
        "dialogues": len({case.dialogue_id for case in chosen}),
        "questions": n_questions,
        "checks": plan.n_checks,
        "raters": plan.n_raters,
        "answers": n_questions * plan.n_raters * len(plan.dimensions),
    }


def _require_quotable(runs: Mapping[str, Run]) -> None:
    """Refuse to copy texts of a corpus that may be for research use only, unless the user says so."""
    closed = [str(run.path) for run in runs.values() if not run.quotes]
    if closed:
        raise DataError(
            "sheets would show texts of a corpus that may be for research use only",
            path=closed[0],
            expected="--quotes, if its licence lets you show them to your raters",
        )


# ---------------------------------------------------------------- the design


def _key(runs: Mapping[str, Run], plan: StudyPlan, suite: SuiteName, cases: Sequence[ShownCase]) -> StudyKey:
    answers = {case.id: {name: list(talk) for name, talk in case.answers.items()} for case in cases}
    study = digest([plan.kind, plan.seed, plan.n_raters, plan.n_checks, plan.dimensions, suite, answers])
    shown: list[tuple[str, ...]] = list(combinations(runs, 2 if plan.kind == "ab" else 1))
    asked = [(pair, case) for pair in shown for case in cases]
    # A check borrows a conversation, so that it looks like every other question until it is read.
    asked += [((), cases[place % len(cases)]) for place in range(plan.n_checks)]
    questions = [Question(case_id=case.id, dialogue_id=case.dialogue_id, systems=pair) for pair, case in asked]
    names = _blind_names(study, len(questions))
    raters = {
        f"r{rater + 1}": tuple(_asked(plan, study, list(zip(names, questions, strict=True)), rater))
        for rater in range(plan.n_raters)
    }
    return StudyKey(
        study=study,
        kind=plan.kind,
        suite=suite,
        seed=plan.seed,
        dimensions=plan.dimensions,
        systems={name: str(run.path) for name, run in runs.items()},
        questions=dict(sorted(zip(names, questions, strict=True))),
        raters=raters,
    )


def _blind_names(study: str, n: int) -> list[str]:
    """Return ids for questions that say nothing about them; all different."""
    names = dict.fromkeys(f"q{derive_seed(0, study, place) % 10**6:06d}" for place in range(2 * n + 20))
    return list(names)[:n]


def _asked(plan: StudyPlan, study: str, questions: Sequence[tuple[str, Question]], rater: int) -> Iterator[Asked]:
    """Yield what a rater is asked, in the rater's own order."""
    values = AB_VALUES if plan.kind == "ab" else (RATING_VALUES[0], RATING_VALUES[-1])
    swapped = {
        name: (place + rater) % 2 == 1
        for pair in dict.fromkeys(question.systems for _, question in questions)
        for place, name in enumerate(
            # Which question begins is drawn for each pair, so that sides do not follow the order of cases.
            sorted(
                (name for name, question in questions if question.systems == pair),
                key=lambda name: derive_seed(plan.seed, study, "side", name),
            )
        )
    }
    checks = [name for name, question in questions if question.is_check]
    for name, question in sorted(questions, key=lambda each: derive_seed(plan.seed, study, f"r{rater}", each[0])):
        if question.is_check:
            yield Asked(question=name, expected=values[(checks.index(name) + rater) % len(values)])
        else:
            yield Asked(question=name, is_swapped=plan.kind == "ab" and swapped[name])


def _shown(key: StudyKey, cases: Mapping[str, ShownCase], asked: Asked) -> Shown:
    """Return the texts of a question as a rater sees them."""
    question = key.questions[asked.question]
    case = cases[question.case_id]
    if asked.expected is not None:
        told = f"This question checks that everything is read. Please answer {asked.expected} in every line of it."
        answers: tuple[tuple[tuple[str, str], ...], ...] = ((("supporter", told),),) * (2 if key.kind == "ab" else 1)
    else:
        systems = question.systems[::-1] if asked.is_swapped else question.systems
        answers = tuple(case.answers[system] for system in systems)

    def named(talk: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        return tuple((_NAMES.get(speaker, speaker), text) for speaker, text in talk)

    return Shown(asked.question, case.situation, named(case.before), tuple(map(named, answers)))


# ---------------------------------------------------------------- sheets


def _sheet(key: StudyKey, rater: str, shown: Sequence[Shown]) -> str:
    """Return a sheet as CSV that spreadsheets open: UTF-8 with its mark, and no cell that they take for a formula."""
    answers = ["answer_1", "answer_2"] if key.kind == "ab" else ["answer"]
    columns = ["study", "rater", "question", "situation", "conversation", *answers, *key.dimensions, "comment"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    for each in shown:
        told = [each.situation, _lines(each.before), *map(_lines, each.answers)]
        writer.writerow(
            [key.study, rater, each.question, *map(without_formulas, told), *[""] * (len(key.dimensions) + 1)]
        )
    return "\ufeff" + text.getvalue()


def _lines(talk: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{speaker}: {text}" for speaker, text in talk)


def known_dimensions(names: str) -> tuple[str, ...]:
    """Return the dimensions of a list with commas.

    Raises:
        ConfigError: If one is unknown or stands twice.
    """
    found = tuple(name.strip() for name in names.split(","))
    for name in found:
        if name not in DIMENSIONS or found.count(name) > 1:
            raise ConfigError(f"dimension {name!r}", expected=f"different ones of {', '.join(DIMENSIONS)}")
    return found
