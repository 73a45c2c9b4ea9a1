"""What ``metrics.json`` holds, and how its rows and comparisons come from cases.

A row is one value with its n, coverage, interval, reason and flags. A comparison is the difference of two runs on the
same cases, its interval, and a two-sided test per kind of metric; cases that either run left unscored are dropped from
both. Whether two runs may be compared at all is decided before, by their conditions (:mod:`esckit.evaluate.setup`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from esckit.metrics.intervals import (
    EXACT_UNITS,
    Bounds,
    Counts,
    Plan,
    all_swaps,
    as_floats,
    bootstrap_plan,
    holm,
    is_degenerate,
    jackknife_interval,
    percentile_interval,
    permutation_p,
    permutation_plan,
    sign_flip_p,
    two_sided_binomial,
    wilson,
)
from esckit.metrics.metric import (
    Array,
    C,
    Collected,
    Facts,
    GateBound,
    Indices,
    Metric,
    Statistics,
    Stats,
    Sums,
    Unscored,
    collect,
)
from esckit.records import dump_json, write_atomic
from esckit.types import Record

SMALL_SAMPLE = 30

FEWEST_UNITS = 5

DEGENERATE = "degenerate"
"""Why there is no interval: all resamples are alike, so that it would have no width."""

UNDEFINED = "undefined on the shared cases"

INCOMPARABLE = "the runs are not comparable"

_EQUAL = 1e-9

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
    """A bound on a metric, and whether it holds.

    Attributes:
        value: The metric's value.
        end: The worse end of its interval, where that was held against the bound (``gates_on: bound``); else None.
    """

    metric: str
    bound: float
    value: float | None
    holds: bool
    reason: str | None = None
    end: float | None = None


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
class Measurement:
    """The rows of one suite: one plan, shared by all its metrics.

    Attributes:
        settings: How intervals are made.
        plan: The suite's bootstrap plan.
        flags: Flags that every row gets (``overlap``, ``cross_family``, ``self_judged`` …).
    """

    settings: Statistics
    plan: Plan
    flags: tuple[str, ...] = ()

    @classmethod
    def over(
        cls,
        suite: str,
        dialogue_ids: Iterable[str],
        run_seed: int,
        settings: Statistics,
        flags: tuple[str, ...] = (),
    ) -> Measurement:
        """Return the measurement of ``suite``, whose name and run seed fix the plan, over dialogues in case order."""
        return cls(settings, bootstrap_plan(run_seed, suite, dialogue_ids, resamples=settings.resamples), flags)

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
        values = replay(metric, collected.stats, collected.owner(self.plan.units), self.plan.draws)
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
    return replay(metric, collected.stats, collected.owner(units), all_but_one(len(units)))


def all_but_one(n: int) -> Counts:
    """Return the resamples of a jackknife, (n, n): each leaves one of the units out."""
    return 1 - np.eye(n, dtype=np.uint8)


def replay(metric: Metric[C], stats: Sequence[Stats], owner: Indices, draws: Counts) -> Array:
    """Return a metric's value of every resample; see :meth:`~esckit.metrics.metric.Estimator.replay`."""
    return np.concatenate([metric.estimator.replay(stats, owner, block) for block in as_floats(draws)])


# ---------------------------------------------------------------- two runs


class _Shared(NamedTuple):
    """Statistics of the cases that both runs scored.

    Attributes:
        ours: Per case.
        theirs: Per case, in the same order.
        owner: (N,), index of each case's dialogue among the involved ones.
        units: The involved dialogues.
        n_dropped: Cases that are not in here although a run has them.
    """

    ours: list[Stats]
    theirs: list[Stats]
    owner: Indices
    units: list[str]
    n_dropped: int


def _share(metric: Metric[C], cases: Sequence[C], other_cases: Sequence[C]) -> _Shared:
    found = [{case.id: metric.collect(case) for case in side} for side in (cases, other_cases)]
    first, second = (
        {name: entry.stats if isinstance(entry, Unscored) else entry for name, entry in side.items()} for side in found
    )
    concerned = {name for side in found for name, entry in side.items() if entry is not None}
    kept = [
        (case.dialogue_id, ours, theirs)
        for case in cases
        if (ours := first[case.id]) is not None and (theirs := second.get(case.id)) is not None
    ]
    units = {name: index for index, name in enumerate(dict.fromkeys(name for name, _, _ in kept))}
    return _Shared(
        ours=[ours for _, ours, _ in kept],
        theirs=[theirs for _, _, theirs in kept],
        owner=np.array([units[name] for name, _, _ in kept], dtype=np.intp),
        units=list(units),
        n_dropped=len(concerned) - len(kept),
    )


@dataclass(frozen=True, slots=True)
class Comparer:
    """Compares the metrics of one suite: one bootstrap and one permutation plan for all of them.

    Attributes:
        other: Name of the other run.
        bootstrap: Which dialogues each resample holds; the same for both runs.
        permutation: Which dialogues each permutation swaps.
    """

    other: str
    settings: Statistics
    bootstrap: Plan
    permutation: Plan

    @classmethod
    def over(
        cls, suite: str, dialogue_ids: Iterable[str], run_seed: int, settings: Statistics, *, other: str
    ) -> Comparer:
        """Return the comparer of a suite over the dialogues of the run under test, in case order."""
        names = list(dict.fromkeys(dialogue_ids))
        return cls(
            other,
            settings,
            bootstrap_plan(run_seed, suite, names, resamples=settings.resamples),
            permutation_plan(run_seed, suite, names, resamples=settings.resamples),
        )

    def compare(
        self, metric: Metric[C], cases: Sequence[C], other_cases: Sequence[C], *, tests: bool = True
    ) -> Comparison:
        """Return the comparison of one metric.

        Args:
            metric: The metric, the same for both runs.
            cases: Cases of the run under test.
            other_cases: Cases of the other run; matched by id.
            tests: False prints both values without interval and p (for runs that are not comparable).
        """
        shared = _share(metric, cases, other_cases)
        value, other_value = metric.finish(shared.ours), metric.finish(shared.theirs)
        difference, found, test, p = None, None, "none", None
        reason: str | None = UNDEFINED
        if value is not None and other_value is not None:
            difference, reason = value - other_value, INCOMPARABLE
            if tests:
                found = self._interval(metric, shared, difference)
                reason = found if isinstance(found, str) else None
                test = metric.facts.test
                p = self._p(metric, shared, difference)
        return Comparison(
            name=metric.name,
            other=self.other,
            n=len(shared.ours),
            n_dropped=shared.n_dropped,
            value=value,
            other_value=other_value,
            difference=difference,
            interval=found if isinstance(found, Interval) else None,
            test=None if test == "none" else test,
            p=p,
            reason=reason,
        )

    def _interval(self, metric: Metric[C], shared: _Shared, difference: float) -> Interval | str:
        """Return the interval of the difference, or why there is none."""
        if len(shared.units) < FEWEST_UNITS:
            return f"fewer than {FEWEST_UNITS} dialogues"
        level, method = self.settings.level, metric.facts.interval
        bounds = None
        if method == "jackknife":
            left_out = self._differences(metric, shared, all_but_one(len(shared.units)))
            if np.isfinite(left_out).all():
                bounds = jackknife_interval(difference, left_out, level=level)
        elif method != "none":
            method = "bootstrap"
            bounds = percentile_interval(
                self._differences(metric, shared, _chosen(self.bootstrap, shared)), level=level
            )
        return "no interval for this metric" if bounds is None else interval(method, bounds, level)

    def _differences(self, metric: Metric[C], shared: _Shared, draws: Counts) -> Array:
        return replay(metric, shared.ours, shared.owner, draws) - replay(metric, shared.theirs, shared.owner, draws)

    def _p(self, metric: Metric[C], shared: _Shared, difference: float) -> float | None:
        if metric.facts.test == "none":
            return None
        if metric.facts.test == "permutation":
            return self._permutation(metric, shared, difference)
        pairs = _by_unit(metric, shared)
        if metric.facts.test == "mcnemar":
            return two_sided_binomial(sum(a > b for a, b in pairs.values()), sum(a < b for a, b in pairs.values()))
        differences = [a - b for a, b in pairs.values()]
        if not differences:
            return None
        columns = [self.permutation.units[shared.units[unit]] for unit in pairs]
        exact = len(differences) <= EXACT_UNITS
        return sign_flip_p(differences, None if exact else self.permutation.draws[:, columns])

    def _permutation(self, metric: Metric[C], shared: _Shared, difference: float) -> float | None:
        """Swap the two systems' statistics dialogue by dialogue and recompute both values."""
        n = len(shared.units)
        exact = n <= EXACT_UNITS
        swaps = all_swaps(n) if exact else _chosen(self.permutation, shared)
        both = [*shared.ours, *shared.theirs]
        owner = np.concatenate([shared.owner, shared.owner + n])
        ours = replay(metric, both, owner, np.hstack([1 - swaps, swaps]))
        theirs = replay(metric, both, owner, np.hstack([swaps, 1 - swaps]))
        return permutation_p(difference, ours - theirs, exact=exact)


def _chosen(plan: Plan, shared: _Shared) -> Counts:
    """Return the plan's columns of the involved dialogues, in their order."""
    return plan.draws[:, [plan.units[name] for name in shared.units]]


def _by_unit(metric: Metric[C], shared: _Shared) -> dict[int, tuple[float, float]]:
    """Return both runs' values per involved dialogue, where both are defined."""
    members: dict[int, list[int]] = {}
    for index, unit in enumerate(shared.owner.tolist()):
        members.setdefault(unit, []).append(index)
    pairs = {}
    for unit, indices in members.items():
        first = metric.finish([shared.ours[index] for index in indices])
        second = metric.finish([shared.theirs[index] for index in indices])
        if first is not None and second is not None:
            pairs[unit] = (first, second)
    return pairs


def with_holm(comparisons: Sequence[Comparison], variants: Mapping[str, str] | None = None) -> list[Comparison]:
    """Return the comparisons of one suite with Holm-adjusted p-values; the same question is not tested twice.

    Args:
        comparisons: Of one suite.
        variants: Per metric, the metric that it often equals; where it does for both runs, it is not tested.
    """
    return holm_adjusted(asked_once(comparisons, variants or {}))


def asked_once(comparisons: Sequence[Comparison], variants: Mapping[str, str]) -> list[Comparison]:
    """Return the comparisons of two runs, without the test of a metric that equals the one it is a variant of."""
    by_name = {entry.name: entry for entry in comparisons}
    return [_unless_equal(entry, by_name.get(variants.get(entry.name, ""))) for entry in comparisons]


def holm_adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return comparisons with p-values adjusted after Holm over all that were tested."""
    adjusted = iter(holm([entry.p for entry in comparisons if entry.p is not None]))
    return [entry if entry.p is None else entry.model_copy(update={"p_holm": next(adjusted)}) for entry in comparisons]


def _unless_equal(entry: Comparison, basis: Comparison | None) -> Comparison:
    """Return a comparison without its test if both runs have the values of another metric on the same cases."""
    if entry.p is None or basis is None or basis.p is None or entry.n != basis.n:
        return entry
    ours, theirs = (np.array([one.value, one.other_value], dtype=np.float64) for one in (entry, basis))
    if not np.allclose(ours, theirs, rtol=_EQUAL, atol=_EQUAL):
        return entry
    return entry.model_copy(update={"test": None, "p": None, "reason": f"equals {basis.name} on these cases"})


# ---------------------------------------------------------------- gates


def judge_gates(
    bounds: Iterable[GateBound], rows: Sequence[MetricRow], known: Mapping[str, Facts], *, gates_on: str = "value"
) -> list[Gate]:
    """Return every gate with its value and whether it holds.

    A gate fails if the value, or the interval that it asks for, is past the bound, missing, or flagged
    ``low_coverage``.

    Args:
        bounds: Checked by :func:`esckit.metrics.metric.require_gates`.
        rows: Rows of the evaluation; only those of whole suites count.
        known: Facts of every metric by name.
        gates_on: Compare the ``value``, or with ``bound`` the worse end of its interval (the value itself where a
            metric has no interval by nature, such as a count).
    """
    whole = {row.name: row for row in rows if row.group is None}
    found = []
    for gate in bounds:
        row = whole.get(gate.metric)
        by_interval = gates_on == "bound" and known[gate.metric].interval != "none"
        value, reason = _gated(row, by_interval=by_interval)
        if row is not None and value is not None and reason is None:
            holds = value >= gate.bound if row.higher_is_better else value <= gate.bound
            reason = None if holds else "past the bound"
        own = row.value if row is not None else None
        end = value if by_interval and value != own else None
        found.append(
            Gate(metric=gate.metric, bound=gate.bound, value=own, end=end, holds=reason is None, reason=reason)
        )
    return found


def _gated(row: MetricRow | None, *, by_interval: bool) -> tuple[float | None, str | None]:
    """Return the number that a gate looks at, and why the gate fails whatever its bound."""
    if row is None:
        return None, "not measured"
    if row.value is None:
        return None, row.reason or "no value"
    if "low_coverage" in row.flags:
        return row.value, "low coverage"
    if not by_interval:
        return row.value, None
    if not isinstance(row.interval, Interval):
        return row.value, f"no interval: {row.reason}"
    return (row.interval.low if row.higher_is_better else row.interval.high), None
