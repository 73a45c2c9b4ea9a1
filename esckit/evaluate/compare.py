"""Two runs on the same cases: difference, interval of the difference, and a two-sided test per kind of metric.

Only like is compared with like: everything but the system under test must be equal, and cases that either run left
unscored are dropped from both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from esckit.errors import DataError
from esckit.metrics.intervals import (
    EXACT_UNITS,
    Bounds,
    Plan,
    all_swaps,
    bootstrap_plan,
    holm,
    is_degenerate,
    jackknife_error,
    percentile_interval,
    permutation_p,
    permutation_plan,
    sign_flip_p,
    two_sided_binomial,
    z_score,
)
from esckit.metrics.measure import DEGENERATE, FEWEST_UNITS, StatisticsSettings
from esckit.metrics.metric import Array, C, Indices, Metric, Stats, Unscored
from esckit.metrics.rows import Comparison, Interval

SHOWN_DIFFERENCES = 5

UNDEFINED = "undefined on the shared cases"

INCOMPARABLE = "the runs are not comparable"

_EQUAL = 1e-9


def require_comparable(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, other: str) -> None:
    """Refuse to compare runs that differ in more than the system under test.

    Args:
        ours: What must be equal: suite settings, data ids, simulator, critic or judge (model, sampling, prompt
            digests), taxonomy and mapping, tokenisation; may be nested.
        theirs: The same of the other run.
        other: Name of the other run.

    Raises:
        DataError: If anything differs; the message names what.
    """
    first, second = dict(_flat(ours)), dict(_flat(theirs))
    names = [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]
    if names:
        shown = [f"{name} ({first.get(name)!r} here, {second.get(name)!r} there)" for name in names[:SHOWN_DIFFERENCES]]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        raise DataError(
            f"{other} was evaluated under other conditions: {', '.join(shown)}{more}",
            expected="runs that differ in the system under test alone",
            hint="statistics.force_compare: true prints both without tests",
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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
    first, second = ({name: _stats(entry) for name, entry in side.items()} for side in found)
    spoken = {name for side in found for name, entry in side.items() if entry is not None}
    kept = [case for case in cases if first[case.id] is not None and second.get(case.id) is not None]
    units = list(dict.fromkeys(case.dialogue_id for case in kept))
    place = {name: index for index, name in enumerate(units)}
    return _Shared(
        [stats for case in kept if (stats := first[case.id]) is not None],
        [stats for case in kept if (stats := second[case.id]) is not None],
        np.array([place[case.dialogue_id] for case in kept], dtype=np.intp),
        units,
        len(spoken) - len(kept),
    )


def _stats(entry: Stats | Unscored | None) -> Stats | None:
    return entry.stats if isinstance(entry, Unscored) else entry


@dataclass(frozen=True, slots=True)
class Comparer:
    """Compares the metrics of one suite: one bootstrap and one permutation plan for all of them.

    Attributes:
        other: Name of the other run.
        bootstrap: Which dialogues each resample holds; the same for both runs.
        permutation: Which dialogues each permutation swaps.
    """

    other: str
    settings: StatisticsSettings
    bootstrap: Plan
    permutation: Plan

    @classmethod
    def over(cls, suite: str, dialogue_ids: Iterable[str], settings: StatisticsSettings, *, other: str) -> Comparer:
        """Return the comparer of a suite over the dialogues of the run under test, in case order."""
        names = list(dict.fromkeys(dialogue_ids))
        return cls(
            other,
            settings,
            bootstrap_plan(settings.run_seed, suite, names, resamples=settings.resamples),
            permutation_plan(settings.run_seed, suite, names, resamples=settings.resamples),
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
        known = value is not None and other_value is not None
        difference = value - other_value if value is not None and other_value is not None else None
        test = metric.facts.test if tests and known else "none"
        interval, reason = (
            self._interval(metric, shared, difference) if tests and difference is not None else (None, None)
        )
        p = self._p(metric, shared, difference) if test != "none" and difference is not None else None
        return Comparison(
            name=metric.name,
            other=self.other,
            n=len(shared.ours),
            n_dropped=shared.n_dropped,
            value=value,
            other_value=other_value,
            difference=difference,
            interval=interval,
            test=None if test == "none" else test,
            p=p,
            reason=UNDEFINED if not known else reason if tests else INCOMPARABLE,
        )

    def _interval(
        self, metric: Metric[C], shared: _Shared, difference: float
    ) -> tuple[Interval, None] | tuple[None, str]:
        """Return the interval of the difference, or why there is none."""
        if len(shared.units) < FEWEST_UNITS:
            return None, f"fewer than {FEWEST_UNITS} dialogues"
        level, method = self.settings.level, metric.facts.interval
        bounds: Bounds | None = None
        if method == "jackknife":
            left_out = self._differences(metric, shared, 1 - np.eye(len(shared.units)))
            half = z_score(level) * jackknife_error(left_out)
            bounds = Bounds(difference - half, difference + half) if np.isfinite(half) else None
        elif method != "none":
            method = "bootstrap"
            bounds = percentile_interval(
                self._differences(metric, shared, _chosen(self.bootstrap, shared)), level=level
            )
        if bounds is None:
            return None, "no interval for this metric"
        if is_degenerate(bounds):
            return None, DEGENERATE
        return Interval(method=method, level=level, low=bounds.low, high=bounds.high), None

    def _differences(self, metric: Metric[C], shared: _Shared, draws: Array) -> Array:
        ours = metric.estimator.replay(shared.ours, shared.owner, draws)
        return ours - metric.estimator.replay(shared.theirs, shared.owner, draws)

    def _p(self, metric: Metric[C], shared: _Shared, difference: float) -> float | None:
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
        ours = metric.estimator.replay(both, owner, np.hstack([1 - swaps, swaps]))
        theirs = metric.estimator.replay(both, owner, np.hstack([swaps, 1 - swaps]))
        return permutation_p(difference, ours - theirs, exact=exact)


def _chosen(plan: Plan, shared: _Shared) -> Array:
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
    """Return the comparisons of one suite with Holm-adjusted p-values, each question asked once.

    Args:
        comparisons: Of one suite.
        variants: Per metric, the metric that it often equals; where it does for both runs, it is not tested.
    """
    by_name = {entry.name: entry for entry in comparisons}
    asked = [_unless_equal(entry, by_name.get((variants or {}).get(entry.name, ""))) for entry in comparisons]
    tested = [(index, entry.p) for index, entry in enumerate(asked) if entry.p is not None]
    adjusted = dict(zip((index for index, _ in tested), holm([p for _, p in tested]), strict=True))
    return [
        entry.model_copy(update={"p_holm": adjusted[index]}) if index in adjusted else entry
        for index, entry in enumerate(asked)
    ]


def _unless_equal(entry: Comparison, basis: Comparison | None) -> Comparison:
    """Return a comparison without its test if both runs have the values of another metric on the same cases."""
    if entry.p is None or basis is None or basis.p is None or entry.n != basis.n:
        return entry
    ours, theirs = (np.array([one.value, one.other_value], dtype=np.float64) for one in (entry, basis))
    if not np.allclose(ours, theirs, rtol=_EQUAL, atol=_EQUAL):
        return entry
    return entry.model_copy(update={"test": None, "p": None, "reason": f"equals {basis.name} on these cases"})
