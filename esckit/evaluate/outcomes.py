"""How a self-played dialogue ended for one critic; exact, and the same whether or not other critics listened.

Success is the first turn whose mean value is above ½ (strict) or at least ½ (lenient). Since the lenient success never
comes later, one run played to the strict rule tells both.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from esckit.errors import BACKEND_KINDS
from esckit.evaluate.cases import Episode
from esckit.evaluate.metric import Unscored
from esckit.types import Failure

Rule = Literal["strict", "lenient"]
RULES: tuple[Rule, ...] = ("strict", "lenient")
THRESHOLD = Fraction(1, 2)


@dataclass(frozen=True, slots=True)
class CriticOutcome:
    """One critic's view of one dialogue.

    Attributes:
        values: Critic value after turn 1, 2, … up to the strict success or the last turn, exact, in [-1, 1].
        strict: Turn of the first mean > ½, None if none.
        lenient: Turn of the first mean ≥ ½, None if none.
    """

    values: tuple[Fraction, ...]
    strict: int | None
    lenient: int | None

    def turn(self, rule: Rule) -> int | None:
        """Return the turn of success under a rule."""
        return self.strict if rule == "strict" else self.lenient

    def value_at(self, t: int) -> Fraction:
        """Return the value after turn ``t``, the last one carried forward."""
        return self.values[min(t, len(self.values)) - 1]


def outcome_of(values: tuple[Fraction, ...]) -> CriticOutcome:
    """Return the outcome of a sequence of critic values; what comes after a strict success is ignored."""
    strict = next((t for t, value in enumerate(values, start=1) if value > THRESHOLD), None)
    lenient = next((t for t, value in enumerate(values, start=1) if value >= THRESHOLD), None)
    return CriticOutcome(values[:strict], strict, lenient)


def read_outcome(episode: Episode, critic: str) -> CriticOutcome | Unscored:
    """Return a critic's outcome of an episode.

    A dialogue that failed at turn t is unscored, strict and lenient alike, unless the critic saw a strict success
    before t.
    """
    values: list[Fraction] = []
    for expected, turn in enumerate(episode.turns, start=1):
        reading = turn.readings.get(critic)
        if reading is None or turn.t != expected:
            break
        values.append(reading.fraction)
    outcome = outcome_of(tuple(values[: episode.max_turns]))
    if outcome.strict is not None or len(outcome.values) == episode.max_turns:
        return outcome
    if episode.unscored is not None:
        return Unscored(episode.unscored)
    failure = episode.critic_failures.get(critic) or episode.failure
    return Unscored(failure_reason(failure) if failure else "incomplete")


def failure_reason(failure: Failure) -> str:
    """Return the word under which a failure is counted: a critic that gave no readable answer is not a backend."""
    if failure.stage == "critic" and failure.kind not in BACKEND_KINDS:
        return "unscored_critic"
    return failure.kind
