"""From cases to rows: a metric's value with n, coverage, interval, reason and flags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from esckit.metrics.intervals import (
    Bounds,
    Plan,
    bootstrap_plan,
    is_degenerate,
    jackknife_error,
    percentile_interval,
    wilson,
    z_score,
)
from esckit.metrics.metric import Array, C, Collected, Metric, Sums, collect
from esckit.metrics.rows import Interval, MetricRow

SMALL_SAMPLE = 30

FEWEST_UNITS = 5

DEGENERATE = "degenerate"
"""Why there is no interval: all resamples are alike, so that it would have no width."""


Group = dict[str, str | int]


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


class _Found(NamedTuple):
    """An interval, or why there is none."""

    interval: Interval | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """The rows of one suite: one plan, shared by all its metrics.

    Attributes:
        suite: Name of the suite; part of the plan's seed.
        settings: How intervals are made.
        plan: The suite's bootstrap plan.
        flags: Flags that every row gets (``overlap``, ``cross_family``, ``self_judged`` …).
    """

    suite: str
    settings: StatisticsSettings
    plan: Plan
    flags: tuple[str, ...] = field(default=())

    @classmethod
    def over(
        cls, suite: str, dialogue_ids: Iterable[str], settings: StatisticsSettings, flags: tuple[str, ...] = ()
    ) -> Measurement:
        """Return a suite's measurement over its dialogues, in case order (repeats do not count)."""
        plan = bootstrap_plan(settings.run_seed, suite, dialogue_ids, resamples=settings.resamples)
        return cls(suite, settings, plan, flags)

    def row(
        self, metric: Metric[C], cases: Sequence[C], *, group: Group | None = None, flags: tuple[str, ...] = ()
    ) -> MetricRow:
        """Return the row of a metric over cases (all of the suite, or those of a subgroup)."""
        facts = metric.facts
        collected = collect(metric, cases)
        value = metric.finish(collected.stats)
        found = _Found(None, facts.undefined or f"needs {facts.minimum}")
        if value is not None:
            found = self._interval(metric, collected, value)
        total = collected.n + collected.n_unscored
        coverage = collected.n / total if total else None
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
            counts=_counts(facts.counts, collected),
            interval=found.interval,
            reason=found.reason,
            flags=(*self.flags, *flags, *self._warnings(collected, coverage)),
            group=group,
            tokenizer=facts.tokenizer,
        )

    def _warnings(self, collected: Collected, coverage: float | None) -> list[str]:
        warnings = []
        if coverage is not None and coverage < self.settings.min_coverage:
            warnings.append("low_coverage")
        if 0 < len(set(collected.dialogue_ids)) < SMALL_SAMPLE:
            warnings.append("small_sample")
        return warnings

    def _interval(self, metric: Metric[C], collected: Collected, value: float) -> _Found:
        facts = metric.facts
        if facts.interval == "none":
            return _Found(None, facts.no_interval or "not an estimate")
        if len(set(collected.dialogue_ids)) < FEWEST_UNITS:
            return _Found(None, f"fewer than {FEWEST_UNITS} dialogues")
        if facts.interval == "wilson":
            successes, n = np.asarray(collected.stats, dtype=np.float64).sum(axis=0)[:2]
            return self._found("wilson", wilson(successes, n, level=self.settings.level))
        if facts.interval == "jackknife":
            return self._jackknife(metric, collected, value)
        return self._bootstrap(metric, collected)

    def _bootstrap(self, metric: Metric[C], collected: Collected) -> _Found:
        values = metric.estimator.replay(collected.stats, collected.owner(self.plan.units), self.plan.draws)
        bounds = percentile_interval(values, level=self.settings.level)
        if bounds is None:
            skipped = int(np.isnan(values).sum())
            return _Found(None, f"undefined in {skipped} of {len(values)} resamples")
        return self._degenerate(metric, collected) if is_degenerate(bounds) else self._found("bootstrap", bounds)

    def _degenerate(self, metric: Metric[C], collected: Collected) -> _Found:
        """Return Wilson's interval of a share of independent cases, nothing for all else."""
        facts, estimator = metric.facts, metric.estimator
        values = [metric.finish([entry]) for entry in collected.stats]
        counted = [
            (value, name) for value, name in zip(values, collected.dialogue_ids, strict=True) if value is not None
        ]
        if (
            (facts.unit, facts.range) == ("share", (0.0, 1.0))
            and isinstance(estimator, Sums)
            and estimator.proportion
            and all(value in (0.0, 1.0) for value, _ in counted)
            and len({name for _, name in counted}) == len(counted)
        ):
            successes = sum(value for value, _ in counted)
            return self._found("wilson", wilson(successes, len(counted), level=self.settings.level))
        return _Found(None, DEGENERATE)

    def _jackknife(self, metric: Metric[C], collected: Collected, value: float) -> _Found:
        left_out = leave_one_out(metric, collected)
        if np.isnan(left_out).any():
            return _Found(None, "undefined without one of the dialogues")
        half = z_score(self.settings.level) * jackknife_error(left_out)
        low, high = metric.facts.range
        if is_degenerate(Bounds(value - half, value + half)):
            return _Found(None, DEGENERATE)
        return self._found(
            "jackknife", Bounds(max(low, value - half), value + half if high is None else min(high, value + half))
        )

    def _found(self, method: str, bounds: Bounds) -> _Found:
        return _Found(Interval(method=method, level=self.settings.level, low=bounds.low, high=bounds.high))


def leave_one_out(metric: Metric[C], collected: Collected) -> Array:
    """Return the metric without each dialogue in turn, (D,), over the dialogues that hold statistics."""
    units = {name: index for index, name in enumerate(dict.fromkeys(collected.dialogue_ids))}
    return metric.estimator.replay(collected.stats, collected.owner(units), 1 - np.eye(len(units)))


def _counts(names: tuple[str, ...], collected: Collected) -> dict[str, float]:
    """Return the named sums of the statistics."""
    if not names or not collected.stats:
        return {}
    sums = [sum(entry[index] for entry in collected.stats) for index in range(len(names))]
    return {name: total for name, total in zip(names, sums, strict=True) if name}
