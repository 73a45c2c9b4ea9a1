"""What a forest looks like in numbers: size, shape, outcomes, returns, strategies and failures.

``esckit search``: from seed dialogues to strategy trees (AFlow, arXiv 2602.08826).

The run folder holds ``trees.jsonl`` (appended as trees finish, sorted at the end), ``failures.jsonl``,
``metrics.jsonl`` (timings only), ``summary.json`` and, if asked for, ``rollouts.jsonl``. With the scripted model all
but the timings are the same bytes for every concurrency and whatever interrupted the run.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from typing import Any

from esckit.config.load import require_runs
from esckit.config.sections import CheckpointBinding
from esckit.data.contexts import cut_seed
from esckit.data.selection import Selection, select_dialogues
from esckit.errors import DataError
from esckit.models.checkpoint import kind_of
from esckit.play.executor import FailureRate, NoProgress, Progress, run_units
from esckit.play.session import SUMMARY, RunResult, playing
from esckit.records import read_records, write_json, write_records
from esckit.roles.cast import Casting, prompt_ids
from esckit.roles.environment import Environment
from esckit.roles.pool import ModelPool, look_up, require_checkpoints
from esckit.roles.rubric import check_weights, load_rubric
from esckit.runs import RunFolder
from esckit.search.expansion import Rollout
from esckit.search.linear import LinearSettings, score_linear
from esckit.search.mcts import Grown, Players, Provenance, Settings, Task, grow_tree
from esckit.search.recipe import SearchRecipe
from esckit.strategies.taxonomy import keep_taxonomy, load_taxonomy, taxonomy_inputs
from esckit.types import Failure, Record, SearchTree, TreeNode, Turn, Usage


def summarise(trees: Iterable[SearchTree]) -> dict[str, Any]:
    """Return the summary of some trees; shape, returns and strategies count only those that are not ``failed``.

    ``leaf_depth_max`` is the mean over trees of each tree's deepest leaf; ``strategy_entropy`` is in nats;
    ``return_by_split`` holds what tells when to stop: another round is worth it while the return of ``valid`` rises.
    """
    known = list(trees)
    usable = [tree for tree in known if tree.status != "failed"]
    failures = Counter(f"{failure.stage}/{failure.kind}" for tree in known for failure in tree.failures)
    return {
        "trees": len(known),
        "status": dict(sorted(Counter(tree.status for tree in known).items())),
        **shape(usable),
        "outcomes": _shares(node.outcome.value for tree in usable for node in tree.nodes if node.outcome),
        "return_mean": _mean(_returns(usable)),
        "return_by_split": _by_split(usable),
        **_strategies(usable),
        "failed_simulations": failures.total(),
        "failures": dict(sorted(failures.items())),
        "usage": {role: usage.facts() for role, usage in sorted(_usage(known).items())},
    }


def _returns(trees: Iterable[SearchTree]) -> list[float]:
    return [value for tree in trees if (value := tree.nodes[0].value) is not None]


def _by_split(trees: Sequence[SearchTree]) -> dict[str, dict[str, float | None]]:
    """Return the number of trees and their mean return by split, of the splits that there are."""
    found: dict[str, dict[str, float | None]] = {}
    for split in sorted({tree.split for tree in trees if tree.split is not None}):
        returns = _returns(tree for tree in trees if tree.split == split)
        found[split] = {"trees": len(returns), "mean": _mean(returns)}
    return found


def shape(trees: Sequence[SearchTree]) -> dict[str, float | None]:
    """Return means over trees: nodes, leaves, leaf depth, and how widely inner nodes branch."""
    per_tree = [_tree_shape(tree.nodes) for tree in trees]
    keys = ("nodes", "leaves", "leaf_depth_mean", "leaf_depth_max", "children_per_inner", "branching_share")
    return {key: _mean([row[key] for row in per_tree if row[key] is not None]) for key in keys}


def _tree_shape(nodes: Sequence[TreeNode]) -> dict[str, Any]:
    children = Counter(node.parent for node in nodes if node.parent is not None)
    depths = [node.depth for node in nodes if node.id not in children]
    return {
        "nodes": len(nodes),
        "leaves": len(depths),
        "leaf_depth_mean": _mean(depths),
        "leaf_depth_max": max(depths),
        "children_per_inner": _mean(list(children.values())),
        "branching_share": _mean([float(count > 1) for count in children.values()]),
    }


def _strategies(trees: Sequence[SearchTree]) -> dict[str, Any]:
    """Return each strategy's share of all edges, and the entropy of these shares."""
    shares = _shares(node.strategy for tree in trees for node in tree.nodes if node.strategy)
    entropy = -sum(share * log(share) for share in shares.values())
    return {"strategy_shares": shares, "strategy_entropy": entropy if shares else None}


def _usage(trees: Iterable[SearchTree]) -> dict[str, Usage]:
    total: dict[str, Usage] = {}
    for tree in trees:
        for role, usage in tree.usage.items():
            total[role] = total.get(role, Usage()) + usage
    return total


def _shares(names: Iterable[str]) -> dict[str, float]:
    counts = Counter(names)
    return {name: count / counts.total() for name, count in sorted(counts.items())}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


SUMMARY_SCHEMA = "esckit.search_summary/1"

MIN_TREES_FOR_RATE = 20


class FailedCall(Record):
    """A line of ``failures.jsonl``: a failure and the tree that it happened in."""

    tree: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class Seeded:
    """One tree to grow: its task, and what followed the opening in the corpus."""

    task: Task
    rest: tuple[Turn, ...]


Grower = Callable[[Seeded], Awaitable[Grown]]


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """What a run would do: counts, and bounds on the calls to models (without asking again)."""

    dialogues: int
    trees: int
    simulations: int
    calls_at_most: dict[str, int]

    def facts(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {**asdict(self), "calls_at_most_in_all": sum(self.calls_at_most.values())}


def plan(recipe: SearchRecipe) -> SearchPlan:
    """Return what a run of the recipe would do, without any model.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    selection, seeds = _seeds(recipe)
    require_checkpoints(recipe.models.bindings(), provenance_of(recipe).taxonomy)
    check_weights(recipe.critic.weights, load_rubric(recipe.critic.rubric))
    passes = len(recipe.critic.weights) if recipe.critic.readout == "expected" else 1
    if recipe.search.mode == "linear":
        spoken = [min(_n_supporter(seed), recipe.mcts.max_depth + recipe.mcts.rollout_turns) for seed in seeds]
        calls = {"critic": sum(spoken) * passes, "strategist": len(seeds) * recipe.mcts.max_depth}
        return SearchPlan(len(selection.dialogues), len(seeds), 0, calls)
    simulations = len(seeds) * recipe.mcts.n_simulations
    exchanges = simulations * (1 + recipe.mcts.rollout_turns)
    priors = simulations * max(1, recipe.mcts.rollout_turns) + len(seeds)
    calls = {"supporter": exchanges, "seeker": exchanges, "critic": exchanges * passes, "strategist": priors}
    return SearchPlan(len(selection.dialogues), len(seeds), simulations, calls)


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


def _seeds(recipe: SearchRecipe) -> tuple[Selection, tuple[Seeded, ...]]:
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
            seeds.append(Seeded(Task(f"{dialogue.id}#{number}", dialogue.scenario, opening, split), rest))
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
    prompts = {role: name for role, name in found.items() if not isinstance(bindings[role], CheckpointBinding)}
    strategist = recipe.models.strategist
    trained = Path(strategist.checkpoint) if isinstance(strategist, CheckpointBinding) else None
    return Provenance(
        run_seed=recipe.seed,
        taxonomy=taxonomy,
        round=recipe.search.round,
        prior_source=prompts["strategist"] if trained is None else kind_of(trained).identity(trained),
        readout=recipe.critic.readout,
        prompts=prompts,
    )


def _n_supporter(seed: Seeded) -> int:
    return sum(turn.speaker == "supporter" for turn in seed.rest)


async def _run(
    recipe: SearchRecipe, selection: Selection, seeds: tuple[Seeded, ...], out: Path, progress: Progress
) -> RunResult:
    async with ModelPool(recipe.executor, recipe.budget) as pool:
        bindings = recipe.models.bindings()
        await pool.prepare(bindings)
        grow = _grower(recipe, pool, selection)
        provenance = provenance_of(recipe)
        taxonomy = provenance.taxonomy
        inputs = {
            "data": selection.facts(),
            "prompts": provenance.prompts,
            "prior_source": provenance.prior_source,
            **taxonomy_inputs(taxonomy),
        }

        def settle(folder: RunFolder) -> list[SearchTree]:
            return _settle(folder, seeds)

        with playing(recipe, out, pool, progress, bindings=bindings.values(), inputs=inputs, settle=settle) as folder:
            keep_taxonomy(taxonomy, out)
            await _grow_missing(recipe, seeds, grow, folder, progress)
            trees = settle(folder)
            folder.require_whole(len(trees), len(seeds), "trees")
            summary = {
                "schema": SUMMARY_SCHEMA,
                **summarise(trees),
                "environment": _environment(recipe),
            }
            write_json(folder.file(SUMMARY), summary)
            _rate_of(recipe, trees).judge()
    return RunResult(out, summary)


async def _grow_missing(
    recipe: SearchRecipe,
    seeds: Sequence[Seeded],
    grow: Grower,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Grow what is not in ``trees.jsonl`` yet, appending each tree as it is finished."""
    with (
        folder.appender("trees.jsonl") as trees,
        folder.appender("rollouts.jsonl") if recipe.mcts.keep_rollouts else nullcontext() as rollouts,
        folder.appender("metrics.jsonl") as metrics,
    ):
        retry = recipe.search.retry_failed
        done = {
            tree.id: tree
            for tree in _latest(folder.file("trees.jsonl")).values()
            if not (retry and tree.status == "failed")
        }
        rate = _rate_of(recipe, done.values())
        rate.watch()
        missing = [seed for seed in seeds if seed.task.tree_id not in done]
        if missing:
            folder.begin_attempt()
        progress.start(len(seeds), len(seeds) - len(missing))

        async def timed(seed: Seeded) -> tuple[Grown, float]:
            began = time.perf_counter()
            return await grow(seed), time.perf_counter() - began

        def take(result: tuple[Grown, float]) -> None:
            (tree, played), seconds = result
            # The tree comes last: once it is there, its rollouts are.
            if rollouts is not None:
                for rollout in played:
                    rollouts.append(rollout)
            trees.append(tree)
            metrics.append({"tree": tree.id, "seconds": round(seconds, 3)})
            rate.add(failed=tree.status == "failed")
            progress.advance(failed=rate.n_failed)

        await run_units(missing, timed, limit=recipe.concurrency.trees, on_result=take)


def _rate_of(recipe: SearchRecipe, trees: Collection[SearchTree]) -> FailureRate:
    """Return the failure rate of trees that are done, with what the recipe allows."""
    n_failed = sum(tree.status == "failed" for tree in trees)
    return FailureRate(
        recipe.max_failure_rate, MIN_TREES_FOR_RATE, "trees", "search.retry_failed", len(trees), n_failed
    )


def _grower(recipe: SearchRecipe, pool: ModelPool, selection: Selection) -> Grower:
    """Return what grows one tree of the recipe.

    Raises:
        ConfigError: If a model cannot do what its role needs.
    """
    knobs, provenance = recipe.mcts, provenance_of(recipe)
    casting = Casting(
        pool,
        recipe.models.bindings(),
        recipe.prompts.model_dump(),
        recipe.search.max_attempts,
        provenance.taxonomy,
        recipe.strategist.readout,
    )
    critic, strategist = casting.rubric_critic(recipe.critic), casting.strategist()
    if recipe.search.mode == "linear":
        straight = LinearSettings(
            max_depth=knobs.max_depth, horizon=knobs.rollout_turns, prior_smoothing=knobs.prior_smoothing
        )

        async def lay_out(seed: Seeded) -> Grown:
            tree = await score_linear(
                seed.task, seed.rest, critic=critic, strategist=strategist, settings=straight, provenance=provenance
            )
            return Grown(tree)

        return lay_out

    memories = {dialogue.id: dialogue.turns for dialogue in selection.dialogues}
    seeker = casting.aflow_seeker(memories, memory_guard=recipe.seeker.memory_guard)
    players = Players(Environment(seeker, casting.supporter(), critic), strategist)
    settings = Settings(
        **knobs.model_dump(exclude={"trees_per_scenario", "max_failed_simulations"}),
        max_failed_simulations=knobs.allowed_failures,
    )

    async def grow(seed: Seeded) -> Grown:
        return await grow_tree(seed.task, players, settings, provenance)

    return grow


def _latest(path: Path) -> dict[str, SearchTree]:
    """Return the trees on disk by id; a tree that was grown again counts as its latest self."""
    if not path.is_file():
        return {}
    return {tree.id: tree for tree in read_records(SearchTree, path, allow_cut=True)}


def _settle(folder: RunFolder, seeds: Sequence[Seeded]) -> list[SearchTree]:
    """Sort ``trees.jsonl`` by seed, and write what follows from it."""
    found = _latest(folder.file("trees.jsonl"))
    trees = [found[seed.task.tree_id] for seed in seeds if seed.task.tree_id in found]
    write_records(folder.file("trees.jsonl"), trees)
    write_records(
        folder.file("failures.jsonl"),
        [FailedCall(tree=tree.id, failure=failure) for tree in trees for failure in tree.failures],
    )
    _settle_rollouts(folder.file("rollouts.jsonl"), trees)
    return trees


def _settle_rollouts(path: Path, trees: Sequence[SearchTree]) -> None:
    """Sort the rollouts like the nodes of the trees; those of a tree that a crash cut off go."""
    if not path.is_file():
        return
    found = {(rollout.tree, rollout.node): rollout for rollout in read_records(Rollout, path, allow_cut=True)}
    places = [(tree.id, node.id) for tree in trees for node in tree.nodes]
    write_records(path, [found[place] for place in places if place in found])


def _environment(recipe: SearchRecipe) -> dict[str, Any]:
    """Return what has to be equal for the returns of two rounds to be comparable."""
    prompts = provenance_of(recipe).prompts
    return {
        role: {"prompt": prompts.get(role), **binding.model_dump(mode="json", exclude={"prices"}, exclude_none=True)}
        for role, binding in recipe.models.bindings().items()
        if role != "strategist"
    }
