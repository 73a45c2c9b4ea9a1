"""What a blind study knows and its raters must not: the key, with everything that is needed to read their answers.

A question shows one case: two answers side by side (``ab``) or one (``rating``). Its id says nothing about systems,
cases or order. Some questions are attention checks, whose text says what to answer. Every rater answers all questions,
in an order of their own, and with sides of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from esckit.documents import read_json_object
from esckit.errors import DataError
from esckit.records import parse_line
from esckit.types import Record

Kind = Literal["ab", "rating"]

KEY = "key.json"

SHEETS, FORMS, ANSWERS = "sheets", "forms", "answers"
"""Folders of a study: what raters may fill in, and where their answers are put."""

AB_VALUES = ("1", "2", "tie")

RATING_VALUES = ("1", "2", "3", "4", "5")

RATED = {
    "fluency": "It is natural and well formed.",
    "identification": "It finds the person's emotions, needs and problem.",
    "comfort": "It gives warmth and support.",
    "suggestion": "Its suggestions are useful and feasible, and not premature.",
    "empathy": "It understands the person's feelings and shows it.",
    "overall": "It is good, all in all.",
}
"""What one answer is rated on, from 1 (not at all) to 5 (very much); the dimensions are those of the pairwise judge."""


class Question(Record):
    """What one question is about.

    Attributes:
        case_id: The case of the evaluations; of an attention check the case whose conversation it borrows.
        dialogue_id: The dialogue that the case belongs to, the unit of resampling.
        systems: Names of the two systems, or of the one; empty for an attention check.
    """

    case_id: str
    dialogue_id: str
    systems: tuple[str, ...]

    @property
    def is_check(self) -> bool:
        """Whether it only asks whether the rater reads."""
        return not self.systems


class Asked(Record):
    """One question as one rater sees it.

    Attributes:
        question: Its id.
        is_swapped: Whether the second system stands first.
        expected: What an attention check asks for; None for all others.
    """

    question: str
    is_swapped: bool = False
    expected: str | None = None


class StudyKey(Record):
    """The key of a study.

    Attributes:
        study: Digest of all that the study is made from; every sheet names it.
        suite: Suite that the cases are of.
        systems: Run folder by name.
        questions: By id.
        raters: What each rater is asked, in their order.
    """

    SCHEMA: ClassVar[str] = "esckit.study/1"

    study: str
    kind: Kind
    suite: Literal["response", "pairwise", "dialogue"]
    seed: int
    dimensions: tuple[str, ...]
    systems: dict[str, str]
    questions: dict[str, Question]
    raters: dict[str, tuple[Asked, ...]]

    @property
    def values(self) -> tuple[str, ...]:
        """What can be answered."""
        return AB_VALUES if self.kind == "ab" else RATING_VALUES


def read_key(folder: Path) -> StudyKey:
    """Return the key of a study.

    Raises:
        DataError: If the folder holds none, or it was changed into something else.
    """
    path = folder / KEY
    if not path.is_file():
        raise DataError(f"no {KEY}", path=str(folder), expected="the folder that 'esckit study make' wrote")
    read_json_object(path)
    return parse_line(StudyKey, path.read_text(encoding="utf-8"), path=str(path))
