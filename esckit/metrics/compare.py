"""Two runs on the same cases: the difference, its interval, and a two-sided test per kind of metric.

Cases that either run left unscored are dropped from both. Whether two runs may be compared at all is decided before,
by their conditions (:mod:`esckit.evaluate.setup`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from esckit.metrics.intervals import (
    EXACT_UNITS,
    Plan,
    all_swaps,
    bootstrap_plan,
    holm,
    jackknife_interval,
    percentile_interval,
    permutation_p,
    permutation_plan,
    sign_flip_p,
    two_sided_binomial,
)
from esckit.metrics.metric import Array, C, Indices, Metric, Stats, Unscored
from esckit.metrics.rows import FEWEST_UNITS, Comparison, Interval, StatisticsSettings, interval

UNDEFINED = "undefined on the shared cases"

INCOMPARABLE = "the runs are not comparable"

_EQUAL = 1e-9


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
            left_out = self._differences(metric, shared, 1 - np.eye(len(shared.units)))
            if np.isfinite(left_out).all():
                bounds = jackknife_interval(difference, left_out, level=level)
        elif method != "none":
            method = "bootstrap"
            bounds = percentile_interval(
                self._differences(metric, shared, _chosen(self.bootstrap, shared)), level=level
            )
        return "no interval for this metric" if bounds is None else interval(method, bounds, level)

    def _differences(self, metric: Metric[C], shared: _Shared, draws: Array) -> Array:
        ours = metric.estimator.replay(shared.ours, shared.owner, draws)
        return ours - metric.estimator.replay(shared.theirs, shared.owner, draws)

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
    """Return the comparisons of one suite with Holm-adjusted p-values; the same question is not tested twice.

    Args:
        comparisons: Of one suite.
        variants: Per metric, the metric that it often equals; where it does for both runs, it is not tested.
    """
    by_name = {entry.name: entry for entry in comparisons}
    asked = [_unless_equal(entry, by_name.get((variants or {}).get(entry.name, ""))) for entry in comparisons]
    adjusted = iter(holm([entry.p for entry in asked if entry.p is not None]))
    return [entry if entry.p is None else entry.model_copy(update={"p_holm": next(adjusted)}) for entry in asked]


def _unless_equal(entry: Comparison, basis: Comparison | None) -> Comparison:
    """Return a comparison without its test if both runs have the values of another metric on the same cases."""
    if entry.p is None or basis is None or basis.p is None or entry.n != basis.n:
        return entry
    ours, theirs = (np.array([one.value, one.other_value], dtype=np.float64) for one in (entry, basis))
    if not np.allclose(ours, theirs, rtol=_EQUAL, atol=_EQUAL):
        return entry
    return entry.model_copy(update={"test": None, "p": None, "reason": f"equals {basis.name} on these cases"})
