"""What ``metrics.json`` holds: one row per value, comparisons, gates, and the file itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from esckit.records import dump_json, write_atomic
from esckit.types import Record


class Interval(Record):
    """An interval and how it was made."""

    method: str
    level: float
    low: float
    high: float


class MetricRow(Record):
    """One value with its conditions.

    Attributes:
        n: Scored cases.
        unscored: Unscored cases by reason.
        coverage: n / (n + n_unscored); None without any case.
        counts: Sums worth printing beside the value.
        reason: Why there is no value, or no interval.
        group: The subgroup (emotion, problem, turn, stage, class …); None for the whole suite.
        tokenizer: How texts were cut into the tokens or words that are counted; None where none are.
    """

    name: str
    value: float | None
    unit: str
    range: tuple[float, float | None]
    higher_is_better: bool | None
    n: int
    n_unscored: int
    unscored: dict[str, int]
    coverage: float | None
    counts: dict[str, float]
    interval: Interval | None
    reason: str | None
    flags: tuple[str, ...]
    group: dict[str, str | int] | None
    tokenizer: str | None = None


class Comparison(Record):
    """One metric of two runs, on the cases that both scored.

    Attributes:
        other: The run compared to.
        n: Shared scored cases.
        n_dropped: Cases that only one of the runs scored, or neither.
        difference: value − other_value.
        test: The test used, None without one.
        reason: Why a value, interval or p is missing.
    """

    name: str
    other: str
    n: int
    n_dropped: int
    value: float | None
    other_value: float | None
    difference: float | None
    interval: Interval | None
    test: str | None
    p: float | None
    p_holm: float | None = None
    reason: str | None = None


class Gate(Record):
    """A bound on a metric, and whether it holds."""

    metric: str
    bound: float
    value: float | None
    holds: bool
    reason: str | None = None


class MetricsFile(Record):
    """All that an evaluation found."""

    SCHEMA: ClassVar[str] = "esckit.metrics/1"

    run: str
    suites: tuple[str, ...]
    metrics: tuple[MetricRow, ...]
    comparisons: tuple[Comparison, ...] = ()
    gates: tuple[Gate, ...] = ()
    references: tuple[str, ...] = ()

    def row(self, name: str, **group: str | int) -> MetricRow | None:
        """Return a row by name and subgroup."""
        wanted = group or None
        return next((row for row in self.metrics if row.name == name and row.group == wanted), None)


def write_metrics(path: Path, metrics: MetricsFile) -> None:
    """Write ``metrics.json``, atomically; its presence says that an evaluation finished."""
    body: dict[str, Any] = {"schema": MetricsFile.SCHEMA, **metrics.model_dump(mode="json")}
    write_atomic(path, dump_json(body, indent=1) + "\n")
