"""How far raters agree with each other, and the automatic judge with them.

Krippendorff's α = 1 − D_o/D_e over the units that at least two raters labelled; the arithmetic is the ``krippendorff``
package's. The resampling unit is the rated unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from esckit.errors import DataError
from esckit.evaluate.measure import Measurement
from esckit.evaluate.metric import RATIO, Array, Estimator, Facts, Indices, Metric, Stats, Sums, Unscored, Weighted
from esckit.evaluate.reward import rank_correlation
from esckit.evaluate.rows import MetricRow
from esckit.types import Record

Counts = npt.NDArray[np.int64]
Level = Literal["nominal", "ordinal", "interval"]
MIN_UNITS = 10
MIN_RATERS = 2


class Label(Record):
    """One rater's label of one case: a line of the label file."""

    SCHEMA: ClassVar[str] = "esckit.label/1"

    case_id: str
    rater: str
    dimension: str
    label: str | int


@dataclass(frozen=True, slots=True)
class Unit:
    """One rated case.

    Attributes:
        labels: Positions on the scale per human rater.
        judge: Position of the automatic judge's label, why it gave none, or None where it has no such case.
    """

    id: str
    labels: dict[str, int]
    judge: int | Unscored | None = None

    @property
    def dialogue_id(self) -> str:
        """The unit itself: units are what is resampled."""
        return self.id


@dataclass(frozen=True, slots=True)
class LabelScale:
    """The labels of a dimension.

    Attributes:
        values: Labels from low to high; for ``nominal`` in any order.
        level: How differences count.
    """

    values: tuple[str | int, ...]
    level: Level

    def position(self, label: str | int) -> int:
        """Return a label's position.

        Raises:
            DataError: If the scale has no such label.
        """
        names = [str(value).casefold() for value in self.values]
        if str(label).casefold() not in names:
            raise DataError(f"label {label!r}", expected=f"one of {', '.join(map(str, self.values))}")
        return names.index(str(label).casefold())


Judged = Mapping[str, str | int | Unscored]
"""The automatic judge's label by case, or why it gave none."""


def read_units(labels: Sequence[Label], dimension: str, scale: LabelScale, judge: Judged) -> list[Unit]:
    """Return the rated units of a dimension, with what the automatic judge said of them.

    Raises:
        DataError: If a rater labelled a case twice, or a label is not on the scale.
    """
    by_case: dict[str, dict[str, int]] = {}
    for entry in labels:
        if entry.dimension != dimension:
            continue
        raters = by_case.setdefault(entry.case_id, {})
        if entry.rater in raters:
            raise DataError(f"two labels of rater {entry.rater!r} for case {entry.case_id!r}", expected="one")
        raters[entry.rater] = scale.position(entry.label)
    said = {name: label if isinstance(label, Unscored) else scale.position(label) for name, label in judge.items()}
    return [Unit(name, raters, said.get(name)) for name, raters in by_case.items()]


def alpha(counts: Counts, values: Sequence[float], level: Level) -> float | None:
    """Return Krippendorff's α, ≤ 1; None without pairable labels or expected disagreement.

    Args:
        counts: (units, labels), how many raters gave a unit each label.
        values: The labels' numeric values, ascending.
        level: ``nominal``, ``ordinal`` or ``interval``.
    """
    import krippendorff

    pairable = counts[counts.sum(axis=1) >= MIN_RATERS]
    if not len(pairable) or (pairable.sum(axis=0) > 0).sum() < 2:
        return None
    return float(krippendorff.alpha(value_counts=pairable, value_domain=list(values), level_of_measurement=level))


def majority(labels: Sequence[int], level: Level) -> float | None:
    """Return the most frequent label; among several the median of all labels, for ``nominal`` none."""
    ranked = Counter(labels).most_common()
    if not ranked:
        return None
    if len(ranked) == 1 or ranked[0][1] > ranked[1][1]:
        return float(ranked[0][0])
    return None if level == "nominal" else float(np.median(labels))


# ---------------------------------------------------------------- metrics

UnitMetric = Metric[Unit]


@dataclass(frozen=True, slots=True)
class Enough:
    """An estimator that gives no value below the least number of units."""

    inner: Estimator

    def finish(self, stats: Sequence[Stats]) -> float | None:
        """Return the inner value, None with fewer than ten units."""
        return self.inner.finish(stats) if len(stats) >= MIN_UNITS else None

    def replay(self, stats: Sequence[Stats], owner: Indices, draws: Array) -> Array:
        """Return the inner values; a resample has as many units as the data."""
        return self.inner.replay(stats, owner, draws)


@dataclass(frozen=True, slots=True)
class ReliabilityScale:
    """The metrics of one dimension."""

    dimension: str
    scale: LabelScale

    def _alpha(self, name: str, read: Callable[[Unit], Stats | Unscored | None]) -> UnitMetric:
        """Return α over label lists; labels between two levels (a median) get a value of their own."""

        def value(stats: Sequence[Stats]) -> float | None:
            counts, domain = _count_table(stats)
            return alpha(counts, domain, self.scale.level)

        def weighted(stats: Sequence[Stats], weights: Array) -> Array:
            counts, domain = _count_table(stats)
            found = [alpha(np.repeat(counts, row.astype(int), axis=0), domain, self.scale.level) for row in weights]
            return np.array([np.nan if entry is None else entry for entry in found])

        facts = self._facts(name, "none", (-1.0, 1.0))
        return Metric(facts, read, Enough(Weighted(value, weighted)))

    def _facts(self, name: str, unit: str, range_: tuple[float, float | None]) -> Facts:
        return Facts(
            f"reliability.{self.dimension}.{name}",
            unit=unit,
            range=range_,
            minimum=f"{MIN_UNITS} units with {MIN_RATERS} raters, and labels that differ",
            test="none",
        )

    def human_alpha(self) -> UnitMetric:
        """Return α among the human raters."""

        def read(unit: Unit) -> Stats | None:
            return tuple(map(float, unit.labels.values())) if len(unit.labels) >= MIN_RATERS else None

        return self._alpha("alpha_humans", read)

    def judge_alpha(self) -> UnitMetric:
        """Return α of the judge against the human majority."""
        return self._alpha("alpha_judge", self._beside)

    def _beside(self, unit: Unit) -> tuple[float, float] | Unscored | None:
        """Return the human majority's label and the judge's, or why the judge gave none."""
        human = majority(list(unit.labels.values()), self.scale.level)
        if human is None:
            return None
        judge = unit.judge
        return judge if judge is None or isinstance(judge, Unscored) else (human, float(judge))

    def _read(self, of: Callable[[float, float], Stats]) -> Callable[[Unit], Stats | Unscored | None]:
        """Return a collector of a number of the human majority's label and the judge's."""

        def collect(unit: Unit) -> Stats | Unscored | None:
            found = self._beside(unit)
            return found if found is None or isinstance(found, Unscored) else of(*found)

        return collect

    def agreement(self) -> UnitMetric:
        """Return the share of units where the judge gives the human majority's label."""
        read = self._read(lambda human, judge: (float(human == judge), 1.0))
        return Metric(self._facts("agreement_judge", "share", (0.0, 1.0)), read, Enough(RATIO))

    def spearman(self) -> UnitMetric:
        """Return Spearman's ρ of the judge with the human majority."""
        facts = self._facts("spearman_judge", "none", (-1.0, 1.0))
        return Metric(facts, self._beside, Enough(rank_correlation(2)))

    def confusion(self, units: Sequence[Unit]) -> dict[tuple[float, int], UnitMetric]:
        """Return per pair of human majority and judge that occurs how many units have it, in the scale's order."""
        found = {pair for unit in units if (pair := self._beside(unit)) and not isinstance(pair, Unscored)}
        pairs = sorted((human, int(judge)) for human, judge in found)
        return {pair: self._cell(pair) for pair in pairs}

    def _cell(self, pair: tuple[float, int]) -> UnitMetric:
        facts = replace(
            self._facts("confusion", "units", (0.0, None)),
            higher_is_better=None, minimum="1 unit", interval="none", no_interval="a count",
        )  # fmt: skip
        return Metric(facts, self._read(lambda *found: (float(found == pair),)), Sums(lambda sums: sums[:, 0]))


def _count_table(stats: Sequence[Stats]) -> tuple[Counts, list[float]]:
    """Return (units, labels) counts and the labels' values, ascending."""
    domain = sorted({label for labels in stats for label in labels})
    counts = np.zeros((len(stats), len(domain)), dtype=np.int64)
    for row, labels in zip(counts, stats, strict=True):
        for label in labels:
            row[domain.index(label)] += 1
    return counts, domain


def reliability_rows(units: Sequence[Unit], scale: ReliabilityScale, measurement: Measurement) -> list[MetricRow]:
    """Return the rows of one dimension, the confusion table of human majority and judge cell by cell."""
    metrics = [scale.human_alpha()]
    if any(unit.judge is not None for unit in units):
        metrics += [scale.judge_alpha(), scale.agreement()]
        if scale.scale.level != "nominal":
            metrics.append(scale.spearman())
    rows = [measurement.row(metric, units) for metric in metrics]
    labels = dict(enumerate(scale.scale.values))
    for (human, judge), metric in scale.confusion(units).items():
        # A majority between two levels, a median, is in no cell.
        if human.is_integer():
            group: dict[str, str | int] = {"human": str(labels[int(human)]), "judge": str(labels[judge])}
            rows.append(measurement.row(metric, units, group=group))
    return rows
