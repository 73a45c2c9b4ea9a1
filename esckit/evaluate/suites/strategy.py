"""The suite ``strategy``: what a strategist takes at gold decisions, or on the main line of held-out search trees."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from esckit.errors import ConfigError, DataError, ModelError
from esckit.evaluate.cases import StrategyCase
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.evaluate.suites.suite import (
    Done,
    Material,
    Player,
    Predictions,
    Prepare,
    Unit,
    Work,
    decisions,
    has_strategies,
)
from esckit.ledger import Ledger
from esckit.records import read_records
from esckit.roles.cast import Casting
from esckit.strategies.taxonomy import Taxonomy, kept_taxonomy, load_taxonomy
from esckit.trees import main_line
from esckit.types import Scenario, SearchTree, Turn

if TYPE_CHECKING:
    from esckit.predict.predictions import Prediction


log = logging.getLogger(__name__)


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


def strategy_work(recipe: EvaluateRecipe, material: Material, predictions: Predictions | None) -> Work:
    """Return the cases of the suite.

    Raises:
        DataError: If there is none, or a tree cannot be used.
        ConfigError: If an excluded label is unknown, or nothing makes predictions.
    """
    settings = recipe.settings.strategy
    steps = list(tree_steps(settings.trees)) if settings.source == "expanded" else list(_gold_steps(recipe, material))
    taxonomy = strategy_taxonomy(recipe, material)
    excluded = {taxonomy.resolve(label).name for label in settings.exclude}
    kept = [step for step in steps if step.gold is not None and step.gold not in excluded]
    if not kept:
        raise DataError("no decision with a label", expected="at least one", hint="See data.split and strategy.exclude")
    from_file = has_strategies(predictions)
    if not from_file and recipe.models.strategist is None:
        raise ConfigError("no strategy in the predictions file", expected="models.strategist, or lines with a strategy")
    if not from_file and predictions is not None:
        log.warning("no strategy in %s: models.strategist picks the strategies", recipe.predictions)
    unlabelled = sum(step.gold is None for step in steps)
    return Work(
        suite="strategy",
        file="strategy",
        kind=StrategyCase,
        units=tuple(Unit(step.id, step.scenario.id, step) for step in kept),
        calls={} if from_file else {"strategist": len(kept)},
        prepare=_from_file(predictions, taxonomy) if from_file and predictions is not None else _from_model(recipe),
        roles=() if from_file else ("strategist",),
        left_out={"unlabelled": unlabelled, "excluded": len(steps) - unlabelled - len(kept)},
    )


def strategy_taxonomy(recipe: EvaluateRecipe, material: Material) -> Taxonomy:
    """Return the taxonomy of the suite.

    Raises:
        ConfigError: If it cannot be known.
    """
    if recipe.settings.strategy.source == "gold":
        taxonomy = material.taxonomy
    else:
        folders = [path if path.is_dir() else path.parent for path in map(Path, recipe.settings.strategy.trees)]
        names = {tree.taxonomy for tree in _trees(recipe.settings.strategy.trees)}
        wanted = load_taxonomy(recipe.taxonomy).name if recipe.taxonomy else next(iter(names))
        if len(names) > 1 or wanted not in names:
            raise DataError(f"trees of taxonomy {', '.join(sorted(names))}", expected=recipe.taxonomy or "one taxonomy")
        taxonomy = kept_taxonomy(wanted, *folders)
    if taxonomy is None:
        raise ConfigError("strategies of an unknown taxonomy", expected="taxonomy: NAME, or a labelled corpus")
    return taxonomy


def _gold_steps(recipe: EvaluateRecipe, material: Material) -> Iterator[Step]:
    settings = recipe.settings.strategy
    merged = settings.unit == "turn"
    for dialogue in (material.merged if merged else material.unmerged).dialogues:
        spoken = [position for position, turn in enumerate(dialogue.turns) if turn.speaker == "supporter"]
        place = {id_of: number for number, id_of in enumerate(spoken)}
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
                turn=place[position],
                n_turns=len(spoken),
            )


def tree_steps(folders: Iterable[str]) -> Iterator[Step]:
    """Yield the decisions on the main line of search trees: at each node the child that was visited most is gold."""
    for tree in _trees(folders):
        line = main_line(tree)
        for number, (state, taken) in enumerate(pairwise(line)):
            turns = tuple(turn for node in line[: number + 1] for turn in node.turns)
            yield Step(
                id=f"{tree.id}@{state.id}",
                scenario=tree.scenario,
                turns=turns,
                gold=taken.strategy,
                gold_all=(taken.strategy,) if taken.strategy else (),
                turn=number,
                n_turns=len(line) - 1,
            )


def _trees(folders: Iterable[str]) -> Iterator[SearchTree]:
    for name in folders:
        path = Path(name)
        source = path / "trees.jsonl" if path.is_dir() else path
        yield from (tree for tree in read_records(SearchTree, source) if tree.status == "complete")


def _case(step: Step, strategy: str | None, reason: str | None, probabilities: Sequence[float] | None) -> StrategyCase:
    assert step.gold is not None
    return StrategyCase(
        id=step.id,
        dialogue_id=step.scenario.id,
        unscored=reason if strategy is None else None,
        statistics={} if strategy is None else {"correct": (float(strategy == step.gold),)},
        gold=step.gold,
        gold_all=step.gold_all,
        predicted=strategy,
        probabilities=None if probabilities is None else tuple(probabilities),
        turn=step.turn,
        n_turns=step.n_turns,
    )


def _from_model(recipe: EvaluateRecipe) -> Prepare:
    def prepare(casting: Casting, done: Done) -> Player:
        strategist = casting.strategist()

        async def play(unit: Unit) -> StrategyCase:
            step: Step = unit.what
            ledger = Ledger(recipe.seed, step.id)
            try:
                found = await strategist.decide(step.scenario, step.turns, ledger.at("strategy"))
                case = _case(step, found.strategy, None, found.probabilities)
            except ModelError as error:
                case = _case(step, None, error.kind, None)
            return case.model_copy(update={"reasoning": ledger.thoughts()})

        return play

    return prepare


def _from_file(predictions: Predictions, taxonomy: Taxonomy) -> Prepare:
    def prepare(casting: Casting, done: Done) -> Player:
        async def play(unit: Unit) -> StrategyCase:
            return read_strategy(unit.what, predictions.get(unit.id), taxonomy)

        return play

    return prepare


def read_strategy(step: Step, prediction: Prediction | None, taxonomy: Taxonomy) -> StrategyCase:
    """Return the case that a line of a predictions file makes; a label outside the taxonomy is unscored."""
    from esckit.metrics.metric import Unscored
    from esckit.predict.predictions import predicted_label

    label = predicted_label(prediction)
    if isinstance(label, Unscored):
        return _case(step, None, label.reason, None)
    known = taxonomy.find(label)
    if known is None:
        return _case(step, None, "unparsed", None)
    given = prediction.probabilities if prediction else None
    return _case(step, known.name, None, given if given and len(given) == len(taxonomy.names) else None)
