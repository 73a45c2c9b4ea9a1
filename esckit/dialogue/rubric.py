"""The AFlow rubric (arXiv 2602.08826) in this project's words: what a supporter turn is rated on, from 1 to 5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from math import fsum, isfinite

from esckit.errors import NOT_FINITE, ConfigError, UnscoredError
from esckit.records import digest

MAX_RATING = 5
RATINGS = ("1", "2", "3", "4", "5")


@dataclass(frozen=True, slots=True)
class Criterion:
    """One criterion.

    Attributes:
        key: Name in recipes and records.
        question: What the critic asks itself.
        anchors: What a rating of 1, 2, 3, 4 and 5 means, in this order.
    """

    key: str
    question: str
    anchors: tuple[str, str, str, str, str]

    def as_text(self, number: int) -> str:
        """Return the criterion for a prompt, best rating first."""
        anchors = [f"   {rating}: {self.anchors[rating - 1]}" for rating in range(MAX_RATING, 0, -1)]
        return "\n".join([f"{number}. {self.key}: {self.question}", *anchors])


@dataclass(frozen=True)
class Rubric:
    """A named list of criteria."""

    name: str
    criteria: tuple[Criterion, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the criteria in order."""
        return tuple(criterion.key for criterion in self.criteria)

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of SHA-256 over the rubric's content."""
        return digest(asdict(self))


AFLOW = Rubric(
    "aflow",
    (
        Criterion(
            "empathy",
            "Is the seeker's feeling and need understood, and shown without judging?",
            (
                "cold, blaming or belittling",
                "misses or hurries past the feeling, or paints it over with cheer",
                "kind, but would fit anyone",
                "names the main feeling rightly and answers it",
                "reaches what lies behind the words, warmly and exactly",
            ),
        ),
        Criterion(
            "information",
            "Is what it says true, relevant and usable here and now? A turn that rightly offers no advice is rated on "
            "the relevance of what it does say.",
            (
                "wrong, unsafe or unrelated",
                "vague or beside the point",
                "sound but general",
                "relevant and practical, little tailoring",
                "concrete, made for this case, opens a way",
            ),
        ),
        Criterion(
            "naturalness",
            "Would one believe that a caring person said it?",
            (
                "broken, list-like or with machine artefacts",
                "stock phrases, repetition",
                "polite but formal or formulaic",
                "flows, slightly stiff",
                "lively, spoken, nothing mechanical",
            ),
        ),
        Criterion(
            "strategy",
            "Is this the right kind of support now (explore, then insight, then action), and well done?",
            (
                "makes it worse",
                "wrong for the seeker's readiness",
                "recognisable but clumsy",
                "fitting and correct",
                "well timed and skilful, moves things on",
            ),
        ),
    ),
)
RUBRICS = {AFLOW.name: AFLOW}


def load_rubric(name: str) -> Rubric:
    """Return a rubric by name.

    Raises:
        ConfigError: If there is none of this name.
    """
    if name not in RUBRICS:
        raise ConfigError(f"unknown rubric {name!r}", expected=f"one of {', '.join(RUBRICS)}")
    return RUBRICS[name]


def weighted_reward(ratings: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Return R = Σ w_c r_c / (5 Σ w_c), in [0.2, 1].

    Args:
        ratings: Rating per criterion in [1, 5].
        weights: Weight per criterion, each at least 0, sum above 0.

    Raises:
        UnscoredError: ``not_finite`` if a rating is not finite.
    """
    total = fsum(weights[key] * rating for key, rating in ratings.items())
    if not isfinite(total):
        raise UnscoredError("ratings that are not finite", kind=NOT_FINITE, expected="ratings from 1 to 5")
    # Rounding may put a perfect turn one ulp above 1, which no return may pass.
    return min(1.0, total / (MAX_RATING * fsum(weights.values())))


def check_weights(weights: Mapping[str, float], rubric: Rubric) -> None:
    """Refuse weights that do not fit a rubric.

    Raises:
        ConfigError: If a criterion is missing or unknown, a weight is negative, or all are 0.
    """
    if set(weights) != set(rubric.keys):
        raise ConfigError(
            f"critic weights for {', '.join(sorted(weights)) or 'nothing'}", expected=f"for {', '.join(rubric.keys)}"
        )
    if min(weights.values()) < 0 or sum(weights.values()) <= 0:
        raise ConfigError("critic weights below 0 or all 0", expected="weights of at least 0 with a sum above 0")
