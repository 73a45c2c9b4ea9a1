"""From scored futures to labelled examples, split by dialogue. No tensors; rewards are compared exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from esckit.config.training import GoalLabel, Label, QuantileLabel, ThresholdLabel
from esckit.data.splits import without_dev
from esckit.errors import DataError
from esckit.play.futures import Labelling, label_by, rewards
from esckit.types import Context, Future, Outcome, Turn

RARE = Fraction(5, 100)
"""Below this share of one class, or above one minus it, there is a warning."""


USUAL_LABELS: tuple[Label, ...] = (
    GoalLabel(rule="goal"),
    ThresholdLabel(rule="threshold", delta="0.5"),
    QuantileLabel(rule="quantile", q="0.7"),
)
"""The rules among which a user chooses, since the paper does not report its own."""


def label_name(label: Label) -> str:
    """Return a rule as ``quantile 0.7``."""
    number = label.q if isinstance(label, QuantileLabel) else label.delta if isinstance(label, ThresholdLabel) else None
    return label.rule if number is None else f"{label.rule} {float(number):g}"


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
    label: bool


@dataclass(frozen=True, slots=True)
class Part:
    """One side of the split: futures, and their labels in the same order."""

    futures: tuple[Future, ...]
    labelling: Labelling

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
    return without_dev((each for each in futures if each.outcome is not Outcome.FAILED), seed=seed, share=share)


def label_parts(train: Sequence[Future], dev: Sequence[Future], label: Label) -> Parts:
    """Label both parts by one rule; the training part alone decides the value of a quantile."""
    ours, theirs = label_by(label, train, dev)
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
        n_positive, n = sum(part.labelling.labels), len(part.futures)
        if n_positive in (0, n):
            found, delta = rewards(part.futures), part.labelling.delta
            threshold = "the goal" if delta is None else f"{delta} ({float(delta):.4f})"
            raise DataError(
                f"one class only in the {name} part: {n_positive} of {n} futures are positive, δ {threshold}, "
                f"rewards from {float(min(found)):.4f} to {float(max(found)):.4f}",
                expected="both classes",
                hint="Choose another label rule (--dry-run prints the shares of all three), simulate more dialogues, "
                "or change dev.share or seed",
            )
        share = Fraction(n_positive, n)
        if not RARE <= share <= 1 - RARE:
            warnings.append(f"{float(share):.1%} of the {name} part is positive: outside 5–95 % little is learnt")
    return warnings


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
                label=label,
            )
        )
    return examples


def preference_pairs(values: Sequence[Fraction], margin: Fraction) -> tuple[tuple[int, int], ...]:
    """Return the index pairs (better, worse) of candidates whose rewards differ by more than ``margin``."""
    return tuple(
        (better, worse) for better, high in enumerate(values) for worse, low in enumerate(values) if high - low > margin
    )
