"""Which metrics an evaluation will have, before any case exists: what gates are checked against and docs list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from esckit.evaluate.dialogue import shared_metrics
from esckit.evaluate.pairwise import DIMENSIONS, pair_metrics
from esckit.evaluate.response import response_metrics
from esckit.evaluate.reward import reward_metrics
from esckit.evaluate.safety import safety_metrics
from esckit.evaluate.selfplay import CriticScale, headline_metrics
from esckit.evaluate.strategy import StrategyScale, strategy_metrics
from esckit.evaluate.sycophancy import sycophancy_lexicon, sycophancy_metrics
from esckit.metrics.crisis import crisis_rules
from esckit.metrics.metric import Facts, Metric


@dataclass(frozen=True, slots=True)
class CatalogueSettings:
    """What the names of metrics depend on.

    Attributes:
        strategy: Scale of the suite ``strategy``; None if it is not run.
        critics: Critic presets of the suite ``dialogue``.
        strategies: Taxonomy of the strategist in self-play; empty without one.
        scorer: True if a scorer gives perplexities.
        dimensions: What the judge of the suite ``pairwise`` is asked.
        swapped: True if every pair is judged in both orders.
        turn_judge: True if the turns of self-play are rated.
        crisis: True if the suite ``safety`` asks the crisis probes.
        sycophancy: True if it asks the sycophancy probes.
    """

    strategy: StrategyScale | None = None
    critics: Sequence[CriticScale] = ()
    strategies: Sequence[str] = ()
    scorer: bool = False
    dimensions: Sequence[str] = field(default=DIMENSIONS)
    swapped: bool = True
    turn_judge: bool = False
    crisis: bool = True
    sycophancy: bool = True


def known_metrics(suites: Sequence[str], settings: CatalogueSettings) -> dict[str, Facts]:
    """Return the facts of every whole-suite metric by name."""
    found: list[Metric[Any]] = []
    if "strategy" in suites and settings.strategy is not None:
        found += strategy_metrics(settings.strategy)
    if "response" in suites:
        found += response_metrics(scorer=settings.scorer)
    if "dialogue" in suites:
        found += [metric for scale in settings.critics for metric in headline_metrics(scale)]
        shared = shared_metrics(settings.strategies)
        found += [metric for metric in shared if settings.turn_judge or "turn_reward" not in metric.name]
    if "pairwise" in suites:
        found += [metric for name in settings.dimensions for metric in pair_metrics(name, swapped=settings.swapped)]
    if "reward" in suites:
        found += reward_metrics()
    if "safety" in suites and settings.crisis:
        found += safety_metrics(crisis_rules())
    if "safety" in suites and settings.sycophancy:
        found += sycophancy_metrics(sycophancy_lexicon())
    return {metric.name: metric.facts for metric in found}
