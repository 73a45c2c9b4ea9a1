"""The metric seam: small numbers per case, and one value from any selection of cases.

A corpus-level metric is not the mean of case values, so a metric has two steps. ``collect`` turns a case into
statistics. An estimator turns statistics into the value: once for the cases as they are (``finish``) and many times
for resampled cases (``replay``). Bootstrap, jackknife and permutation only replay; no model is called again.

Importing this module does not import numpy, so that suites can declare their metrics in a dry run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from pydantic import Field

from esckit.errors import ConfigError, DataError
from esckit.registry import did_you_mean
from esckit.types import Record

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[np.float64]"

Indices: TypeAlias = "npt.NDArray[np.intp]"

Stats = tuple[Any, ...]

IntervalMethod = Literal["wilson", "bootstrap", "jackknife", "none"]

Test = Literal["mcnemar", "sign_flip", "permutation", "none"]


_BLOCK = 500_000
"""Numbers that one block of resamples may hold, about 4 MB: what fits the cache is fastest."""


class Unscored(NamedTuple):
    """Why a case has no value.

    Attributes:
        reason: The word under which it is counted.
        stats: What it adds to a metric that counts unanswered cases as well; None for all others.
    """

    reason: str
    stats: Stats | None = None


class CaseLike(Protocol):
    """What every case has."""

    @property
    def id(self) -> str:
        """Stable id, the same in two runs that are compared."""
        ...

    @property
    def dialogue_id(self) -> str:
        """The resampling unit that the case belongs to."""
        ...


C = TypeVar("C", bound=CaseLike)

Found = TypeVar("Found")

Given = TypeVar("Given")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reader must know about a metric.

    Attributes:
        name: Full name, such as ``dialogue.rlff7.sr_strict``.
        unit: ``share``, ``0-100``, ``turns``, ``nats``, ``words``, ``none`` …
        range: Least and greatest possible value; None if unbounded.
        higher_is_better: None where no direction is better.
        minimum: The data without which there is no value, in words.
        interval: How its interval is made.
        test: How two runs are compared on it.
        counts: Names of the sums that are printed beside the value.
        undefined: Why there is no value although the minimum is met.
        no_interval: Why there is no interval, where ``interval`` is ``none``.
        variant_of: Name of the metric that this one often equals; where it does, it asks no question of its own.
        tokenizer: How texts are cut into the tokens or words that it counts; None if it counts none.
    """

    name: str
    unit: str = "share"
    range: tuple[float, float | None] = (0.0, 1.0)
    higher_is_better: bool | None = True
    minimum: str = "1 case"
    interval: IntervalMethod = "bootstrap"
    test: Test = "permutation"
    counts: tuple[str, ...] = ()
    undefined: str | None = None
    no_interval: str | None = None
    variant_of: str | None = None
    tokenizer: str | None = None


def not_estimated(why: str, **facts: Any) -> dict[str, Any]:
    """Return the facts of a number that estimates nothing, such as a count: it has no interval and no test."""
    none = {"range": (0.0, None), "higher_is_better": None, "interval": "none", "no_interval": why, "test": "none"}
    return {**none, **facts}


class Estimator(Protocol):
    """Turns statistics into values."""

    def finish(self, stats: Sequence[Stats]) -> float | None:
        """Return the value of these cases, None where it is undefined."""
        ...

    def replay(self, stats: Sequence[Stats], owner: Indices, draws: Array) -> Array:
        """Return the value of every resample, NaN where it is undefined.

        Args:
            stats: Statistics of N cases.
            owner: (N,), the resampling unit of each case.
            draws: (R, D), how often each resample holds each unit.

        Returns:
            (R,).
        """
        ...


@dataclass(frozen=True, slots=True)
class Metric(Generic[C]):
    """One metric: its facts, its statistics per case, its value.

    ``collect`` returns None for a case that the metric does not speak about (a control among crisis probes, say).
    """

    facts: Facts
    collect: Callable[[C], Stats | Unscored | None]
    estimator: Estimator

    @property
    def name(self) -> str:
        """The metric's full name."""
        return self.facts.name

    def finish(self, stats: Sequence[Stats]) -> float | None:
        """Return the value of these statistics, None where it is undefined."""
        return self.estimator.finish(stats)


@dataclass(frozen=True, slots=True)
class Sums:
    """An estimator over sums of per-case numbers.

    Attributes:
        value: (R, W) sums to (R,) values, NaN where undefined.
        proportion: True if the value of cases that are each 0 or 1 is the share of ones.
        min_stats: Fewest cases with a value.
    """

    value: Callable[[Array], Array]
    proportion: bool = False
    min_stats: int = 1

    def finish(self, stats: Sequence[Stats]) -> float | None:
        """Return the value of the summed statistics."""
        import numpy as np

        if len(stats) < self.min_stats:
            return None
        value = self.value(np.asarray(stats, dtype=np.float64).sum(axis=0, keepdims=True))[0]
        return None if np.isnan(value) else float(value)

    def replay(self, stats: Sequence[Stats], owner: Indices, draws: Array) -> Array:
        """Return the value of every resample: one matrix product over sums per unit."""
        import numpy as np

        if not stats:
            return np.full(len(draws), np.nan)
        table = np.asarray(stats, dtype=np.float64)
        by_unit = np.zeros((draws.shape[1], table.shape[1]))
        np.add.at(by_unit, owner, table)
        return self.value(draws @ by_unit)


@dataclass(frozen=True, slots=True)
class Weighted:
    """An estimator that sees every case with its weight, for metrics that no sums carry (ranks, say).

    Attributes:
        value: The value of unweighted statistics.
        weighted: (statistics, (R, N) weights) to (R,) values, NaN where undefined.
        min_stats: Fewest cases with a value.
    """

    value: Callable[[Sequence[Stats]], float | None]
    weighted: Callable[[Sequence[Stats], Array], Array]
    min_stats: int = 1

    def finish(self, stats: Sequence[Stats]) -> float | None:
        """Return the value of these cases."""
        return self.value(stats) if len(stats) >= self.min_stats else None

    def replay(self, stats: Sequence[Stats], owner: Indices, draws: Array) -> Array:
        """Return the value of every resample, in blocks that fit the memory."""
        import numpy as np

        if not stats:
            return np.full(len(draws), np.nan)
        rows = max(1, _BLOCK // len(stats))
        blocks = [self.weighted(stats, draws[start : start + rows][:, owner]) for start in range(0, len(draws), rows)]
        return np.concatenate(blocks)


def divide(above: Array, below: Array) -> Array:
    """Return the quotient, NaN where the divisor is not positive."""
    import numpy as np

    return np.asarray(np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0))


def ratio(sums: Array) -> Array:
    """Return first sum over second: means and shares."""
    return divide(sums[:, 0], sums[:, 1])


def if_scored(
    read: Callable[[C], Found | Unscored | None], of: Callable[[Found], Given | None]
) -> Callable[[C], Given | Unscored | None]:
    """Return a function of a case: ``of`` what ``read`` finds in it; None and reasons for no value stay what they are.

    With statistics as the result of ``of``, it collects for a metric.
    """

    def collect_case(case: C) -> Given | Unscored | None:
        found = read(case)
        return found if found is None or isinstance(found, Unscored) else of(found)

    return collect_case


def counted(found: float) -> Stats:
    """Return the statistics of one case of a share or mean."""
    return (float(found), 1.0)


RATIO = Sums(ratio, proportion=True)

FIRST = Sums(lambda sums: sums[:, 0])


@dataclass(frozen=True, slots=True)
class Collected:
    """The statistics of one metric over the cases of a suite.

    Attributes:
        stats: Per case that has any.
        dialogue_ids: Their dialogues, in the same order.
        n: Scored cases.
        unscored: Unscored cases by reason.
    """

    stats: tuple[Stats, ...]
    dialogue_ids: tuple[str, ...]
    n: int
    unscored: dict[str, int]

    @property
    def n_unscored(self) -> int:
        """Unscored cases."""
        return sum(self.unscored.values())

    def owner(self, units: dict[str, int]) -> Indices:
        """Return the unit index of every case."""
        import numpy as np

        return np.array([units[name] for name in self.dialogue_ids], dtype=np.intp)


def collect(metric: Metric[C], cases: Sequence[C]) -> Collected:
    """Return the statistics of a metric over cases.

    Raises:
        DataError: If two cases have one id.
    """
    stats: list[Stats] = []
    dialogue_ids: list[str] = []
    unscored: Counter[str] = Counter()
    seen: set[str] = set()
    n = 0
    for case in cases:
        if case.id in seen:
            raise DataError(f"case {case.id!r} twice", expected="every case once")
        seen.add(case.id)
        found = metric.collect(case)
        if isinstance(found, Unscored):
            unscored[found.reason] += 1
            found = found.stats
        elif found is not None:
            n += 1
        if found is not None:
            stats.append(found)
            dialogue_ids.append(case.dialogue_id)
    return Collected(tuple(stats), tuple(dialogue_ids), n, dict(unscored))


# ---------------------------------------------------------------- settings and gates


class Statistics(Record):
    """How intervals, comparisons and gates are computed. Operational: changing them only recomputes.

    Attributes:
        resamples: Bootstrap resamples and drawn permutations.
        level: Confidence level of the intervals.
        min_coverage: Below this share of scored cases a row is flagged and gates on it fail.
        force_compare: Print both runs' values without tests where the runs are not comparable.
        gates_on: Gates look at the value, or at the worse end of its interval.
    """

    resamples: int = Field(default=10_000, ge=100, le=1_000_000)
    level: float = Field(default=0.95, gt=0.5, lt=1.0)
    min_coverage: float = Field(default=0.95, ge=0.0, le=1.0)
    force_compare: bool = False
    gates_on: Literal["value", "bound"] = "value"


class GateBound(NamedTuple):
    """What a user asks of a metric.

    Attributes:
        side: ``under`` fails below the bound, ``over`` above it; None takes the side from the metric.
    """

    metric: str
    bound: float
    side: Literal["under", "over"] | None = None


def suite_measuring(metric: str) -> str:
    """Return the suite that measures a metric, by the beginning of its name."""
    prefix = metric.partition(".")[0].removesuffix("_expanded")
    return "dialogue" if prefix == "practice" else prefix  # self-play in the practice world


def require_gates(bounds: Iterable[GateBound], known: Mapping[str, Facts], suites: Sequence[str]) -> None:
    """Check gates before any model is called.

    Raises:
        ConfigError: If a metric is unknown, belongs to a suite that is not run, has no better direction, or is given
            the wrong side or a bound that it cannot take.
    """
    for gate in bounds:
        if suite_measuring(gate.metric) not in suites:
            raise ConfigError(
                f"a gate on {gate.metric!r}",
                expected=f"a metric of a suite that is run: {', '.join(suites)}",
                hint=did_you_mean(gate.metric, known) or None,
            )
        if gate.metric not in known:
            prefix = gate.metric.partition(".")[0].removesuffix("_expanded")
            raise ConfigError(
                f"a gate on unknown metric {gate.metric!r}",
                expected=f"one of {', '.join(name for name in known if name.startswith(prefix))}",
                hint=did_you_mean(gate.metric, known) or None,
            )
        facts = known[gate.metric]
        if facts.higher_is_better is None:
            raise ConfigError(f"a gate on {gate.metric!r}", expected="a metric of which more or less is better")
        right = "under" if facts.higher_is_better else "over"
        if gate.side not in (None, right):
            raise ConfigError(
                f"--fail-{gate.side} on {gate.metric!r}, where {'higher' if right == 'under' else 'lower'} is better",
                expected=f"--fail-{right}",
            )
        # A bound beyond what the metric can be, such as 5 for a share, would hold or fail whatever is measured.
        low, high = facts.range
        if not math.isfinite(gate.bound) or gate.bound < low or (high is not None and gate.bound > high):
            to = "no limit" if high is None else f"{high:g}"
            raise ConfigError(f"a gate on {gate.metric!r} at {gate.bound:g}", expected=f"a bound from {low:g} to {to}")
