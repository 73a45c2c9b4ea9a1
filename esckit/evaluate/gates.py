"""Gates: bounds on metrics that decide the exit code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from esckit.errors import ConfigError
from esckit.metrics.metric import Facts
from esckit.metrics.rows import Gate, MetricRow
from esckit.registry import did_you_mean

GatesOn = Literal["value", "bound"]


@dataclass(frozen=True, slots=True)
class GateBound:
    """What a user asks of a metric.

    Attributes:
        side: ``under`` fails below the bound, ``over`` above it; None takes the side from the metric.
    """

    metric: str
    bound: float
    side: Literal["under", "over"] | None = None


def require_gates(bounds: Iterable[GateBound], known: Mapping[str, Facts], suites: Sequence[str]) -> None:
    """Check gates before any model is called.

    Raises:
        ConfigError: If a metric is unknown, belongs to a suite that is not run, has no better direction, or is given
            the wrong side or a bound that it cannot take.
    """
    for gate in bounds:
        suite = gate.metric.partition(".")[0].removesuffix("_expanded")
        if suite not in suites:
            raise ConfigError(
                f"a gate on {gate.metric!r}", expected=f"a metric of a suite that is run: {', '.join(suites)}"
            )
        if gate.metric not in known:
            raise ConfigError(
                f"a gate on unknown metric {gate.metric!r}",
                expected=f"one of {', '.join(name for name in known if name.startswith(suite))}",
                hint=did_you_mean(gate.metric, known) or None,
            )
        better = known[gate.metric].higher_is_better
        if better is None:
            raise ConfigError(f"a gate on {gate.metric!r}", expected="a metric of which more or less is better")
        right = "under" if better else "over"
        if gate.side not in (None, right):
            raise ConfigError(
                f"--fail-{gate.side} on {gate.metric!r}, where {'higher' if better else 'lower'} is better",
                expected=f"--fail-{right}",
            )
        _require_in_range(gate, known[gate.metric])


def _require_in_range(gate: GateBound, facts: Facts) -> None:
    """Refuse a bound beyond what the metric can be: 5 for a share would hold, or fail, whatever is measured."""
    low, high = facts.range
    if math.isfinite(gate.bound) and gate.bound >= low and (high is None or gate.bound <= high):
        return
    to = "no limit" if high is None else f"{high:g}"
    raise ConfigError(f"a gate on {gate.metric!r} at {gate.bound:g}", expected=f"a bound from {low:g} to {to}")


def judge_gates(
    bounds: Iterable[GateBound], rows: Sequence[MetricRow], known: Mapping[str, Facts], *, gates_on: GatesOn = "value"
) -> list[Gate]:
    """Return every gate with its value and whether it holds.

    A gate fails if the value, or the interval that it asks for, is past the bound, missing, or flagged
    ``low_coverage``.

    Args:
        bounds: Checked by :func:`require_gates`.
        rows: Rows of the evaluation; only those of whole suites count.
        known: Facts of every metric by name.
        gates_on: Compare the value, or the worse end of its interval (the value itself where a metric has none by
            nature, such as a count).
    """
    whole = {row.name: row for row in rows if row.group is None}
    return [
        _judge(gate, whole.get(gate.metric), by_interval=gates_on == "bound" and known[gate.metric].interval != "none")
        for gate in bounds
    ]


def _judge(gate: GateBound, row: MetricRow | None, *, by_interval: bool) -> Gate:
    def failed(reason: str) -> Gate:
        return Gate(
            metric=gate.metric, bound=gate.bound, value=None if row is None else row.value, holds=False, reason=reason
        )

    if row is None:
        return failed("not measured")
    if row.value is None:
        return failed(row.reason or "no value")
    if "low_coverage" in row.flags:
        return failed("low coverage")
    value = row.value
    if by_interval:
        if row.interval is None:
            return failed(f"no interval: {row.reason}")
        value = row.interval.low if row.higher_is_better else row.interval.high
    holds = value >= gate.bound if row.higher_is_better else value <= gate.bound
    return Gate(
        metric=gate.metric, bound=gate.bound, value=value, holds=holds, reason=None if holds else "past the bound"
    )
