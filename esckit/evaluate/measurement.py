"""From the cases of an evaluation to rows, comparisons and gates. Imports numpy; calls no model.

Everything here is computed from the records on disk, so that an evaluation can be recomputed from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from esckit.errors import ConfigError, DataError
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.evaluate.setup import GateBound, Setup
from esckit.metrics.metric import Facts
from esckit.metrics.rows import (
    Comparer,
    Comparison,
    Gate,
    Interval,
    Measurement,
    MetricRow,
    StatisticsSettings,
    with_holm,
)
from esckit.registry import did_you_mean

Files = Mapping[str, Sequence[Any]]
"""Cases by the name of their file."""


def statistics_of(recipe: EvaluateRecipe) -> StatisticsSettings:
    """Return how intervals are made."""
    wanted = recipe.statistics
    return StatisticsSettings(recipe.seed, wanted.resamples, wanted.level, wanted.min_coverage)


def known_metrics(recipe: EvaluateRecipe, strategies: Sequence[str]) -> dict[str, Facts]:
    """Return the facts of every whole-suite metric by name, before any case exists."""
    return {
        metric.name: metric.facts
        for suite in recipe.chosen
        for file in suite.files
        if file.is_wanted(recipe)
        for metric in file.metrics(recipe, strategies)
    }


def measure(setup: Setup, files: Files) -> list[MetricRow]:
    """Return all rows of an evaluation, file by file."""
    rows: list[MetricRow] = []
    for suite, file, _ in setup.parts:
        cases = files[file.name]
        measurement = Measurement.over(
            suite.name,
            (case.dialogue_id for case in cases),
            statistics_of(setup.recipe),
            setup.flags.get(suite.name, ()),
        )
        rows += file.rows(setup.recipe, setup.strategies, cases, measurement)
    return rows


def compare(setup: Setup, files: Files, others: Files, *, other: str, tests: bool) -> list[Comparison]:
    """Return the comparison of two runs on the files that both have, Holm-adjusted suite by suite.

    Args:
        setup: Of the run under test.
        files: Its cases.
        others: Cases of the other run.
        other: Its name.
        tests: False prints both values without interval and p.

    Raises:
        DataError: If they have no file in common.
    """
    parts = [part for part in setup.parts if part.file.name in others]
    if not parts:
        raise DataError(
            f"{other} has none of the suites {', '.join(files)}", expected="a run of 'evaluate' with one of them"
        )
    by_suite: dict[str, list[Comparison]] = {}
    variants: dict[str, str] = {}
    for suite, file, _ in parts:
        cases, theirs = files[file.name], others[file.name]
        dialogue_ids = (case.dialogue_id for case in cases)
        comparer = Comparer.over(suite.name, dialogue_ids, statistics_of(setup.recipe), other=other)
        for metric in file.metrics(setup.recipe, setup.strategies):
            by_suite.setdefault(suite.name, []).append(comparer.compare(metric, cases, theirs, tests=tests))
            if metric.facts.variant_of:
                variants[metric.name] = metric.facts.variant_of
    return [entry for found in by_suite.values() for entry in with_holm(found, variants)]


# ---------------------------------------------------------------- gates


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


def judge_gates(
    bounds: Iterable[GateBound], rows: Sequence[MetricRow], known: Mapping[str, Facts], *, gates_on: str = "value"
) -> list[Gate]:
    """Return every gate with its value and whether it holds.

    A gate fails if the value, or the interval that it asks for, is past the bound, missing, or flagged
    ``low_coverage``.

    Args:
        bounds: Checked by :func:`require_gates`.
        rows: Rows of the evaluation; only those of whole suites count.
        known: Facts of every metric by name.
        gates_on: Compare the ``value``, or with ``bound`` the worse end of its interval (the value itself where a
            metric has no interval by nature, such as a count).
    """
    whole = {row.name: row for row in rows if row.group is None}
    found = []
    for gate in bounds:
        row = whole.get(gate.metric)
        value, reason = _gated(row, by_interval=gates_on == "bound" and known[gate.metric].interval != "none")
        if row is not None and value is not None and reason is None:
            holds = value >= gate.bound if row.higher_is_better else value <= gate.bound
            reason = None if holds else "past the bound"
        found.append(Gate(metric=gate.metric, bound=gate.bound, value=value, holds=reason is None, reason=reason))
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
