"""Metrics of a reward model on scored futures of held-out dialogues; definitions in :mod:`esckit.metrics.calibration`.

p = p(y = 1), y by the model's own label rule. A reward model must beat the length of the reply as a predictor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esckit.evaluate.cases import RewardCase
from esckit.metrics import calibration
from esckit.metrics.measure import Measurement
from esckit.metrics.metric import (
    RATIO,
    Array,
    Estimator,
    Facts,
    Indices,
    IntervalMethod,
    Metric,
    Stats,
    Sums,
    Unscored,
    Weighted,
    divide,
    ratio,
)
from esckit.metrics.rows import MetricRow

RewardMetric = Metric[RewardCase]

N_BINS = 10


def _scored(read: Callable[[RewardCase, float], Stats]) -> Callable[[RewardCase], Stats | Unscored]:
    """Return a collector that leaves unscored cases out."""

    def collect(case: RewardCase) -> Stats | Unscored:
        if case.unscored is not None or case.p is None:
            return Unscored(case.unscored or "missing")
        return read(case, case.p)

    return collect


# ---------------------------------------------------------------- weighted values


def _groups(values: Sequence[float]) -> tuple[Any, Any]:
    """Return the order of the values and the first place of every group of equal ones in it."""
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
        return calibration.auc(*zip(*stats, strict=True)) if stats else None

    def replay(self, stats: Sequence[Stats], owner: Indices, draws: Array) -> Array:
        """Return the AUC of every resample."""
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
        return calibration.pair_accuracy(p, rewards, contexts).share

    def replay(self, stats: Sequence[Stats], owner: Indices, draws: Array) -> Array:
        """Return the share of every resample."""
        # Two systems that are swapped share their contexts; only within a unit are candidates each other's.
        members: dict[int, list[Stats]] = {}
        for entry, unit in zip(stats, owner.tolist(), strict=True):
            members.setdefault(unit, []).append(entry)
        sums = np.zeros((draws.shape[1], 2))
        for unit, entries in members.items():
            contexts, p, rewards = zip(*entries, strict=True)
            found = calibration.pair_accuracy(p, rewards, contexts)
            sums[unit] = ((found.share or 0.0) * found.n_pairs, found.n_pairs)
        return ratio(draws @ sums)


def _ece_of(sums: Array) -> Array:
    """Return the calibration error of (R, 3·bins) sums: per bin n, Σp, Σy."""
    n, p, y = np.moveaxis(sums.reshape(len(sums), N_BINS, 3), 2, 0)
    return divide(np.abs(p - y).sum(axis=1), n.sum(axis=1))


def _bin_of(p: float) -> int:
    return min(int(N_BINS * p), N_BINS - 1)


def _bin_sums(case: RewardCase, p: float) -> Stats:
    sums = [0.0] * (3 * N_BINS)
    sums[3 * _bin_of(p) : 3 * _bin_of(p) + 3] = [1.0, p, float(case.y)]
    return tuple(sums)


# ---------------------------------------------------------------- metrics


def _single(metric: Callable[[Sequence[float], Sequence[bool]], float | None]) -> Callable[[RewardCase, float], Stats]:
    """Return the statistics of a metric that is a mean over cases."""

    def read(case: RewardCase, p: float) -> Stats:
        value = metric((p,), (case.y,))
        return (value if value is not None else 0.0, 1.0)

    return read


AUC = PairwiseOrder()


def _auc_of(name: str, read: Callable[[RewardCase], float | None]) -> RewardMetric:
    """Return the AUC of another predictor than the model, on the cases that the model scored."""

    def collect(case: RewardCase) -> Stats | Unscored | None:
        if case.unscored is not None or case.p is None:
            return Unscored(case.unscored or "missing")
        value = read(case)
        return None if value is None else (value, case.y)

    facts = Facts(f"reward.{name}", higher_is_better=None, minimum="both classes", test="none")
    return Metric(facts, collect, AUC)


LENGTH_AUC = _auc_of("length_auc", lambda case: float(case.n_words))

UNTRAINED_AUC = _auc_of("untrained_auc", lambda case: case.p_untrained)


def _metric(name: str, read: Callable[[RewardCase, float], Stats], estimator: Estimator, **facts: Any) -> RewardMetric:
    return Metric(Facts(f"reward.{name}", **facts), _scored(read), estimator)


def reward_metrics() -> tuple[RewardMetric, ...]:
    """Return the suite's metrics."""
    return (
        _metric("accuracy", _single(calibration.accuracy), RATIO, counts=("correct", "cases")),
        _metric("auc", lambda case, p: (p, case.y), AUC, minimum="both classes"),
        _metric(
            "pair_accuracy",
            lambda case, p: (case.context_id, p, case.reward),
            ContextOrder(),
            minimum="1 pair of candidates with different rewards",
        ),
        _metric("brier", _single(calibration.brier), RATIO, higher_is_better=False),
        _metric(
            "log_loss", _single(calibration.log_loss), RATIO, unit="nats", range=(0.0, None), higher_is_better=False
        ),
        _metric("ece", _bin_sums, Sums(_ece_of), higher_is_better=False),
        _metric(
            "spearman",
            lambda case, p: (p, float(case.reward)),
            rank_correlation(3),
            unit="none",
            range=(-1.0, 1.0),
            minimum="3 different rewards",
        ),
    )


def _majority() -> RewardMetric:
    facts = Facts("reward.majority_accuracy", higher_is_better=None, test="none", counts=("positive", "cases"))
    share = Sums(lambda sums: divide(np.maximum(sums[:, 0], sums[:, 1] - sums[:, 0]), sums[:, 1]))
    return Metric(facts, _scored(lambda case, _: (float(case.y), 1.0)), share)


def _in_bin(name: str, read: Callable[[RewardCase, float], float], interval: IntervalMethod) -> RewardMetric:
    facts = Facts(
        f"reward.{name}", higher_is_better=None, interval=interval, test="none", counts=("sum", "cases"),
        no_interval="the mean of what was sorted into the bin",
    )  # fmt: skip
    return Metric(facts, _scored(lambda case, p: (read(case, p), 1.0)), RATIO)


def reward_rows(cases: Sequence[RewardCase], measurement: Measurement) -> list[MetricRow]:
    """Return all rows of the suite: the metrics, what they must beat, and the reliability table by bin."""
    beside = [_majority(), LENGTH_AUC]
    if any(case.p_untrained is not None for case in cases):
        beside.append(UNTRAINED_AUC)
    rows = [measurement.row(metric, cases) for metric in (*reward_metrics(), *beside)]
    mean_p = _in_bin("bin_p", lambda _, p: p, "none")
    mean_y = _in_bin("bin_y", lambda case, _: float(case.y), "wilson")
    for index in range(N_BINS):
        chosen = [case for case in cases if case.p is not None and _bin_of(case.p) == index]
        if chosen:
            rows += [measurement.row(metric, chosen, group={"bin": index}) for metric in (mean_p, mean_y)]
    return rows
