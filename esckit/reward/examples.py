"""From scored futures to labelled examples, split by dialogue. No tensors; rewards are compared exactly."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from esckit.data.splits import is_dev
from esckit.errors import DataError
from esckit.play.rollout import Labelling, label_goal, label_quantile, label_threshold, rewards
from esckit.types import Context, Future, Outcome, Turn

log = logging.getLogger(__name__)


RARE = Fraction(5, 100)
"""Below this share of one class, or above one minus it, there is a warning."""


@dataclass(frozen=True, slots=True)
class LabelRule:
    """Which futures are good: reward > ``value`` (``threshold``), goal reached, or reward > the ``value``-quantile."""

    rule: Literal["threshold", "goal", "quantile"]
    value: Fraction | None = None

    def __post_init__(self) -> None:
        """Refuse a rule without the number that it needs."""
        if (self.value is None) != (self.rule == "goal"):
            raise ValueError(f"label rule {self.rule} with value {self.value}")

    def __str__(self) -> str:
        """Return ``quantile 0.7``."""
        return self.rule if self.value is None else f"{self.rule} {float(self.value):g}"


USUAL_RULES = (
    LabelRule("goal"),
    LabelRule("threshold", Fraction(1, 2)),
    LabelRule("quantile", Fraction(7, 10)),
)
"""The rules among which a user chooses, since the paper does not report its own."""


@dataclass(frozen=True, slots=True)
class RewardExample:
    """One labelled candidate.

    Attributes:
        id: Unique among all inputs: run seed and future.
        group: The context it is a candidate of, unique among all inputs.
        turns: The context.
        response: The candidate's text, without reasoning.
        reward: Exact reward of its future.
        label: Whether the future is good.
    """

    id: str
    group: str
    dialogue_id: str
    turns: tuple[Turn, ...]
    response: str
    reward: Fraction
    k: int
    outcome: Outcome
    label: bool


@dataclass(frozen=True, slots=True)
class Part:
    """One side of the split: futures, and their labels in the same order."""

    futures: tuple[Future, ...]
    labelling: Labelling

    @property
    def positive_share(self) -> float | None:
        """Share of good futures, in [0, 1]; None without any."""
        return self.labelling.positive_share

    @property
    def n_dialogues(self) -> int:
        """Number of dialogues that the futures are of."""
        return len({future.dialogue_id for future in self.futures})


@dataclass(frozen=True, slots=True)
class Parts:
    """Both sides."""

    train: Part
    dev: Part


def split_futures(futures: Iterable[Future], *, seed: int, share: float) -> tuple[list[Future], list[Future]]:
    """Return the scored futures of the training dialogues and of the dev dialogues; failed ones are left out."""
    train: list[Future] = []
    dev: list[Future] = []
    for future in futures:
        if future.outcome is not Outcome.FAILED:
            (dev if is_dev(seed, future.dialogue_id, share) else train).append(future)
    return train, dev


def label_parts(train: Sequence[Future], dev: Sequence[Future], rule: LabelRule) -> Parts:
    """Label both parts by one rule; what a quantile comes to is a matter of the training part alone."""
    if rule.value is None:
        return Parts(Part(tuple(train), label_goal(train)), Part(tuple(dev), label_goal(dev)))
    ours = (label_quantile if rule.rule == "quantile" else label_threshold)(train, rule.value)
    theirs = Labelling((), ours.delta) if ours.delta is None else label_threshold(dev, ours.delta)
    return Parts(Part(tuple(train), ours), Part(tuple(dev), theirs))


def check_parts(parts: Parts) -> list[str]:
    """Return warnings about rare classes.

    Raises:
        DataError: If a part is empty, or has one class only.
    """
    warnings = []
    for name, part in (("training", parts.train), ("dev", parts.dev)):
        if not part.futures:
            raise DataError(
                f"no scored future in the {name} part",
                expected="at least one good and one other future on each side",
                hint="Simulate more dialogues, or change dev.share or seed",
            )
        share = part.positive_share
        assert share is not None
        if share in (0.0, 1.0):
            raise DataError(_one_class(name, part), expected="both classes", hint=_CHANGE)
        if not RARE <= Fraction(sum(part.labelling.labels), len(part.futures)) <= 1 - RARE:
            warnings.append(f"{share:.1%} of the {name} part is positive: outside 5–95 % little is learnt")
    return warnings


_CHANGE = (
    "Choose another label rule (--dry-run prints the shares of all three), simulate more dialogues, "
    "or change dev.share or seed"
)


def _one_class(name: str, part: Part) -> str:
    found = rewards(part.futures)
    delta = part.labelling.delta
    return (
        f"one class only in the {name} part: {sum(part.labelling.labels)} of {len(part.futures)} futures are positive, "
        f"δ {'the goal' if delta is None else f'{delta} ({float(delta):.4f})'}, "
        f"rewards from {float(min(found)):.4f} to {float(max(found)):.4f}"
    )


def build_examples(part: Part, contexts: Mapping[str, Context]) -> list[RewardExample]:
    """Return the examples of a part, in its order.

    Raises:
        DataError: If a future's context is missing.
    """
    examples = []
    for future, label in zip(part.futures, part.labelling.labels, strict=True):
        context = contexts.get(future.context_id)
        reward = future.fraction
        if context is None or reward is None or not future.exchanges:
            raise DataError(f"future {future.id} without its context, reward or candidate", expected="a whole run")
        examples.append(
            RewardExample(
                id=f"{future.run_seed}/{future.id}",
                group=f"{future.run_seed}/{future.context_id}",
                dialogue_id=future.dialogue_id,
                turns=context.turns,
                response=future.exchanges[0].supporter.response,
                reward=reward,
                k=future.k,
                outcome=future.outcome,
                label=label,
            )
        )
    return examples


def preference_pairs(values: Sequence[Fraction], margin: Fraction) -> tuple[tuple[int, int], ...]:
    """Return the index pairs (better, worse) of candidates whose rewards differ by more than ``margin``."""
    return tuple(
        (better, worse) for better, high in enumerate(values) for worse, low in enumerate(values) if high - low > margin
    )
