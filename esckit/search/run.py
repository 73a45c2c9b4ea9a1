"""``esckit search``: from seed dialogues to strategy trees (AFlow, arXiv 2602.08826).

The run folder holds ``trees.jsonl`` (appended as trees finish, sorted at the end), ``failures.jsonl``,
``metrics.jsonl`` (timings only), ``summary.json`` (the forest in numbers: size, shape, outcomes, returns, strategies,
failures) and, if asked for, ``rollouts.jsonl``. With the scripted model all but the timings are the same bytes for
every concurrency and whatever interrupted the run. How a tree grows stands in :mod:`esckit.search.mcts`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

from esckit.config.load import require_runs
from esckit.config.sections import CHANGES_NO_ANSWER, Checkpoint
from esckit.data.contexts import cut_seed
from esckit.data.selection import Selection, select_dialogues
from esckit.errors import DataError
from esckit.ledger import usage_facts
from esckit.models.checkpoint import kind_of
from esckit.play.runner import (
    SUMMARY,
    AsyncioExecutor,
    FailureRate,
    NoProgress,
    Plan,
    RunResult,
    UnitFile,
    play_units,
    playing,
)
from esckit.protocols import Progress
from esckit.records import read_records, write_json, write_records
from esckit.roles.cast import Casting, prompt_ids
from esckit.roles.pool import ModelPool, look_up, require_checkpoints
from esckit.roles.rubric import check_weights, load_rubric
from esckit.search.expansion import Players, Rollout
from esckit.search.linear import score_linear
from esckit.search.mcts import grow_tree
from esckit.search.recipe import SearchRecipe
from esckit.search.tree import Provenance, Task
from esckit.strategies.taxonomy import keep_taxonomy, load_taxonomy, taxonomy_inputs
from esckit.types import Failure, Record, SearchTree


def summarise(trees: Iterable[SearchTree]) -> dict[str, Any]:
    """Return the summary of some trees; shape, returns and strategies count only those that are not ``failed``.

    ``leaf_depth_max`` is the mean over trees of each tree's deepest leaf; ``strategy_entropy`` is in nats;
    ``return_by_split`` holds what tells when to stop: another round is worth it while the return of ``valid`` rises.
    """
    known = list(trees)
    usable = [tree for tree in known if tree.status != "failed"]
    returns = {
        split: _returns(tree for tree in usable if tree.split == split)
        for split in sorted({tree.split for tree in usable if tree.split is not None})
    }
    shares = _shares(node.strategy for tree in usable for node in tree.nodes if node.strategy)
    failures = Counter(f"{failure.stage}/{failure.kind}" for tree in known for failure in tree.failures)
    return {
        "trees": len(known),
        "status": dict(sorted(Counter(tree.status for tree in known).items())),
        **shape(usable),
        "outcomes": _shares(node.outcome.value for tree in usable for node in tree.nodes if node.outcome),
        "return_mean": _mean(_returns(usable)),
        "return_by_split": {split: {"trees": len(found), "mean": _mean(found)} for split, found in returns.items()},
        "strategy_shares": shares,
        "strategy_entropy": -sum(share * log(share) for share in shares.values()) if shares else None,
        "failed_simulations": failures.total(),
        "failures": dict(sorted(failures.items())),
        "usage": usage_facts(tree.usage for tree in known),
    }


def _returns(trees: Iterable[SearchTree]) -> list[float]:
    return [value for tree in trees if (value := tree.nodes[0].value) is not None]


def shape(trees: Sequence[SearchTree]) -> dict[str, float | None]:
    """Return means over trees: nodes, leaves, leaf depth, and how widely inner nodes branch."""
    rows: list[dict[str, float | None]] = []
    for tree in trees:
        children = Counter(node.parent for node in tree.nodes if node.parent is not None)
        depths = [node.depth for node in tree.nodes if node.id not in children]
        rows.append(
            {
                "nodes": len(tree.nodes),
                "leaves": len(depths),
                "leaf_depth_mean": _mean(depths),
                "leaf_depth_max": max(depths),
                "children_per_inner": _mean(list(children.values())),
                "branching_share": _mean([float(count > 1) for count in children.values()]),
            }
        )
    keys = ("nodes", "leaves", "leaf_depth_mean", "leaf_depth_max", "children_per_inner", "branching_share")
    return {key: _mean([value for row in rows if (value := row[key]) is not None]) for key in keys}


def _shares(names: Iterable[str]) -> dict[str, float]:
    counts = Counter(names)
    return {name: count / counts.total() for name, count in sorted(counts.items())}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


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
    selection, seeds = _seeds(recipe)
    require_checkpoints(recipe.models.bindings(), provenance_of(recipe).taxonomy)
    check_weights(recipe.critic.weights, load_rubric(recipe.critic.rubric))
    counts = {"dialogues": len(selection.dialogues), "trees": len(seeds)}
    passes = len(recipe.critic.weights) if recipe.critic.readout == "expected" else 1
    if recipe.search.mode == "linear":
        longest = recipe.mcts.max_depth + recipe.mcts.rollout_turns
        spoken = sum(min(sum(turn.speaker == "supporter" for turn in seed.rest), longest) for seed in seeds)
        calls = {"critic": spoken * passes, "strategist": len(seeds) * recipe.mcts.max_depth}
        return Plan({**counts, "simulations": 0}, calls)
    simulations = len(seeds) * recipe.mcts.n_simulations
    exchanges = simulations * (1 + recipe.mcts.rollout_turns)
    priors = simulations * max(1, recipe.mcts.rollout_turns) + len(seeds)
    calls = {"supporter": exchanges, "seeker": exchanges, "critic": exchanges * passes, "strategist": priors}
    return Plan({**counts, "simulations": simulations}, calls)


def run(recipe: SearchRecipe, *, out: Path, progress: Progress | None = None) -> RunResult:
    """Grow every tree of the recipe that is not in the run folder yet.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        progress: Shows how far the run is.

    Raises:
        EsckitError: See :mod:`esckit.errors`; what is done stays on disk.
    """
    selection, seeds = _seeds(recipe)
    return asyncio.run(_run(recipe, selection, seeds, out, progress or NoProgress()))


def _seeds(recipe: SearchRecipe) -> tuple[Selection, tuple[Task, ...]]:
    """Return the trees to grow, in load order."""
    require_runs(recipe)
    look_up(recipe.models.bindings().values())
    provenance_of(recipe)
    linear = recipe.search.mode == "linear"
    selection = select_dialogues(recipe.data, taxonomy=recipe.taxonomy if linear else None)
    seeds = []
    for dialogue in selection.dialogues:
        try:
            opening, rest = cut_seed(dialogue, root_turns=recipe.search.root_turns, label=recipe.data.merge_label)
        except DataError as error:
            raise DataError(f"{error.found}: {dialogue.id}", path=recipe.data.path, field=error.field) from error
        for number in range(1 if linear else recipe.mcts.trees_per_scenario):
            split = selection.split_of.get(dialogue.id)
            seeds.append(Task(f"{dialogue.id}#{number}", dialogue.scenario, opening, split, rest))
    return selection, tuple(seeds)


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
    trained = Path(strategist.checkpoint) if isinstance(strategist, Checkpoint) else None
    return Provenance(
        run_seed=recipe.seed,
        taxonomy=taxonomy,
        round=recipe.search.round,
        prior_source=prompts["strategist"] if trained is None else kind_of(trained).identity(trained),
        readout=recipe.critic.readout,
        prompts=prompts,
    )


async def _run(
    recipe: SearchRecipe, selection: Selection, seeds: tuple[Task, ...], out: Path, progress: Progress
) -> RunResult:
    async with ModelPool(recipe.executor, recipe.budget, recipe.cache) as pool:
        bindings = recipe.models.bindings()
        await pool.prepare(bindings)
        provenance = provenance_of(recipe)
        grow = _grower(recipe, provenance, pool, selection)
        taxonomy = provenance.taxonomy
        inputs = {
            "data": selection.facts(),
            "prompts": provenance.prompts,
            "prior_source": provenance.prior_source,
            **taxonomy_inputs(taxonomy),
        }
        file = UnitFile(
            "trees.jsonl",
            SearchTree,
            [(seed.tree_id, seed) for seed in seeds],
            is_failed=_is_failed,
            is_retried=_is_failed if recipe.search.retry_failed else None,
            play=grow,
            beside={Rollout: ROLLOUTS} if recipe.mcts.keep_rollouts else {},
            timed_as="tree",
        )
        async with playing(recipe, out, pool, bindings=bindings.values(), inputs=inputs) as folder:
            keep_taxonomy(taxonomy, out)
            file.read(out)
            rate = FailureRate(recipe.max_failure_rate, MIN_TREES_FOR_RATE, "trees", "search.retry_failed")
            executor = AsyncioExecutor(recipe.concurrency.trees)
            await play_units([file], folder, executor, rate, progress, settled=lambda: _write_beside(out, file.records))
            summary = {
                "schema": "esckit.search_summary/1",
                **summarise(file.records),
                "environment": _environment(recipe, provenance.prompts),
            }
            write_json(folder.file(SUMMARY), summary)
            rate.judge()
    return RunResult(out, summary)


def _grower(
    recipe: SearchRecipe, provenance: Provenance, pool: ModelPool, selection: Selection
) -> Callable[[Task], Awaitable[tuple[Record, ...]]]:
    """Return what grows one tree of the recipe, and gives its rollouts and the tree.

    Raises:
        ConfigError: If a model cannot do what its role needs.
    """
    roles, prompts, max_attempts = recipe.models.bindings(), recipe.prompts.model_dump(), recipe.search.max_attempts
    casting = Casting(pool, roles, prompts, max_attempts, provenance.taxonomy, recipe.strategist.readout)
    critic, strategist = casting.rubric_critic(recipe.critic), casting.strategist()
    if recipe.search.mode == "linear":

        async def lay_out(task: Task) -> tuple[Record, ...]:
            tree = await score_linear(
                task, critic=critic, strategist=strategist, knobs=recipe.mcts, provenance=provenance
            )
            return (tree,)

        return lay_out

    memories = {dialogue.id: dialogue.turns for dialogue in selection.dialogues}
    seeker = casting.aflow_seeker(memories, memory_guard=recipe.seeker.memory_guard)
    players = Players(seeker, casting.supporter(), critic, strategist)

    async def grow(task: Task) -> tuple[Record, ...]:
        tree, rollouts = await grow_tree(task, players, recipe.mcts, provenance)
        return (*rollouts, tree)

    return grow


def _write_beside(out: Path, trees: Sequence[SearchTree]) -> None:
    """Write the failures of the trees, and sort their rollouts by node; those of a tree that a crash cut off go."""
    failures = [FailedCall(tree=tree.id, failure=failure) for tree in trees for failure in tree.failures]
    write_records(out / "failures.jsonl", failures)
    path = out / ROLLOUTS
    if path.is_file():
        found = {(rollout.tree, rollout.node): rollout for rollout in read_records(Rollout, path, allow_cut=True)}
        places = [(tree.id, node.id) for tree in trees for node in tree.nodes]
        write_records(path, [found[place] for place in places if place in found])


def _is_failed(tree: SearchTree) -> bool:
    return tree.status == "failed"


def _environment(recipe: SearchRecipe, prompts: Mapping[str, str]) -> dict[str, Any]:
    """Return what has to be equal for the returns of two rounds to be comparable."""
    return {
        role: {
            "prompt": prompts.get(role),
            **binding.model_dump(mode="json", exclude=set(CHANGES_NO_ANSWER), exclude_none=True),
        }
        for role, binding in recipe.models.bindings().items()
        if role != "strategist"
    }
