"""What ``metrics.json`` holds, and how a row of it comes from cases.

A row is one value with its n, coverage, interval, reason and flags; the file also holds comparisons and gates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from esckit.metrics.intervals import (
    Bounds,
    Plan,
    bootstrap_plan,
    is_degenerate,
    jackknife_interval,
    percentile_interval,
    wilson,
)
from esckit.metrics.metric import Array, C, Collected, Metric, Sums, collect
from esckit.records import dump_json, write_atomic
from esckit.types import Record

SMALL_SAMPLE = 30

FEWEST_UNITS = 5

DEGENERATE = "degenerate"
"""Why there is no interval: all resamples are alike, so that it would have no width."""

Group = dict[str, str | int]


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


# ---------------------------------------------------------------- from cases to rows


@dataclass(frozen=True, slots=True)
class StatisticsSettings:
    """How intervals are made.

    Attributes:
        run_seed: Seed of the run; the plans derive from it.
        resamples: Bootstrap resamples and drawn permutations.
        level: Confidence level.
        min_coverage: Coverage below which a row is flagged ``low_coverage``.
    """

    run_seed: int
    resamples: int = 10_000
    level: float = 0.95
    min_coverage: float = 0.95


@dataclass(frozen=True, slots=True)
class Measurement:
    """The rows of one suite: one plan, shared by all its metrics.

    Attributes:
        settings: How intervals are made.
        plan: The suite's bootstrap plan.
        flags: Flags that every row gets (``overlap``, ``cross_family``, ``self_judged`` …).
    """

    settings: StatisticsSettings
    plan: Plan
    flags: tuple[str, ...] = ()

    @classmethod
    def over(
        cls, suite: str, dialogue_ids: Iterable[str], settings: StatisticsSettings, flags: tuple[str, ...] = ()
    ) -> Measurement:
        """Return the measurement of ``suite``, whose name seeds the plan, over its dialogues in case order."""
        plan = bootstrap_plan(settings.run_seed, suite, dialogue_ids, resamples=settings.resamples)
        return cls(settings, plan, flags)

    def row(
        self, metric: Metric[C], cases: Sequence[C], *, group: Group | None = None, flags: tuple[str, ...] = ()
    ) -> MetricRow:
        """Return the row of a metric over cases (all of the suite, or those of a subgroup)."""
        facts = metric.facts
        collected = collect(metric, cases)
        value = metric.finish(collected.stats)
        found: Interval | str = facts.undefined or f"needs {facts.minimum}"
        if value is not None:
            found = self._interval(metric, collected, value)
        total = collected.n + collected.n_unscored
        coverage = collected.n / total if total else None
        low_coverage = coverage is not None and coverage < self.settings.min_coverage
        small_sample = 0 < len(set(collected.dialogue_ids)) < SMALL_SAMPLE
        warnings = {"low_coverage": low_coverage, "small_sample": small_sample}
        sums = [sum(entry[index] for entry in collected.stats) for index in range(len(facts.counts))]
        return MetricRow(
            name=facts.name,
            value=value,
            unit=facts.unit,
            range=facts.range,
            higher_is_better=facts.higher_is_better,
            n=collected.n,
            n_unscored=collected.n_unscored,
            unscored=collected.unscored,
            coverage=coverage,
            counts=dict(zip(facts.counts, sums, strict=True)) if collected.stats else {},
            interval=found if isinstance(found, Interval) else None,
            reason=found if isinstance(found, str) else None,
            flags=(*self.flags, *flags, *(name for name, is_true in warnings.items() if is_true)),
            group=group,
            tokenizer=facts.tokenizer,
        )

    def _interval(self, metric: Metric[C], collected: Collected, value: float) -> Interval | str:
        """Return the interval of a value, or why there is none."""
        facts, level = metric.facts, self.settings.level
        if facts.interval == "none":
            return facts.no_interval or "not an estimate"
        if len(set(collected.dialogue_ids)) < FEWEST_UNITS:
            return f"fewer than {FEWEST_UNITS} dialogues"
        if facts.interval == "wilson":
            successes, n = np.asarray(collected.stats, dtype=np.float64).sum(axis=0)[:2]
            return interval("wilson", wilson(successes, n, level=level), level)
        if facts.interval == "jackknife":
            left_out = leave_one_out(metric, collected)
            if np.isnan(left_out).any():
                return "undefined without one of the dialogues"
            return interval("jackknife", jackknife_interval(value, left_out, level=level), level, within=facts.range)
        values = metric.estimator.replay(collected.stats, collected.owner(self.plan.units), self.plan.draws)
        bounds = percentile_interval(values, level=level)
        if bounds is None:
            return f"undefined in {int(np.isnan(values).sum())} of {len(values)} resamples"
        found = interval("bootstrap", bounds, level)
        return self._wilson_of_shares(metric, collected) if found == DEGENERATE else found

    def _wilson_of_shares(self, metric: Metric[C], collected: Collected) -> Interval | str:
        """Return Wilson's interval if the value is a share of independent cases, which may all be alike."""
        facts, estimator = metric.facts, metric.estimator
        values = [metric.finish([entry]) for entry in collected.stats]
        counted = {name: value for value, name in zip(values, collected.dialogue_ids, strict=True) if value is not None}
        if (
            (facts.unit, facts.range) == ("share", (0.0, 1.0))
            and isinstance(estimator, Sums)
            and estimator.proportion
            and set(counted.values()) <= {0.0, 1.0}
            and len(counted) == sum(value is not None for value in values)
        ):
            level = self.settings.level
            return interval("wilson", wilson(sum(counted.values()), len(counted), level=level), level)
        return DEGENERATE


def interval(
    method: str, bounds: Bounds, level: float, *, within: tuple[float, float | None] = (-math.inf, None)
) -> Interval | str:
    """Return bounds as an interval inside a range, or :data:`DEGENERATE` if they have no width."""
    if is_degenerate(bounds):
        return DEGENERATE
    low, high = within
    return Interval(
        method=method,
        level=level,
        low=max(low, bounds.low),
        high=bounds.high if high is None else min(high, bounds.high),
    )


def leave_one_out(metric: Metric[C], collected: Collected) -> Array:
    """Return the metric without each dialogue in turn, (D,), over the dialogues that hold statistics."""
    units = {name: index for index, name in enumerate(dict.fromkeys(collected.dialogue_ids))}
    return metric.estimator.replay(collected.stats, collected.owner(units), 1 - np.eye(len(units)))
