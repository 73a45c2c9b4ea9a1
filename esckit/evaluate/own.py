"""Metrics of a user's own, named in a recipe as ``module:attr``.

Two kinds of object are taken. A function of a case returns a number from 0 to 1, or None where the case has no value;
its metric is the mean, with an interval over dialogues. A :class:`~esckit.metrics.metric.Metric` has facts, statistics
and an estimator of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from esckit.errors import ConfigError
from esckit.evaluate.suite import Case, CaseFile
from esckit.metrics.metric import RATIO, Facts, Metric, Stats, Unscored
from esckit.registry import load_attr, own_code

if TYPE_CHECKING:
    from esckit.evaluate.recipe import EvaluateRecipe


def metrics_of(file: CaseFile, recipe: EvaluateRecipe, strategies: Sequence[str]) -> list[Metric[Any]]:
    """Return the metrics over all cases of a file: those that ship, then those that the recipe names.

    Raises:
        ConfigError: If a named object is no metric, or two metrics have one name.
    """
    return [*file.metrics(recipe, strategies), *own_metrics(file, recipe, strategies)]


def own_metrics(file: CaseFile, recipe: EvaluateRecipe, strategies: Sequence[str]) -> list[Metric[Any]]:
    """Return the metrics of a file that the recipe names; raises as :func:`metrics_of` does."""
    taken = {metric.name for metric in file.metrics(recipe, strategies)}
    found = []
    for target in recipe.metrics.get(file.name, ()):
        metric = _metric(file.name, target)
        if metric.name in taken:
            raise ConfigError(
                f"metrics.{file.name}: {target!r} is a second {metric.name!r}", expected="a name of its own"
            )
        taken.add(metric.name)
        found.append(metric)
    return found


def _metric(file: str, target: str) -> Metric[Any]:
    named = load_attr(target)
    if isinstance(named, Metric):
        if not named.name.startswith(f"{file}."):
            raise ConfigError(f"metrics.{file}: the metric {named.name!r} of {target!r}", expected=f"a name {file}.…")
        return named
    if not callable(named):
        raise ConfigError(f"metrics.{file}: {target!r} is {type(named).__name__}", expected="a Metric, or a function")
    name = f"{file}.{target.rpartition(':')[2].rpartition('.')[2]}"
    return Metric(Facts(name, minimum="1 case with a value"), _mean_of(named, target), RATIO)


def _mean_of(function: Callable[[Any], Any], target: str) -> Callable[[Case], Stats | Unscored]:
    """Return what a case adds to the mean of a function over the cases that were answered."""

    def collect(case: Case) -> Stats | Unscored:
        if case.unscored is not None:
            return Unscored(case.unscored)
        with own_code(f"the metric {target!r}"):
            value = function(case)
        if value is None:
            return Unscored("missing")
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            shown = f"{value:g}" if isinstance(value, int | float) else type(value).__name__
            raise ConfigError(
                f"the metric {target!r} gave {shown} for case {case.id}",
                expected="a number from 0 to 1, or None; name a Metric for other ranges (docs/extending.md)",
            )
        return (float(value), 1.0)

    return collect
