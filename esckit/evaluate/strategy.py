"""Metrics of next-strategy prediction; all but ``accuracy_any`` and ``correct_of_all`` are functions of one matrix.

C = confusion matrix, rows predicted i, columns gold j, over S strategies of one taxonomy; N = ΣC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from esckit.errors import DataError
from esckit.evaluate.bias import bias
from esckit.evaluate.cases import StrategyCase
from esckit.evaluate.measure import Measurement
from esckit.evaluate.metric import RATIO, Array, Facts, Metric, Stats, Sums, Unscored, divide
from esckit.evaluate.rows import MetricRow
from esckit.evaluate.stages import STAGES, stage_of

StrategyMetric = Metric[StrategyCase]

NOT_CONNECTED = "errors do not connect all strategies"


# ---------------------------------------------------------------- values of confusion matrices, (R, S, S) to (R,)


def accuracy(confusion: Array) -> Array:
    """Return Σ C_ii / N."""
    return divide(np.trace(confusion, axis1=1, axis2=2), confusion.sum(axis=(1, 2)))


def f1_by_class(confusion: Array) -> Array:
    """Return F1_i = 2C_ii/(pred_i + gold_i), (R, S); NaN for labels in neither gold nor predictions."""
    right = np.diagonal(confusion, axis1=1, axis2=2)
    return divide(2 * right, confusion.sum(axis=2) + confusion.sum(axis=1))


def _two_in_gold(confusion: Array) -> Array:
    """Return 1 where gold has at least two labels, else NaN."""
    return np.where((confusion.sum(axis=1) > 0).sum(axis=1) >= 2, 1.0, np.nan)


def macro_f1(confusion: Array) -> Array:
    """Return the mean F1 over labels present in gold or predictions; needs two labels in gold."""
    scores = f1_by_class(confusion)
    present = ~np.isnan(scores)
    return divide(np.nansum(scores, axis=1), present.sum(axis=1)) * _two_in_gold(confusion)


def weighted_f1(confusion: Array) -> Array:
    """Return Σ gold_i·F1_i / N; needs two labels in gold."""
    gold = confusion.sum(axis=1)
    total = np.nansum(gold * f1_by_class(confusion), axis=1)
    return divide(total, gold.sum(axis=1)) * _two_in_gold(confusion)


def entropy_of(counts: Array) -> Array:
    """Return −Σ p ln p in nats of every row of counts (R, S); NaN for an empty row."""
    shares = divide(counts, counts.sum(axis=1, keepdims=True) * np.ones_like(counts))
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    # Adding 0 turns the −0.0 of a single strategy into 0.0.
    return np.asarray(-(shares * logs).sum(axis=1) + 0.0)


def kl_gold(confusion: Array) -> Array:
    """Return Σ p_i ln(p_i/g_i) of predicted against gold shares; NaN if a predicted label has no gold."""
    predicted, gold = confusion.sum(axis=2), confusion.sum(axis=1)
    n = np.maximum(confusion.sum(axis=(1, 2)), 1.0)[:, None]
    used = predicted > 0
    quotient = np.divide(predicted, gold, out=np.ones_like(predicted), where=used & (gold > 0))
    value = (predicted / n * np.log(quotient)).sum(axis=1)
    return np.where((used & (gold == 0)).any(axis=1) | (confusion.sum(axis=(1, 2)) == 0), np.nan, np.abs(value))


def majority_share(confusion: Array) -> Array:
    """Return the accuracy of always answering the most frequent gold label."""
    gold = confusion.sum(axis=1)
    return divide(gold.max(axis=1), gold.sum(axis=1))


def frequency_share(confusion: Array) -> Array:
    """Return the expected accuracy of guessing by gold frequencies, Σ g_i²."""
    gold = confusion.sum(axis=1)
    return divide((gold**2).sum(axis=1), gold.sum(axis=1) ** 2)


# ---------------------------------------------------------------- metrics


@dataclass(frozen=True, slots=True)
class StrategyScale:
    """What the metrics of one table share.

    Attributes:
        strategies: Names in taxonomy order.
        prefix: ``strategy`` for gold contexts, ``strategy_expanded`` for steps of search trees.
        merged: True if the unit is the merged turn, so that a turn may have several labels.
        pseudo_count: Added to every off-diagonal cell for B; flags it ``smoothed``.
    """

    strategies: tuple[str, ...]
    prefix: str = "strategy"
    merged: bool = True
    pseudo_count: float = 0.0

    def answer(self, case: StrategyCase) -> str | Unscored:
        """Return the prediction; a label outside the taxonomy is unscored, not Others.

        Raises:
            DataError: If the gold label is not in the taxonomy.
        """
        if case.gold not in self.strategies:
            raise DataError(f"gold label {case.gold!r} of case {case.id!r}", expected="a strategy of the taxonomy")
        if case.predicted is None:
            return Unscored(case.unscored or "missing")
        return case.predicted if case.predicted in self.strategies else Unscored("unparsed")

    def cell(self, case: StrategyCase) -> Stats | Unscored:
        """Return the case's one-hot confusion matrix, flat."""
        predicted = self.answer(case)
        if isinstance(predicted, Unscored):
            return predicted
        cells = [0.0] * len(self.strategies) ** 2
        cells[self.strategies.index(predicted) * len(self.strategies) + self.strategies.index(case.gold)] = 1.0
        return tuple(cells)

    def of_matrix(self, facts: Facts, value: Callable[[Array], Array], *, proportion: bool = False) -> StrategyMetric:
        """Return a metric that is a function of the confusion matrix; ``proportion``: see :class:`Sums`."""
        n = len(self.strategies)
        basis = f"{self.prefix}.{facts.variant_of}" if facts.variant_of else None
        named = replace(facts, name=f"{self.prefix}.{facts.name}", variant_of=basis)
        return Metric(named, self.cell, Sums(lambda sums: value(sums.reshape(-1, n, n)), proportion))

    def accuracy(self) -> StrategyMetric:
        """Return Σ C_ii / N."""
        return self.of_matrix(Facts("accuracy"), accuracy, proportion=True)

    def accuracy_any(self) -> StrategyMetric:
        """Return the share of turns whose prediction is among all labels of the merged turn."""

        def collect(case: StrategyCase) -> Stats | Unscored:
            predicted = self.answer(case)
            if isinstance(predicted, Unscored):
                return predicted
            return (float(predicted in (case.gold_all or (case.gold,))), 1.0)

        facts = Facts(f"{self.prefix}.accuracy_any", counts=("correct", "cases"), variant_of=f"{self.prefix}.accuracy")
        return Metric(facts, collect, RATIO)

    def correct_of_all(self) -> StrategyMetric:
        """Return ΣC_ii / (N + n_unscored), which cannot be raised by not answering."""

        def collect(case: StrategyCase) -> Stats | Unscored:
            predicted = self.answer(case)
            if isinstance(predicted, Unscored):
                return Unscored(predicted.reason, (0.0, 1.0))
            return (float(predicted == case.gold), 1.0)

        facts = Facts(
            f"{self.prefix}.correct_of_all", counts=("correct", "cases"), variant_of=f"{self.prefix}.accuracy"
        )
        return Metric(facts, collect, RATIO)


def strategy_metrics(scale: StrategyScale) -> tuple[StrategyMetric, ...]:
    """Return the suite's metrics."""
    # Nothing is scored without any strategy; the ranges are then those of one.
    size = max(1, len(scale.strategies))
    log_size = float(np.log(size))
    two = "2 labels in gold"
    bounded = Facts("", unit="nats", range=(0.0, log_size), higher_is_better=None)
    b = Facts(
        "bias_b",
        unit="none",
        range=(0.0, float(np.sqrt(size - 1))),
        higher_is_better=False,
        minimum="errors that connect all strategies",
        undefined=NOT_CONNECTED,
    )
    kl = Facts(
        "kl_gold",
        unit="nats",
        range=(0.0, None),
        higher_is_better=False,
        minimum="gold cases of every predicted label",
        undefined="a predicted label never occurs in gold",
    )
    pseudo = scale.pseudo_count
    found = [
        scale.accuracy(),
        *([scale.accuracy_any()] if scale.merged else []),
        scale.correct_of_all(),
        scale.of_matrix(Facts("macro_f1", minimum=two), macro_f1),
        scale.of_matrix(Facts("weighted_f1", minimum=two), weighted_f1),
        scale.of_matrix(b, lambda matrix: bias(matrix, pseudo_count=pseudo)),
        scale.of_matrix(
            replace(b, name="bias_b_20", variant_of="bias_b"),
            lambda matrix: bias(matrix, pseudo_count=pseudo, max_sweeps=20),
        ),
        scale.of_matrix(replace(bounded, name="entropy"), lambda matrix: entropy_of(matrix.sum(axis=2))),
        scale.of_matrix(
            replace(bounded, name="entropy_normalised", unit="share", range=(0.0, 1.0), test="none"),
            lambda matrix: entropy_of(matrix.sum(axis=2)) / log_size,
        ),
        scale.of_matrix(
            replace(bounded, name="gold_entropy", test="none"), lambda matrix: entropy_of(matrix.sum(axis=1))
        ),
        scale.of_matrix(kl, kl_gold),
        scale.of_matrix(Facts("majority_accuracy", higher_is_better=None, test="none"), majority_share),
        scale.of_matrix(Facts("frequency_accuracy", higher_is_better=None, test="none"), frequency_share),
    ]
    return tuple(found)


def class_metrics(scale: StrategyScale, index: int) -> tuple[StrategyMetric, ...]:
    """Return precision, recall, F1 and support of one strategy; support 0 leaves recall undefined."""

    def right(matrix: Array) -> Array:
        return np.asarray(matrix[:, index, index])

    support = Facts(
        "support", unit="cases", range=(0.0, None), higher_is_better=None, interval="none", test="none",
        no_interval="a count",
    )  # fmt: skip
    return (
        scale.of_matrix(
            Facts("precision", minimum="1 prediction of it"),
            lambda matrix: divide(right(matrix), matrix[:, index].sum(axis=1)),
            proportion=True,
        ),
        scale.of_matrix(
            Facts("recall", minimum="1 gold case of it"),
            lambda matrix: divide(right(matrix), matrix[:, :, index].sum(axis=1)),
            proportion=True,
        ),
        scale.of_matrix(
            Facts("f1", minimum="1 prediction or gold case of it"), lambda matrix: f1_by_class(matrix)[:, index]
        ),
        scale.of_matrix(support, lambda matrix: matrix[:, :, index].sum(axis=1)),
    )


def strategy_rows(cases: Sequence[StrategyCase], scale: StrategyScale, measurement: Measurement) -> list[MetricRow]:
    """Return all rows of the suite: the whole, per class, per stage of the conversation."""
    rows = []
    for metric in strategy_metrics(scale):
        smoothed = scale.pseudo_count > 0 and "bias_b" in metric.name
        rows.append(measurement.row(metric, cases, flags=("smoothed",) if smoothed else ()))
    for index, name in enumerate(scale.strategies):
        rows += [measurement.row(metric, cases, group={"class": name}) for metric in class_metrics(scale, index)]
    by_stage = (
        scale.accuracy(),
        scale.of_matrix(Facts("macro_f1", minimum="2 labels in gold"), macro_f1),
    )
    for stage in STAGES:
        chosen = [case for case in cases if stage_of(case.turn, case.n_turns) == stage]
        rows += [measurement.row(metric, chosen, group={"stage": stage}) for metric in by_stage]
    return rows
