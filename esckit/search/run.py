"""``esckit search``: from seed dialogues to strategy trees (AFlow, arXiv 2602.08826).

The run folder holds ``trees.jsonl`` (appended as trees finish, sorted at the end), ``failures.jsonl``,
``metrics.jsonl`` (timings only), ``summary.json`` (the forest in numbers: size, shape, outcomes, returns, strategies,
failures) and, if asked for, ``rollouts.jsonl``. With the scripted model all but the timings are the same bytes for
every concurrency and whatever interrupted the run. How a tree grows stands in :mod:`esckit.search.mcts`.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from esckit.config.sections import CHANGES_NO_ANSWER, Checkpoint, WorldBinding, calls_of_models
from esckit.data.contexts import Seed, cut_seed
from esckit.data.selection import Selection, select_dialogues
from esckit.errors import DataError
from esckit.ledger import derive_seed, uniform
from esckit.lineage import require_runs
from esckit.models.checkpoint import kind_of
from esckit.play.executor import UnitPlayers
from esckit.play.forecast import Staged, StagedFile
from esckit.play.pilot import Pilot
from esckit.play.places import executing
from esckit.play.runner import (
    SUMMARY,
    FailureRate,
    NoProgress,
    Plan,
    RunResult,
    play_units,
    played_inputs,
    playing,
)
from esckit.play.unit_file import Numbers, UnitFile
from esckit.protocols import Progress
from esckit.records import Line, read_lines, record_of, write_json, write_records
from esckit.roles.cast import Casting, prompt_ids, world_name
from esckit.roles.players import AFlowSeeker
from esckit.roles.pool import ModelPool, look_up, require_checkpoints
from esckit.roles.rehearsal import answers
from esckit.roles.rubric import check_weights, load_rubric
from esckit.search.expansion import Players, Rollout
from esckit.search.linear import score_linear
from esckit.search.mcts import grow_tree
from esckit.search.recipe import SearchRecipe
from esckit.search.summary import summarise
from esckit.search.tree import Provenance, Task
from esckit.sequences import Computed
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import Dialogue, Failure, Record, SearchTree

TREES = "trees.jsonl"
ROLLOUTS = "rollouts.jsonl"
MIN_TREES_FOR_RATE = 20


class FailedCall(Record):
    """A line of ``failures.jsonl``: a failure and the tree that it happened in."""

    tree: str
    failure: Failure


def plan(recipe: SearchRecipe) -> Plan:
    """Return what a run of the recipe would do, without any model.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    selection, (_, tasks) = _tasks(recipe)
    provenance = provenance_of(recipe)
    require_checkpoints(recipe.models.bindings(), provenance.taxonomy)
    check_weights(recipe.critic.weights, load_rubric(recipe.critic.rubric))
    counts = {"dialogues": len(selection.dialogues), "trees": len(tasks)}
    simulations = 0 if recipe.search.mode == "linear" else len(tasks) * recipe.mcts.n_simulations
    calls = calls_of_models(_calls_at_most(recipe, tasks), recipe.models.bindings())
    says = answers(provenance.taxonomy, raters=("critic",), rubric=recipe.critic.rubric)
    staged = Staged(recipe, cast, (provenance,), {TREES: StagedFile(len(tasks), tasks.__getitem__, calls)}, says)
    return Plan({**counts, "simulations": simulations}, calls, staged)


def _calls_at_most(recipe: SearchRecipe, tasks: Sequence[Task]) -> dict[str, int]:
    passes = len(recipe.critic.weights) if recipe.critic.readout == "expected" else 1
    if recipe.search.mode == "linear":
        longest = recipe.mcts.max_depth + recipe.mcts.rollout_turns
        spoken = sum(min(sum(turn.speaker == "supporter" for turn in task.rest), longest) for task in tasks)
        return {"critic": spoken * passes, "strategist": len(tasks) * recipe.mcts.max_depth}
    simulations = len(tasks) * recipe.mcts.n_simulations
    exchanges = simulations * (1 + recipe.mcts.rollout_turns)
    priors = simulations * max(1, recipe.mcts.rollout_turns) + len(tasks)
    return {"supporter": exchanges, "seeker": exchanges, "critic": exchanges * passes, "strategist": priors}


def run(recipe: SearchRecipe, *, out: Path, progress: Progress | None = None, pilot: int | None = None) -> RunResult:
    """Grow every tree of the recipe that is not in the run folder yet.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        progress: Shows how far the run is.
        pilot: Play so many units only, and estimate what the rest will take.

    Raises:
        EsckitError: See :mod:`esckit.errors`; what is done stays on disk.
        PilotPlayed: When the pilot is played.
    """
    selection, tasks = _tasks(recipe)
    return asyncio.run(_run(recipe, selection, tasks, out, progress or NoProgress(), pilot))


def known_inputs(recipe: SearchRecipe) -> dict[str, Any]:
    """Return what a run of the recipe is known by beside the recipe.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    provenance = provenance_of(recipe)
    inputs = _inputs(_tasks(recipe)[0], provenance)
    return played_inputs(inputs, recipe.models.bindings().values(), provenance.taxonomy)


def _inputs(selection: Selection, provenance: Provenance) -> dict[str, Any]:
    return {"data": selection.facts(), "prompts": provenance.prompts, "prior_source": provenance.prior_source}


class Tasks(NamedTuple):
    """The trees to grow in load order, each cut from its dialogue when it is asked for, and their ids."""

    ids: Computed[str]
    tasks: Computed[Task]


def _tasks(recipe: SearchRecipe) -> tuple[Selection, Tasks]:
    """Return the trees to grow, after looking up everything that the recipe names and cutting every dialogue once."""
    require_runs(recipe)
    look_up(recipe.models.bindings().values())
    provenance_of(recipe)
    linear = recipe.search.mode == "linear"
    selection = select_dialogues(recipe.data, taxonomy=recipe.taxonomy if linear else None)
    per_dialogue = 1 if linear else recipe.mcts.trees_per_scenario

    def cut(dialogue: Dialogue, number: int = 0) -> Seed:
        turns = _root_turns(recipe, f"{dialogue.id}#{number}")
        try:
            return cut_seed(dialogue, root_turns=turns, label=recipe.data.merge_label)
        except DataError as error:
            raise DataError(f"{error.found}: {dialogue.id}", path=recipe.data.path, field=error.field) from error

    for dialogue in selection.dialogues:
        cut(dialogue)
    names = selection.ids

    def tree_id(number: int) -> str:
        return f"{names[number // per_dialogue]}#{number % per_dialogue}"

    def task(number: int) -> Task:
        dialogue = selection.dialogues[number // per_dialogue]
        opening, rest = cut(dialogue, number % per_dialogue)
        split = selection.split_of.get(dialogue.id)
        return Task(tree_id(number), dialogue.scenario, opening, split, rest, memory=dialogue.turns)

    n_trees = len(names) * per_dialogue
    return selection, Tasks(Computed(n_trees, tree_id), Computed(n_trees, task))


def _root_turns(recipe: SearchRecipe, tree_id: str) -> int:
    """Return how many seeker turns a tree begins with; the draw is a function of the run's seed and the tree's id."""
    least, most = recipe.search.root_turns, recipe.search.root_turns_to
    if most is None:
        return least
    return least + int(uniform(derive_seed(recipe.seed, tree_id, "root")) * (most - least + 1))


def provenance_of(recipe: SearchRecipe) -> Provenance:
    """Return what every tree of a run says about where it came from.

    Raises:
        ConfigError: If a prompt or the taxonomy is not there.
        CheckpointError: If a checkpoint is not there.
    """
    bindings, taxonomy = recipe.models.bindings(), load_taxonomy(recipe.taxonomy)
    kinds = {"seeker": "aflow seeker", "supporter": "aflow supporter", "critic": "rubric critic"}
    found = prompt_ids(bindings, recipe.prompts.model_dump(), taxonomy=taxonomy, kinds=kinds)
    prompts = {role: name for role, name in found.items() if not isinstance(bindings[role], Checkpoint)}
    strategist = recipe.models.strategist
    if isinstance(strategist, Checkpoint):
        prior = kind_of(Path(strategist.checkpoint)).identity(Path(strategist.checkpoint))
    else:
        prior = world_name(strategist) if isinstance(strategist, WorldBinding) else prompts["strategist"]
    return Provenance(
        run_seed=recipe.seed,
        taxonomy=taxonomy,
        round=recipe.search.round,
        prior_source=prior,
        readout=recipe.critic.readout,
        prompts=prompts,
    )


async def cast(pool: ModelPool, recipe: SearchRecipe, provenance: Provenance) -> UnitPlayers:
    """Return who grows the trees of a recipe; growing one gives its rollouts and the tree.

    Args:
        pool: Where the models are loaded.
        recipe: The recipe.
        provenance: What every tree says about where it came from.

    Raises:
        EsckitError: If a model cannot be had, or cannot do what its role needs.
    """
    roles, prompts, max_attempts = recipe.models.bindings(), recipe.prompts.model_dump(), recipe.search.max_attempts
    await pool.prepare(roles)
    casting = Casting(pool, roles, prompts, max_attempts, provenance.taxonomy, recipe.strategist.readout)
    critic, strategist = casting.rubric_critic(recipe.critic), casting.strategist()
    if recipe.search.mode == "linear":

        async def lay_out(task: Task) -> tuple[Record, ...]:
            tree = await score_linear(
                task, critic=critic, strategist=strategist, knobs=recipe.mcts, provenance=provenance
            )
            return (tree,)

        return UnitPlayers({TREES: lay_out})

    seeker = casting.aflow_seeker({}, memory_guard=recipe.seeker.memory_guard)
    players = Players(seeker, casting.supporter(), critic, strategist)

    async def grow(task: Task) -> tuple[Record, ...]:
        # A seeker of the practice world has no memory of a seed dialogue.
        if isinstance(seeker, AFlowSeeker):
            knowing = replace(players, seeker=replace(seeker, memories={task.scenario.id: task.memory}))
        else:
            knowing = players
        tree, rollouts = await grow_tree(task, knowing, recipe.mcts, provenance)
        return (*rollouts, tree)

    return UnitPlayers({TREES: grow})


async def _run(
    recipe: SearchRecipe, selection: Selection, tasks: Tasks, out: Path, progress: Progress, pilot: int | None
) -> RunResult:
    provenance = provenance_of(recipe)
    async with executing(recipe, recipe.concurrency.trees, cast, provenance) as executor:
        taxonomy, players = provenance.taxonomy, recipe.models.bindings().values()
        inputs = _inputs(selection, provenance)
        file = UnitFile(
            TREES,
            SearchTree,
            ids=tasks.ids,
            unit=tasks.tasks.__getitem__,
            is_failed=_is_failed,
            may_fail=lambda raw: b'"status":"failed"' in raw,
            is_retried=_is_failed if recipe.search.retry_failed else None,
            beside={Rollout: ROLLOUTS} if recipe.mcts.keep_rollouts else {},
            timed_as="tree",
        )
        async with playing(recipe, out, executor, bindings=players, inputs=inputs, taxonomy=taxonomy) as folder:
            file.read(out)
            rate = FailureRate(recipe.max_failure_rate, MIN_TREES_FOR_RATE, "trees", "search.retry_failed")
            await play_units(
                [file],
                folder,
                executor,
                rate,
                progress,
                settled=lambda: _write_beside(out, file),
                pilot=Pilot.of(recipe, pilot),
            )
            summary = {
                "schema": "esckit.search_summary/1",
                **summarise(file.records()),
                "environment": _environment(recipe, provenance.prompts),
            }
            write_json(folder.file(SUMMARY), summary)
            rate.judge()
    return RunResult(out, summary)


def _write_beside(out: Path, file: UnitFile[Task, SearchTree]) -> None:
    """Write the failures of the trees, and sort their rollouts by node; those of a tree that a crash cut off go."""
    failed = file.records(lambda raw: b'"failures":[{' in raw)
    write_records(
        out / "failures.jsonl",
        (FailedCall(tree=tree.id, failure=failure) for tree in failed for failure in tree.failures),
    )
    if (path := out / ROLLOUTS).is_file():
        write_records(path, _sorted_rollouts(path, file))


def _sorted_rollouts(path: Path, file: UnitFile[Task, SearchTree]) -> Iterator[Rollout]:
    """Yield the rollouts of a file in the order of the trees and their nodes; of two of one node the later one."""
    numbers = Numbers(file.ids)
    places: dict[int, array[int]] = {}
    for line in read_lines(path, allow_cut=True):
        for number in numbers.of(record_of(Rollout, line, path).tree):
            places.setdefault(number, array("q")).append(line.offset)
    with path.open("rb") as source:
        for tree in file.records():
            found: dict[str, Rollout] = {}
            for place in places.get(max(numbers.of(tree.id)), ()):
                source.seek(place)
                rollout = record_of(Rollout, Line(place, 1 if place == 0 else 0, source.readline()), path)
                found[rollout.node] = rollout
            yield from (found[node.id] for node in tree.nodes if node.id in found)


def _is_failed(tree: SearchTree) -> bool:
    return tree.status == "failed"


def _environment(recipe: SearchRecipe, prompts: Mapping[str, str]) -> dict[str, Any]:
    """Return what has to be equal for the returns of two rounds to be comparable."""
    return {
        role: {
            "prompt": prompts.get(role),
            **binding.model_dump(mode="json", exclude=CHANGES_NO_ANSWER, exclude_none=True),
        }
        for role, binding in recipe.models.bindings().items()
        if role != "strategist"
    }
