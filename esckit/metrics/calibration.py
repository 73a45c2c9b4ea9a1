"""How good a reward model's probabilities are: discrimination, calibration, and order within one context.

Pure functions on plain sequences: ``p`` are probabilities of the positive class in [0, 1], ``y`` are labels. A function
whose minimum data are not met returns None, never 0 and never NaN.

The reliability diagram of a reward model as an SVG.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import StringIO
from typing import Any

_CLIP = 1e-7


def accuracy(p: Sequence[float], y: Sequence[bool]) -> float | None:
    """Return the share with [p ≥ 0.5] = y, in [0, 1]; higher is better. Needs one case."""
    if not p:
        return None
    return sum((probability >= 0.5) == label for probability, label in zip(p, y, strict=True)) / len(p)


def auc(p: Sequence[float], y: Sequence[bool]) -> float | None:
    """Return the share of (positive, negative) pairs with p₊ > p₋, ties one half, in [0, 1]. Needs both classes."""
    n_positive = sum(y)
    n_negative = len(y) - n_positive
    if not n_positive or not n_negative:
        return None
    from scipy.stats import rankdata

    rank_sum = math.fsum(rank for rank, label in zip(rankdata(p).tolist(), y, strict=True) if label)
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def brier(p: Sequence[float], y: Sequence[bool]) -> float | None:
    """Return the mean of (p − y)², in [0, 1]; lower is better. Needs one case."""
    if not p:
        return None
    return math.fsum((probability - label) ** 2 for probability, label in zip(p, y, strict=True)) / len(p)


def log_loss(p: Sequence[float], y: Sequence[bool]) -> float | None:
    """Return −mean(y ln p + (1−y) ln(1−p)) with p clipped to [1e-7, 1−1e-7]; lower is better. Needs one case."""
    if not p:
        return None
    clipped = [min(max(probability, _CLIP), 1 - _CLIP) for probability in p]
    losses = (-math.log(value if label else 1 - value) for value, label in zip(clipped, y, strict=True))
    return math.fsum(losses) / len(p)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One of ten equal-width bins of p: number of cases, mean p and share of positives in it."""

    low: float
    high: float
    n: int
    mean_p: float
    mean_y: float


def reliability(p: Sequence[float], y: Sequence[bool], *, n_bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """Return the bins that hold cases; a case is in bin min(⌊n_bins · p⌋, n_bins − 1)."""
    members: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for probability, label in zip(p, y, strict=True):
        members[min(int(n_bins * probability), n_bins - 1)].append((probability, label))
    return tuple(
        ReliabilityBin(
            low=index / n_bins,
            high=(index + 1) / n_bins,
            n=len(cases),
            mean_p=math.fsum(probability for probability, _ in cases) / len(cases),
            mean_y=sum(label for _, label in cases) / len(cases),
        )
        for index, cases in sorted(members.items())
    )


def ece(p: Sequence[float], y: Sequence[bool], *, n_bins: int = 10) -> float | None:
    """Return the expected calibration error Σ (n_b/n)·|mean p − mean y|, in [0, 1]; lower is better. Needs one case."""
    if not p:
        return None
    bins = reliability(p, y, n_bins=n_bins)
    return math.fsum(bin_.n * abs(bin_.mean_p - bin_.mean_y) for bin_ in bins) / len(p)


@dataclass(frozen=True, slots=True)
class PairOrder:
    """Candidate pairs of one context with different rewards: how many, and the share that p orders rightly."""

    n_pairs: int
    share: float | None


def pair_accuracy(p: Sequence[float], rewards: Sequence[Fraction], contexts: Sequence[Hashable]) -> PairOrder:
    """Return how p orders the candidates of one context; ties in p count one half.

    GRPO uses differences within a context only, so this is the first number to read. Needs one pair.
    """
    by_context: dict[Hashable, list[tuple[Fraction, float]]] = defaultdict(list)
    for probability, reward, context in zip(p, rewards, contexts, strict=True):
        by_context[context].append((reward, probability))
    right = n_pairs = 0.0
    for candidates in by_context.values():
        for index, (reward, probability) in enumerate(candidates):
            for other_reward, other in candidates[index + 1 :]:
                if reward == other_reward:
                    continue
                n_pairs += 1
                sign = (probability - other) * (1 if reward > other_reward else -1)
                right += 1 if sign > 0 else 0.5 if sign == 0 else 0
    return PairOrder(int(n_pairs), right / n_pairs if n_pairs else None)


def reliability_svg(calibration: Mapping[str, Any], *, title: str) -> str:
    """Return the diagram of ``calibration.json``: share of positives over mean p by bin, with Wilson intervals.

    Equal input gives equal bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    bins = calibration["bins"]
    p = [each["mean_p"] for each in bins]
    y = [each["mean_y"] for each in bins]
    below = [max(0.0, each["mean_y"] - each["y_interval"][0]) for each in bins]
    above = [max(0.0, each["y_interval"][1] - each["mean_y"]) for each in bins]
    with matplotlib.rc_context({"svg.hashsalt": "esckit", "svg.fonttype": "none"}):
        figure = Figure(figsize=(5.0, 5.0), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], linestyle="--", color="0.6", label="perfectly calibrated")
        axes.errorbar(p, y, yerr=[below, above], fmt="o", capsize=3, label="dev, 95 % interval")
        for each in bins:
            axes.annotate(f"n={each['n']}", (each["mean_p"], each["mean_y"]), (6, -10), textcoords="offset points")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean p of the bin", ylabel="share of good futures", title=title)
        axes.legend(loc="upper left")
        target = StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue()
