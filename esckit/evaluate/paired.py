"""Paired tests between several evaluations, from the cases in their folders: no model, corpus or checkpoint is read.

What is computed for each pair is what ``evaluate --against`` computes (:class:`esckit.metrics.rows.Comparer`); Holm's
adjustment is over all tests of a comparison.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from esckit.errors import ConfigError, DataError
from esckit.evaluate.own import metrics_of
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.evaluate.setup import Conditions, require_comparable
from esckit.evaluate.suite import CaseFile
from esckit.evaluate.suites.world import policy_episodes
from esckit.metrics.metric import Metric, suite_measuring
from esckit.metrics.rows import Comparer, Comparison, asked_once, holm_adjusted
from esckit.play.unit_file import latest
from esckit.registry import did_you_mean
from esckit.report.compared import Compared, System, conditions_of, without_labels
from esckit.report.source import Run, section

log = logging.getLogger(__name__)


def recipe_of(run: Run) -> EvaluateRecipe:
    """Return the recipe of an evaluation.

    Raises:
        DataError: If this version does not know it.
    """
    try:
        return EvaluateRecipe.model_validate(dict(run.recipe))
    except ValidationError as error:
        raise DataError("a recipe that this version does not know", path=str(run.path)) from error


def require_alike(runs: Mapping[str, Run], metrics: Sequence[str], *, hint: str) -> None:
    """Require that runs met the same cases under the same conditions in the suites of some metrics.

    Args:
        runs: The runs by name; all are held against one of them.
        metrics: Full names.
        hint: What the user can do.

    Raises:
        DataError: If anything differs; the message names the fields, with both values.
    """
    suites = {suite_measuring(name) for name in metrics}
    for name, run in runs.items():
        known = section(run.manifest, "conditions")
        if lacking := sorted(suites - known.keys()):
            raise DataError(
                f"{name} without the suite {', '.join(lacking)}",
                expected=f"--metrics of the suites {', '.join(known)}" if known else "a run that names its conditions",
                hint=hint,
            )
    # Runs of an earlier version do not tell their labels, so that two of others could differ beside one of them.
    unknown = without_labels(runs, metrics)
    basis = next((name for name in runs if name not in unknown), next(iter(runs)))
    for name in (name for name in runs if name != basis):
        sides = [Conditions(conditions_of(run, metrics), run.manifest) for run in (runs[basis], runs[name])]
        require_comparable(*sides, other=name, hint=f"Here is {basis}, there is {name}. {hint}")


def with_tests(found: Compared, baseline: str) -> Compared:
    """Return a comparison with paired tests of every system against one of them; policies for reference take no part.

    Runs whose cases or recipe cannot be read any more are shown without tests, with the reason.

    Args:
        found: Systems that were evaluated under the same conditions.
        baseline: Name of one of them; of a policy with or without its brackets.

    Raises:
        ConfigError: If no system has this name.
    """
    basis = found.system(baseline) or found.system(f"({baseline})")
    if basis is None:
        names = [system.name for system in found.systems]
        raise ConfigError(
            f"no system {baseline!r} to test against",
            expected=f"one of {', '.join(names)}",
            hint=did_you_mean(baseline, names) or None,
        )
    others = [system for system in found.systems if not system.is_reference and system is not basis]
    try:
        theirs = _Played.of(basis)
        pairs = [
            (system.name, each)
            for system in others
            for each in _pair(_Played.of(system), theirs, found.metrics, other=basis.name)
        ]
    except DataError as error:
        log.warning("no tests against %s: %s", basis.name, error.headline)
        return replace(found, remarks=(*found.remarks, f"Not tested: {error.headline}."))
    adjusted = holm_adjusted([each for _, each in pairs])
    tests = {(system, each.name): each for (system, _), each in zip(pairs, adjusted, strict=True)}
    return replace(found, baseline=basis.name, tests=tests)


@dataclass(frozen=True, slots=True)
class _Played:
    """A system with what its cases are read with."""

    system: System
    recipe: EvaluateRecipe
    strategies: tuple[str, ...]

    @classmethod
    def of(cls, system: System) -> _Played:
        run = system.run
        # Rows by class are in the order of the taxonomy, and name all of it.
        classes = [section(row, "group").get("class") for row in run.metric_rows]
        return cls(system, recipe_of(run), tuple(dict.fromkeys(str(name) for name in classes if name is not None)))

    def files(self) -> Iterator[tuple[str, CaseFile]]:
        for suite in self.recipe.chosen:
            for file in suite.files:
                if file.is_wanted(self.recipe):
                    yield suite.name, file

    def cases(self, file: CaseFile) -> Sequence[Any]:
        """Return the cases of the system in a file.

        Raises:
            DataError: If the file is not there or holds something else.
        """
        path = self.system.run.path / file.path
        found: list[Any] = list(latest(path, file.kind).values())
        if not found:
            raise DataError("no cases to test with", path=str(path), expected="the file that evaluate wrote")
        if self.system.policy is None:
            return found
        return policy_episodes(self.recipe, self.system.policy, found)


def _pair(ours: _Played, theirs: _Played, names: Sequence[str], *, other: str) -> list[Comparison]:
    """Return the comparisons of two systems on the metrics that both can have."""
    found: list[Comparison] = []
    variants: dict[str, str] = {}
    for suite, file in ours.files():
        metrics: list[Metric[Any]] = [
            metric for metric in metrics_of(file, ours.recipe, ours.strategies) if metric.name in names
        ]
        if not metrics:
            continue
        cases, other_cases = ours.cases(file), theirs.cases(file)
        ids = (case.dialogue_id for case in cases)
        comparer = Comparer.over(suite, ids, ours.recipe.seed, ours.recipe.statistics, other=other)
        found += [comparer.compare(metric, cases, other_cases) for metric in metrics]
        variants |= {metric.name: basis for metric in metrics if (basis := metric.facts.variant_of)}
    return asked_once(found, variants)
