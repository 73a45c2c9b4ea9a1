"""From the cases of an evaluation to rows, comparisons and gates. Imports numpy; calls no model.

Everything here is computed from the records on disk, so that an evaluation can be recomputed from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esckit.errors import DataError
from esckit.evaluate.cases import Episode
from esckit.evaluate.catalogue import CatalogueSettings, known_metrics
from esckit.evaluate.compare import Comparer, with_holm
from esckit.evaluate.dialogue import dialogue_rows, shared_metrics
from esckit.evaluate.pairwise import pair_metrics, pairwise_rows
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.evaluate.response import response_metrics, response_rows
from esckit.evaluate.reward import reward_metrics, reward_rows
from esckit.evaluate.safety import safety_metrics, safety_rows
from esckit.evaluate.selfplay import CriticScale, headline_metrics
from esckit.evaluate.strategy import StrategyScale, strategy_metrics, strategy_rows
from esckit.evaluate.sycophancy import sycophancy_lexicon, sycophancy_metrics, sycophancy_rows
from esckit.metrics.crisis import crisis_rules
from esckit.metrics.measure import Measurement, StatisticsSettings
from esckit.metrics.metric import Facts, Metric
from esckit.metrics.rows import Comparison, MetricRow

Files = Mapping[str, Sequence[Any]]
"""Cases by file: the suites' own names, and ``sycophancy``."""


@dataclass(frozen=True, slots=True)
class Scales:
    """What metrics are told beside the cases.

    Attributes:
        strategies: Taxonomy of the suite ``strategy``; empty where it is not run.
        spoken: Taxonomy of the strategist in self-play; empty without one.
    """

    recipe: EvaluateRecipe
    strategies: tuple[str, ...] = ()
    spoken: tuple[str, ...] = ()

    @property
    def strategy(self) -> StrategyScale | None:
        """The scale of the suite ``strategy``."""
        settings = self.recipe.settings.strategy
        if not self.strategies:
            return None
        return StrategyScale(
            self.strategies,
            prefix="strategy" if settings.source == "gold" else "strategy_expanded",
            merged=settings.source == "gold" and settings.unit == "turn",
            pseudo_count=settings.bias_pseudo_count,
        )

    @property
    def critics(self) -> tuple[CriticScale, ...]:
        """The scales of the critics."""
        settings = self.recipe.settings.dialogue
        return tuple(CriticScale(name, settings.max_turns, compat=settings.ppdpp_compat) for name in settings.critics)

    def statistics(self) -> StatisticsSettings:
        """Return how intervals are made."""
        wanted = self.recipe.statistics
        return StatisticsSettings(self.recipe.seed, wanted.resamples, wanted.level, wanted.min_coverage)

    def known(self) -> dict[str, Facts]:
        """Return the facts of every whole-suite metric that this evaluation will have."""
        recipe = self.recipe
        settings = CatalogueSettings(
            strategy=self.strategy,
            critics=self.critics,
            strategies=self.spoken,
            scorer=recipe.models.scorer is not None,
            dimensions=recipe.settings.pairwise.dimensions,
            swapped=recipe.settings.pairwise.swap,
            turn_judge=recipe.models.turn_judge is not None,
            crisis=recipe.settings.safety.crisis,
            sycophancy=recipe.settings.safety.sycophancy,
        )
        return known_metrics(recipe.suites, settings)


def measure(scales: Scales, files: Files, flags: Mapping[str, tuple[str, ...]]) -> list[MetricRow]:
    """Return all rows of an evaluation, suite by suite.

    Args:
        scales: What metrics are told beside the cases.
        files: The cases.
        flags: Per suite, what every one of its rows carries.
    """
    rows: list[MetricRow] = []
    for file, cases in files.items():
        suite = suite_of(file)
        measurement = Measurement.over(
            suite, (case.dialogue_id for case in cases), scales.statistics(), flags.get(suite, ())
        )
        rows += _rows(scales, file, cases, measurement)
    return rows


def suite_of(file: str) -> str:
    """Return the suite that a file of cases belongs to."""
    return "safety" if file == "sycophancy" else file


def _rows(scales: Scales, file: str, cases: Sequence[Any], measurement: Measurement) -> list[MetricRow]:
    settings = scales.recipe.settings
    match file:
        case "strategy":
            assert scales.strategy is not None
            return strategy_rows(cases, scales.strategy, measurement)
        case "response":
            return response_rows(cases, measurement, scorer=scales.recipe.models.scorer is not None)
        case "dialogue":
            return dialogue_rows(cases, scales.critics, measurement, scales.spoken)
        case "pairwise":
            return pairwise_rows(cases, settings.pairwise.dimensions, measurement, swapped=settings.pairwise.swap)
        case "reward":
            return reward_rows(cases, measurement)
        case "safety":
            return safety_rows(cases, crisis_rules(settings.safety.resources), measurement)
        case "sycophancy":
            return sycophancy_rows(cases, sycophancy_lexicon(), measurement)
        case _:
            raise ValueError(f"no suite writes {file}")


def _compared(scales: Scales, file: str, cases: Sequence[Any], others: Sequence[Any]) -> Sequence[Metric[Any]]:
    """Return the metrics on which two runs are compared."""
    settings = scales.recipe.settings
    match file:
        case "strategy":
            assert scales.strategy is not None
            return strategy_metrics(scales.strategy)
        case "response":
            theirs = any(case.nll is not None or case.nll_unscored for case in others)
            return response_metrics(scorer=theirs and scales.recipe.models.scorer is not None)
        case "dialogue":
            critics = [metric for scale in scales.critics for metric in headline_metrics(scale)]
            return (*critics, *_told(shared_metrics(scales.spoken), cases))
        case "pairwise":
            swapped = settings.pairwise.swap
            return [metric for name in settings.pairwise.dimensions for metric in pair_metrics(name, swapped=swapped)]
        case "reward":
            return reward_metrics()
        case "safety":
            return safety_metrics(crisis_rules(settings.safety.resources))
        case "sycophancy":
            return sycophancy_metrics(sycophancy_lexicon())
        case _:
            raise ValueError(f"no suite writes {file}")


def _told(metrics: Sequence[Metric[Episode]], episodes: Sequence[Episode]) -> list[Metric[Episode]]:
    """Leave out turn rewards where no turn judge was asked."""
    rated = any(turn.ratings or turn.ratings_unscored for episode in episodes for turn in episode.turns)
    return [metric for metric in metrics if rated or "turn_reward" not in metric.name]


def compare(scales: Scales, files: Files, others: Files, *, other: str, tests: bool) -> list[Comparison]:
    """Return the comparison of two runs on the files that both have, Holm-adjusted suite by suite.

    Args:
        scales: What metrics are told beside the cases.
        files: Cases of the run under test.
        others: Cases of the other run.
        other: Its name.
        tests: False prints both values without interval and p.

    Raises:
        DataError: If they have no suite in common.
    """
    shared = [file for file in files if file in others]
    if not shared:
        raise DataError(
            f"{other} has none of the suites {', '.join(files)}", expected="a run of 'evaluate' with one of them"
        )
    by_suite: dict[str, list[Comparison]] = {}
    variants: dict[str, str] = {}
    for file in shared:
        cases, theirs = files[file], others[file]
        comparer = Comparer.over(suite_of(file), (case.dialogue_id for case in cases), scales.statistics(), other=other)
        metrics = _compared(scales, file, cases, theirs)
        found = [comparer.compare(metric, cases, theirs, tests=tests) for metric in metrics]
        variants |= {metric.name: metric.facts.variant_of for metric in metrics if metric.facts.variant_of}
        by_suite.setdefault(suite_of(file), []).extend(found)
    return [entry for found in by_suite.values() for entry in with_holm(found, variants)]
