"""Label rules: which simulated futures count as good (RLFF-ESC, arXiv 2508.12935). All comparisons are exact.

The paper turns rewards into labels, y = 1 iff reward > δ, and does not report δ; so a rule is always the user's choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from esckit.types import Future, Outcome


@dataclass(frozen=True, slots=True)
class Labelling:
    """Labels of scored futures.

    Attributes:
        labels: True for a good future, in the order given.
        delta: The threshold used; None for the rule ``goal``.
    """

    labels: tuple[bool, ...]
    delta: Fraction | None

    @property
    def positive_share(self) -> float | None:
        """Share of good futures, in [0, 1]; None without any."""
        return sum(self.labels) / len(self.labels) if self.labels else None


def rewards(futures: Iterable[Future]) -> list[Fraction]:
    """Return the exact rewards of scored futures.

    Raises:
        ValueError: If one of them has no reward.
    """
    found = [future.fraction for future in futures]
    if any(reward is None for reward in found):
        raise ValueError("a failed future has no reward")
    return [reward for reward in found if reward is not None]


def label_goal(futures: Sequence[Future]) -> Labelling:
    """Label a future as good if it reached the goal."""
    return Labelling(tuple(future.outcome is Outcome.RESOLVED for future in futures), None)


def label_threshold(futures: Sequence[Future], delta: Fraction) -> Labelling:
    """Label a future as good if its reward is strictly above δ."""
    return Labelling(tuple(reward > delta for reward in rewards(futures)), delta)


def quantile_delta(values: Sequence[Fraction], q: Fraction) -> Fraction:
    """Return δ = sorted rewards[⌈q·N⌉ − 1].

    Args:
        values: At least one reward.
        q: In (0, 1].
    """
    return sorted(values)[math.ceil(q * len(values)) - 1]


def label_quantile(futures: Sequence[Future], q: Fraction) -> Labelling:
    """Label a future as good if its reward is strictly above the q-quantile; ties make fewer than 1 − q good."""
    if not futures:
        return Labelling((), None)
    return label_threshold(futures, quantile_delta(rewards(futures), q))
