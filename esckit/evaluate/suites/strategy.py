"""The suite ``strategy``: next-strategy prediction, at gold decisions or on the main line of held-out search trees.

All metrics but ``accuracy_any`` and ``correct_of_all`` are functions of one confusion matrix C, rows predicted i and
columns gold j, over the S strategies of one taxonomy; N = ΣC.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, NonNegativeFloat, model_validator

from esckit.config.sections import Section
from esckit.errors import ConfigError, DataError, ModelError
from esckit.evaluate.suite import (
    STAGES,
    Case,
    CaseFile,
    Material,
    Player,
    Suite,
    Unit,
    Work,
    decisions,
    family_of_data,
    family_of_runs,
    stage_of,
)
from esckit.ledger import Ledger
from esckit.metrics.metric import RATIO, Array, Facts, Metric, Stats, Sums, Unscored, divide, not_estimated
from esckit.predict.run import Prediction, predicted
from esckit.records import digest
from esckit.report.compared import GOLD_LABELS
from esckit.roles.cast import Casting
from esckit.roles.pool import known_taxonomy
from esckit.strategies.taxonomy import Taxonomy
from esckit.types import Scenario, Turn, main_line

if TYPE_CHECKING:
    from esckit.evaluate.recipe import EvaluateRecipe
    from esckit.metrics.rows import Measurement, MetricRow

_log = logging.getLogger(__name__)


class StrategySettings(Section):
    """The suite ``strategy``: next-strategy prediction.

    Attributes:
        unit: Merged supporter turns, or every supporter utterance with a turn before it.
        source: Labels of the corpus, or the main line of held-out search trees.
        trees: Run folders of ``esckit search`` for ``source: expanded``.
        include_openings: With ``utterance``: also supporter utterances without a turn before them.
        exclude: Gold labels that are left out.
        bias_pseudo_count: Count added to every off-diagonal cell when the bias B is computed; flags it ``smoothed``.
    """

    unit: Literal["turn", "utterance"] = "turn"
    source: Literal["gold", "expanded"] = "gold"
    trees: tuple[str, ...] = ()
    include_openings: bool = False
    exclude: tuple[str, ...] = ()
    bias_pseudo_count: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.include_openings and self.unit != "utterance":
            raise ValueError("include_openings needs unit: utterance")
        if (self.source == "expanded") != bool(self.trees):
            raise ValueError("trees and source: expanded go together")
        return self


# ---------------------------------------------------------------- cases


class StrategyCase(Case):
    """One next-strategy prediction.

    Attributes:
        gold: Gold label (the first of a merged turn).
        gold_all: All labels of the merged turn; empty where the unit is the utterance.
        predicted: The predicted strategy in the taxonomy, None if unscored.
        probabilities: The strategist's distribution in taxonomy order, None if it gives none.
        turn: 0-based index among the supporter turns of the dialogue.
        n_turns: Supporter turns of the dialogue.
    """

    SCHEMA: ClassVar[str] = "esckit.case.strategy/1"
    ANSWERS: ClassVar[str] = "strategist"

    gold: str
    gold_all: tuple[str, ...] = ()
    predicted: str | None = None
    probabilities: tuple[float, ...] | None = None
    turn: int = Field(default=0, ge=0)
    n_turns: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _answered_or_not(self) -> Self:
        if (self.predicted is None) == (self.unscored is None):
            raise ValueError("a strategy case has either a prediction or a reason")
        return self


class Step(NamedTuple):
    """One decision and its gold.

    Attributes:
        gold: The label, None where the corpus has none.
        gold_all: All labels of a merged turn.
        turn: 0-based index among the supporter turns of the dialogue.
        n_turns: Supporter turns of the dialogue.
    """

    id: str
    scenario: Scenario
    turns: tuple[Turn, ...]
    gold: str | None
    gold_all: tuple[str, ...]
    turn: int
    n_turns: int


def strategy_work(material: Material) -> Work:
    """Return the cases of the suite.

    Raises:
        DataError: If there is none, or a tree cannot be used.
        ConfigError: If an excluded label is unknown, or nothing makes predictions.
    """
    recipe, settings = material.recipe, material.recipe.settings.strategy
    steps = list((_tree_steps if settings.source == "expanded" else _gold_steps)(material))
    taxonomy = strategy_taxonomy(material)
    excluded = {taxonomy.resolve(label).name for label in settings.exclude}
    kept = [step for step in steps if step.gold is not None and step.gold not in excluded]
    if not kept:
        raise DataError("no decision with a label", expected="at least one", hint="See data.split and strategy.exclude")
    predictions = material.predictions or {}
    from_file = any(entry.strategy is not None for entry in predictions.values())
    if not from_file and recipe.models.strategist is None:
        raise ConfigError("no strategy in the predictions file", expected="models.strategist, or lines with a strategy")
    if not from_file and predictions:
        _log.warning("no strategy in %s: models.strategist picks the strategies", recipe.predictions)

    n_unlabelled = sum(step.gold is None for step in steps)
    return Work(
        units=tuple(Unit(step.id, step.scenario.id, (step, predictions.get(step.id))) for step in kept),
        calls={} if from_file else {"strategist": len(kept)},
        given=from_file,
        roles=() if from_file else ("strategist",),
        left_out={"unlabelled": n_unlabelled, "excluded": len(steps) - n_unlabelled - len(kept)},
        conditions={GOLD_LABELS: digest({step.id: [step.gold, *step.gold_all] for step in kept})},
    )


def strategy_player(recipe: EvaluateRecipe, casting: Casting, from_file: bool) -> Player:
    """Return what makes a decision: the predictions file if it names strategies, else the strategist."""
    strategist = None if from_file else casting.strategist()

    async def play(unit: Unit) -> StrategyCase:
        step, prediction = unit.what
        if strategist is None:
            return _read_case(step, prediction, known_taxonomy(casting.taxonomy))
        ledger = Ledger(recipe.seed, step.id)
        try:
            found = await strategist.decide(step.scenario, step.turns, ledger.at("strategy"))
            case = _case(step, found.strategy, None, found.probabilities)
        except ModelError as error:
            case = _case(step, None, error.kind, None)
        return case.model_copy(update={"reasoning": ledger.thoughts()})

    return play


def strategy_taxonomy(material: Material) -> Taxonomy:
    """Return the taxonomy of the suite.

    Raises:
        ConfigError: If it cannot be known.
        DataError: If the trees have another one.
    """
    is_gold = material.recipe.settings.strategy.source == "gold"
    taxonomy = material.taxonomy if is_gold else material.tree_taxonomy
    if taxonomy is None:
        raise ConfigError("strategies of an unknown taxonomy", expected="taxonomy: NAME, or a labelled corpus")
    return taxonomy


def _gold_steps(material: Material) -> Iterator[Step]:
    settings = material.recipe.settings.strategy
    merged = settings.unit == "turn"
    for dialogue in (material.merged if merged else material.unmerged).dialogues:
        supporter = [position for position, turn in enumerate(dialogue.turns) if turn.speaker == "supporter"]
        for context in decisions(dialogue, merged=merged, openings=settings.include_openings):
            assert context.reference is not None
            reference, position = context.reference, int(context.id.rpartition("#")[2].removeprefix("m"))
            labels = tuple(part.strategy for part in reference.parts if part.strategy) or (
                (reference.strategy,) if reference.strategy else ()
            )
            yield Step(
                id=context.id,
                scenario=context.scenario,
                turns=context.turns,
                gold=reference.strategy,
                gold_all=tuple(dict.fromkeys(labels)) if merged else (),
                turn=supporter.index(position),
                n_turns=len(supporter),
            )


def _tree_steps(material: Material) -> Iterator[Step]:
    """Yield the decisions on the main line of search trees: at each node the child that was visited most is gold."""
    for tree in material.trees:
        line = main_line(tree)
        for number, (state, taken) in enumerate(pairwise(line)):
            yield Step(
                id=f"{tree.id}@{state.id}",
                scenario=tree.scenario,
                turns=tuple(turn for node in line[: number + 1] for turn in node.turns),
                gold=taken.strategy,
                gold_all=(taken.strategy,) if taken.strategy else (),
                turn=number,
                n_turns=len(line) - 1,
            )


def _read_case(step: Step, prediction: Prediction | None, taxonomy: Taxonomy) -> StrategyCase:
    """Return the case that a line of a predictions file makes; a label outside the taxonomy is unscored."""
    label = predicted(prediction, "strategy")
    if isinstance(label, Unscored):
        return _case(step, None, label.reason, None)
    known = taxonomy.find(label)
    if known is None:
        return _case(step, None, "unparsed", None)
    given = prediction.probabilities if prediction else None
    return _case(step, known.name, None, given if given and len(given) == len(taxonomy.names) else None)


def _case(step: Step, strategy: str | None, reason: str | None, probabilities: Sequence[float] | None) -> StrategyCase:
    assert step.gold is not None
    return StrategyCase(
        id=step.id,
        dialogue_id=step.scenario.id,
        unscored=reason,
        statistics={} if strategy is None else {"correct": (float(strategy == step.gold),)},
        gold=step.gold,
        gold_all=step.gold_all,
        predicted=strategy,
        probabilities=None if probabilities is None else tuple(probabilities),
        turn=step.turn,
        n_turns=step.n_turns,
    )


# ---------------------------------------------------------------- metrics

StrategyMetric = Metric[StrategyCase]

NOT_CONNECTED = "too few kinds of confusion to estimate B"


@dataclass(frozen=True, slots=True)
class StrategyScale:
    """What the metrics of one table share.

    Attributes:
        strategies: Names in taxonomy order.
        prefix: ``strategy`` for gold contexts, ``strategy_expanded`` for steps of search trees.
        merged: True if the unit is the merged turn, so that a turn may have several labels.
        pseudo_count: Added to every off-diagonal cell for B; flags it ``smoothed``.
    """

    strategies: tuple[str, ...]
    prefix: str = "strategy"
    merged: bool = True
    pseudo_count: float = 0.0

    def answer(self, case: StrategyCase) -> str | Unscored:
        """Return the prediction; a label outside the taxonomy is unscored, not Others.

        Raises:
            DataError: If the gold label is not in the taxonomy.
        """
        if case.gold not in self.strategies:
            raise DataError(f"gold label {case.gold!r} of case {case.id!r}", expected="a strategy of the taxonomy")
        if case.predicted is None:
            return Unscored(case.unscored or "missing")
        return case.predicted if case.predicted in self.strategies else Unscored("unparsed")

    def cell(self, case: StrategyCase) -> Stats | Unscored:
        """Return the case's one-hot confusion matrix, flat."""
        predicted = self.answer(case)
        if isinstance(predicted, Unscored):
            return predicted
        cells = [0.0] * len(self.strategies) ** 2
        cells[self.strategies.index(predicted) * len(self.strategies) + self.strategies.index(case.gold)] = 1.0
        return tuple(cells)

    def of_matrix(
        self, name: str, value: Callable[[Array], Array], *, proportion: bool = False, **facts: Any
    ) -> StrategyMetric:
        """Return a metric that is a function of the confusion matrix; ``proportion``: see :class:`Sums`."""
        n = len(self.strategies)
        sums = Sums(lambda sums: value(sums.reshape(-1, n, n)), proportion)
        return Metric(Facts(f"{self.prefix}.{name}", **facts), self.cell, sums)

    def correct(
        self, name: str, is_right: Callable[[StrategyCase, str], bool], *, counts_all: bool = False
    ) -> StrategyMetric:
        """Return a share of right predictions; ``counts_all`` takes an unscored case as wrong."""

        def collect(case: StrategyCase) -> Stats | Unscored:
            predicted = self.answer(case)
            if isinstance(predicted, Unscored):
                return Unscored(predicted.reason, (0.0, 1.0)) if counts_all else predicted
            return (float(is_right(case, predicted)), 1.0)

        accuracy = f"{self.prefix}.accuracy"
        return Metric(Facts(f"{self.prefix}.{name}", counts=("correct", "cases"), variant_of=accuracy), collect, RATIO)


def strategy_metrics(scale: StrategyScale) -> tuple[StrategyMetric, ...]:
    """Return the suite's metrics over all cases."""
    import numpy as np

    from esckit.metrics import confusion

    # Nothing is scored without any strategy; the ranges are then those of one.
    size = max(1, len(scale.strategies))
    log_size, two = float(np.log(size)), "2 labels in gold"
    bias = partial(confusion.bias, pseudo_count=scale.pseudo_count)
    entropy: dict[str, Any] = {"unit": "nats", "range": (0.0, log_size), "higher_is_better": None}
    untested: dict[str, Any] = {"higher_is_better": None, "test": "none"}
    b: dict[str, Any] = {
        "unit": "none", "range": (0.0, float(np.sqrt(size - 1))), "higher_is_better": False, "undefined": NOT_CONNECTED
    }  # fmt: skip
    of_matrix = scale.of_matrix
    any_label = scale.correct("accuracy_any", lambda case, predicted: predicted in (case.gold_all or (case.gold,)))
    return (
        of_matrix("accuracy", confusion.accuracy, proportion=True),
        *([any_label] if scale.merged else []),
        scale.correct("correct_of_all", lambda case, predicted: predicted == case.gold, counts_all=True),
        of_matrix("macro_f1", confusion.macro_f1, minimum=two),
        of_matrix("weighted_f1", confusion.weighted_f1, minimum=two),
        of_matrix("bias_b", bias, **b),
        of_matrix("bias_b_20", partial(bias, max_sweeps=20), variant_of=f"{scale.prefix}.bias_b", **b),
        of_matrix("entropy", lambda matrix: confusion.entropy_of(matrix.sum(axis=2)), **entropy),
        of_matrix("entropy_normalised", lambda matrix: confusion.entropy_of(matrix.sum(axis=2)) / log_size, **untested),
        of_matrix("gold_entropy", lambda matrix: confusion.entropy_of(matrix.sum(axis=1)), test="none", **entropy),
        of_matrix(
            "kl_gold",
            confusion.kl_gold,
            unit="nats",
            range=(0.0, None),
            higher_is_better=False,
            undefined="a predicted label never occurs in gold",
        ),
        of_matrix("majority_accuracy", confusion.majority_share, **untested),
        of_matrix("frequency_accuracy", confusion.frequency_share, **untested),
    )


def class_metrics(scale: StrategyScale, index: int) -> tuple[StrategyMetric, ...]:
    """Return precision, recall, F1 and support of one strategy; support 0 leaves recall undefined."""
    from esckit.metrics.confusion import f1_by_class

    return (
        scale.of_matrix(
            "precision",
            lambda matrix: divide(matrix[:, index, index], matrix[:, index].sum(axis=1)),
            proportion=True,
            minimum="1 prediction of it",
        ),
        scale.of_matrix(
            "recall",
            lambda matrix: divide(matrix[:, index, index], matrix[:, :, index].sum(axis=1)),
            proportion=True,
            minimum="1 gold case of it",
        ),
        scale.of_matrix("f1", lambda matrix: f1_by_class(matrix)[:, index], minimum="1 prediction or gold case of it"),
        scale.of_matrix(
            "support", lambda matrix: matrix[:, :, index].sum(axis=1), unit="cases", **not_estimated("a count")
        ),
    )


def strategy_rows(cases: Sequence[StrategyCase], scale: StrategyScale, measurement: Measurement) -> list[MetricRow]:
    """Return all rows of the suite: the whole, per class, per stage of the conversation."""
    metrics = strategy_metrics(scale)
    rows = []
    for metric in metrics:
        smoothed = scale.pseudo_count > 0 and "bias_b" in metric.name
        rows.append(measurement.row(metric, cases, flags=("smoothed",) if smoothed else ()))
    for index, name in enumerate(scale.strategies):
        rows += [measurement.row(metric, cases, group={"class": name}) for metric in class_metrics(scale, index)]
    by_stage = [metric for metric in metrics if metric.name.endswith((".accuracy", ".macro_f1"))]
    for stage in STAGES:
        chosen = [case for case in cases if stage_of(case.turn, case.n_turns) == stage]
        rows += [measurement.row(metric, chosen, group={"stage": stage}) for metric in by_stage]
    return rows


# ---------------------------------------------------------------- the suite


def _scale(recipe: EvaluateRecipe, strategies: Sequence[str]) -> StrategyScale:
    settings = recipe.settings.strategy
    is_gold = settings.source == "gold"
    return StrategyScale(
        tuple(strategies),
        prefix="strategy" if is_gold else "strategy_expanded",
        merged=is_gold and settings.unit == "turn",
        pseudo_count=settings.bias_pseudo_count,
    )


def _conditions(material: Material, cases: Mapping[str, str]) -> dict[str, Any]:
    shown = material.recipe.settings.strategy.model_dump(mode="json", exclude={"bias_pseudo_count"})
    return {"settings": shown, **cases, **material.labels(strategy_taxonomy(material))}


STRATEGY = Suite(
    name="strategy",
    roles=lambda recipe: ("strategist",),
    files=(
        CaseFile(
            name="strategy",
            kind=StrategyCase,
            work=strategy_work,
            prepare=strategy_player,
            metrics=lambda recipe, strategies: strategy_metrics(_scale(recipe, strategies)),
            rows=lambda recipe, strategies, cases, measurement: strategy_rows(
                cases, _scale(recipe, strategies), measurement
            ),
        ),
    ),
    conditions=_conditions,
    fields=lambda recipe: ("data",) if recipe.settings.strategy.source == "gold" else (),
    # Without trees the strategies of the corpus are gold.
    family=lambda material: family_of_runs(material.recipe.settings.strategy.trees) or family_of_data(material),
    sources=lambda recipe: {"predictions": recipe.predictions},
    taxonomy=strategy_taxonomy,
    reads_labels=lambda recipe: recipe.settings.strategy.source == "gold",
)
