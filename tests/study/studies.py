"""A small study with raters who answer by a rule, and what tests do to its sheets."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from esckit.report.source import Run, open_run
from esckit.study.key import ANSWERS, SHEETS, Asked, Question, StudyKey, read_key
from esckit.study.make import StudyPlan, make_study
from tests.evaluate.evalrecipes import scripted
from tests.evaluate.evalruns import result

Rule = Callable[[str, Question, str], str]
"""Rater, question and dimension to what the rater means: of two systems ``win`` (the first), ``tie`` or ``lose``."""


def evaluations(folder: Path, *suites: str) -> dict[str, Run]:
    """Play the same cases with two supporters."""
    for name, speaker in (("ours", "supporter"), ("base", "other_supporter")):
        result(folder, *(suites or ("response",)), name=name, models={"supporter": scripted(speaker)})
    return {name: open_run(folder / name) for name in ("ours", "base")}


def study(runs: Mapping[str, Run], out: Path, **plan: Any) -> StudyKey:
    given = {"kind": "ab", "n_items": 6, "n_raters": 2, "dimensions": ("comfort", "overall"), **plan}
    make_study(runs, StudyPlan(**given), out)
    return read_key(out)


def rows_of(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines(keepends=True)))


def written(path: Path, rows: Sequence[Sequence[str]], *, delimiter: str = ",", encoding: str = "utf-8-sig") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def filled(folder: Path, key: StudyKey, rule: Rule) -> dict[str, list[list[str]]]:
    """Fill in all sheets by a rule, checks as told, and return them by rater; the first row names the columns."""
    found = {}
    for rater, asked in key.raters.items():
        sheet = rows_of(folder / SHEETS / f"{rater}.csv")
        seen = {each.question: each for each in asked}
        for row in sheet[1:]:
            for name in key.dimensions:
                question = key.questions[row[2]]
                meant = "" if question.is_check else rule(rater, question, name)
                row[sheet[0].index(name)] = _as_seen(seen[row[2]], meant)
        found[rater] = sheet
    return found


def _as_seen(asked: Asked, meant: str) -> str:
    if asked.expected is not None:
        return asked.expected
    if meant not in ("win", "lose"):
        return meant
    return "1" if (meant == "win") != asked.is_swapped else "2"


def answered(folder: Path, key: StudyKey, rule: Rule) -> None:
    """Put filled-in sheets where answers are read from."""
    for rater, rows in filled(folder, key, rule).items():
        written(folder / ANSWERS / f"{rater}.csv", rows)
