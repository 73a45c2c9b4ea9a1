"""How well numbers agree with labels, with rewards and with each other: AUC, calibration, order, ρ and α.

Functions of plain sequences take ``p``, probabilities of the positive class in [0, 1], and labels ``y``. If the minimum
data are missing they return None, never 0 and never NaN. Estimators (:class:`esckit.metrics.metric.Estimator`) compute
the same from resampled cases. Importing this module does not import numpy.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from esckit.metrics.metric import Array, Indices, Stats, Sums, Weighted, divide, ratio

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Level = Literal["nominal", "ordinal", "interval"]

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


N_BINS = 10


def bin_of(p: float) -> int:
    """Return the index of the bin that holds p: min(⌊10·p⌋, 9)."""
    return min(int(N_BINS * p), N_BINS - 1)


def reliability(p: Sequence[float], y: Sequence[bool]) -> tuple[ReliabilityBin, ...]:
    """Return the bins that hold cases; see :func:`bin_of`."""
    members: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for probability, label in zip(p, y, strict=True):
        members[bin_of(probability)].append((probability, label))
    return tuple(
        ReliabilityBin(
            low=index / N_BINS,
            high=(index + 1) / N_BINS,
            n=len(cases),
            mean_p=math.fsum(probability for probability, _ in cases) / len(cases),
            mean_y=sum(label for _, label in cases) / len(cases),
        )
        for index, cases in sorted(members.items())
    )


def ece(p: Sequence[float], y: Sequence[bool]) -> float | None:
    """Return the expected calibration error Σ (n_b/n)·|mean p − mean y|, in [0, 1]; lower is better. Needs one case."""
    if not p:
        return None
    return math.fsum(bin_.n * abs(bin_.mean_p - bin_.mean_y) for bin_ in reliability(p, y)) / len(p)


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


# ---------------------------------------------------------------- estimators


def _groups(values: Sequence[float]) -> tuple[Any, Any]:
    """Return the order of the values and the first place of every group of equal ones in it."""
    import numpy as np

    order = np.argsort(values, kind="stable")
    in_order = np.asarray(values, dtype=np.float64)[order]
    return order, np.flatnonzero(np.concatenate(([True], in_order[1:] != in_order[:-1])))


@dataclass(frozen=True, slots=True)
class PairwiseOrder:
    """The AUC of (p, y) cases.

    Resampled, it is a quadratic form: the pairs of a positive case of one dialogue and a negative case of another are
    counted once, and every resample weighs them by how often it holds both dialogues.
    """

    def finish(self, stats: Sequence[Stats]) -> float | None:
        """Return the AUC, None without both classes."""
        return auc(*zip(*stats, strict=True)) if stats else None

    def replay(self, stats: Sequence[Stats], owner: Indices, draws: Array) -> Array:
        """Return the AUC of every resample."""
        import numpy as np

        if not stats:
            return np.full(len(draws), np.nan)
        p, y = zip(*stats, strict=True)
        order, starts = _groups(p)
        group = np.repeat(np.arange(len(starts)), np.diff([*starts, len(p)]))
        units, positive = owner[order], np.asarray(y, dtype=bool)[order]
        ups, downs = np.zeros((2, len(starts), draws.shape[1]))
        np.add.at(ups, (group[positive], units[positive]), 1)
        np.add.at(downs, (group[~positive], units[~positive]), 1)
        won = ups.T @ (np.cumsum(downs, axis=0) - downs / 2)
        return divide(((draws @ won) * draws).sum(axis=1), (draws @ ups.sum(axis=0)) * (draws @ downs.sum(axis=0)))


def _centred_ranks(values: Sequence[float], weights: Array) -> tuple[Array, Array]:
    """Return weighted mean ranks minus their mean, (R, N), and the number of different values present, (R,)."""
    import numpy as np

    order, starts = _groups(values)
    in_order = weights[:, order]
    mass = in_order if len(starts) == len(order) else np.add.reduceat(in_order, starts, axis=1)
    ranks = np.cumsum(mass, axis=1) - mass + (mass + 1) / 2
    group = np.zeros(len(values), dtype=np.intp)
    group[order] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(values)]))
    centred = ranks[:, group] - (weights.sum(axis=1, keepdims=True) + 1) / 2
    return centred, (mass > 0).sum(axis=1)


def rank_correlation(min_values: int) -> Weighted:
    """Return Spearman's ρ of (first, second) cases; undefined with fewer different seconds, or a single first."""

    def value(stats: Sequence[Stats]) -> float | None:
        from scipy.stats import spearmanr

        first, second = zip(*stats, strict=True)
        if len(set(second)) < min_values or len(set(first)) < 2:
            return None
        return float(spearmanr(first, second).statistic)

    def weighted(stats: Sequence[Stats], weights: Array) -> Array:
        import numpy as np

        first, second = zip(*stats, strict=True)
        one, _ = _centred_ranks(first, weights)
        other, n_values = _centred_ranks(second, weights)
        spread = np.sqrt((weights * one**2).sum(axis=1) * (weights * other**2).sum(axis=1))
        return np.where(n_values >= min_values, divide((weights * one * other).sum(axis=1), spread), np.nan)

    return Weighted(value, weighted)


@dataclass(frozen=True, slots=True)
class ContextOrder:
    """The share of rightly ordered candidate pairs; statistics are (context, p, reward).

    A context lies in one dialogue, so its pairs are counted once and add up over the dialogues that a resample holds.
    """

    def finish(self, stats: Sequence[Stats]) -> float | None:
        """Return the share, None without a pair."""
        if not stats:
            return None
        contexts, p, rewards = zip(*stats, strict=True)
        return pair_accuracy(p, rewards, contexts).share

    def replay(self, stats: Sequence[Stats], owner: Indices, draws: Array) -> Array:
        """Return the share of every resample."""
        import numpy as np

        # Two systems that are swapped share their contexts; only within a unit are candidates each other's.
        members: dict[int, list[Stats]] = {}
        for entry, unit in zip(stats, owner.tolist(), strict=True):
            members.setdefault(unit, []).append(entry)
        sums = np.zeros((draws.shape[1], 2))
        for unit, entries in members.items():
            contexts, p, rewards = zip(*entries, strict=True)
            found = pair_accuracy(p, rewards, contexts)
            sums[unit] = ((found.share or 0.0) * found.n_pairs, found.n_pairs)
        return ratio(draws @ sums)


# ---------------------------------------------------------------- raters


def alpha(counts: npt.NDArray[np.int64], values: Sequence[float], level: Level) -> float | None:
    """Return Krippendorff's α, ≤ 1; None without pairable labels or expected disagreement.

    Args:
        counts: (units, labels), how many raters gave a unit each label.
        values: The labels' numeric values, ascending.
        level: ``nominal``, ``ordinal`` or ``interval``.
    """
    import krippendorff

    pairable = counts[counts.sum(axis=1) >= 2]
    if not len(pairable) or (pairable.sum(axis=0) > 0).sum() < 2:
        return None
    return float(krippendorff.alpha(value_counts=pairable, value_domain=list(values), level_of_measurement=level))


def rater_alpha(level: Level) -> Weighted:
    """Return α over the labels that raters gave each unit; a value between two levels (a median) is a label as well."""

    def table(stats: Sequence[Stats]) -> tuple[npt.NDArray[np.int64], list[float]]:
        import numpy as np

        domain = sorted({label for labels in stats for label in labels})
        return np.array([[labels.count(label) for label in domain] for labels in stats], dtype=np.int64), domain

    def value(stats: Sequence[Stats]) -> float | None:
        return alpha(*table(stats), level)

    def weighted(stats: Sequence[Stats], weights: Array) -> Array:
        import numpy as np

        counts, domain = table(stats)
        found = [alpha(np.repeat(counts, row.astype(int), axis=0), domain, level) for row in weights]
        return np.array([np.nan if entry is None else entry for entry in found])

    return Weighted(value, weighted)


def _kappa(sums: Array) -> Array:
    chance = ((sums[:, 2:] / sums[:, 1:2]) ** 2).sum(axis=1)
    return divide(sums[:, 0] / sums[:, 1] - chance, 1 - chance)


fleiss_kappa = Sums(_kappa)
"""Fleiss' κ = (P − P_e)/(1 − P_e), ≤ 1, undefined if all labels are one.

Statistics of a unit are the share of its pairs of raters who agree, one, and the share of each label; P is the mean of
the first, P_e = Σ (mean share of a label)²."""


def majority(labels: Sequence[int], level: Level) -> float | None:
    """Return the most frequent label; among several the median of all labels, for ``nominal`` none."""
    ranked = Counter(labels).most_common()
    if not ranked:
        return None
    if len(ranked) == 1 or ranked[0][1] > ranked[1][1]:
        return float(ranked[0][0])
    return None if level == "nominal" else statistics.median(map(float, labels))
