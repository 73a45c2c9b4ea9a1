"""The three stages of a supportive conversation, by position (AFlow, arXiv 2602.08826).

Metrics of next-strategy prediction; all but ``accuracy_any`` and ``correct_of_all`` are functions of one matrix.

C = confusion matrix, rows predicted i, columns gold j, over S strategies of one taxonomy; N = ΣC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from esckit.errors import DataError
from esckit.evaluate.cases import StrategyCase
from esckit.metrics.confusion import (
    accuracy,
    bias,
    entropy_of,
    f1_by_class,
    frequency_share,
    kl_gold,
    macro_f1,
    majority_share,
    weighted_f1,
)
from esckit.metrics.measure import Measurement
from esckit.metrics.metric import RATIO, Array, Facts, Metric, Stats, Sums, Unscored, divide
from esckit.metrics.rows import MetricRow

Stage = Literal["Exploration", "Comforting", "Action"]

STAGES: tuple[Stage, ...] = ("Exploration", "Comforting", "Action")


def stage_of(index: int, n_turns: int) -> Stage:
    """Return the stage of the 0-based supporter turn ``index`` of ``n_turns``.

    Exploration if 3i < T' − 1, Comforting if 3i < 2(T' − 1), else Action; the only turn of a dialogue is Exploration.
    """
    if n_turns == 1 or 3 * index < n_turns - 1:
        return "Exploration"
    return "Comforting" if 3 * index < 2 * (n_turns - 1) else "Action"


StrategyMetric = Metric[StrategyCase]


NOT_CONNECTED = "errors do not connect all strategies"


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
