"""``esckit train-rl``: a supporter that reasons, trained against future rewards (RLFF-ESC, arXiv 2508.12935).

The run folder holds ``checkpoint/`` with its card (what later recipes name by the run), ``metrics.jsonl``,
``samples.jsonl`` and ``summary.json``; while it trains also ``states/``, from which a stopped run goes on. A run that
diverged leaves ``diverged.json`` beside the last finite policy.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esckit.config.load import require_runs
from esckit.models.backbones import find_backbone
from esckit.play.session import RunResult, StepsInPlace, finished, training
from esckit.processes import this_process
from esckit.prompts.prompt import load_prompt
from esckit.protocols import Progress
from esckit.rl.material import RlMaterial, collect, reward_prompts
from esckit.rl.recipe import TrainRlRecipe, dpo_settings, grpo_settings, plan_dpo, plan_grpo, policy_optim
from esckit.rl.rows import best_and_worst, by_context
from esckit.rl.source import check_reward
from esckit.training.sections import check_trackers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainRlPlan:
    """What a run would do.

    Attributes:
        steps_at_most: Optimiser steps, before contexts that are too long are left out.
        outputs_at_most: Outputs that the policy writes while it trains.
        pairs_at_most: Preference pairs (DPO), before malformed and too long ones are left out.
        calls_at_most: Calls by role, where futures are played online.
    """

    dialogues: dict[str, int]
    contexts: dict[str, int]
    steps_at_most: int
    outputs_at_most: int
    pairs_at_most: int
    calls_at_most: dict[str, int]
    reward: dict[str, str]

    def facts(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return asdict(self)


def plan(recipe: TrainRlRecipe, *, n_processes: int | None = None) -> TrainRlPlan:
    """Return what a run of the recipe would do, without any model.

    Args:
        recipe: The recipe.
        n_processes: Processes that would share it; None takes those that a launcher started.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    material = _checked(recipe)
    check_trackers(recipe.trackers)
    steps = _n_steps(recipe, material, n_processes or this_process().count)
    n_pairs = n_outputs = 0
    if recipe.algorithm == "dpo":
        n_pairs = _n_pairs(material)
    else:
        n_outputs = steps * recipe.grpo.prompts_per_step * recipe.grpo.n_generations // recipe.grpo.iterations
    return TrainRlPlan(
        dialogues={
            name: len({context.dialogue_id for context in part})
            for name, part in (("train", material.train), ("dev", material.dev))
        },
        contexts={"train": len(material.train), "dev": len(material.dev)},
        steps_at_most=steps,
        outputs_at_most=n_outputs,
        pairs_at_most=n_pairs,
        calls_at_most=_online_calls(recipe, n_outputs),
        reward=material.reward_facts,
    )


def run(recipe: TrainRlRecipe, *, out: Path, progress: Progress | None = None) -> RunResult:
    """Train the policy of the recipe; a stopped run goes on from its last state.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        progress: Shows how far the run is.

    Raises:
        EsckitError: See :mod:`esckit.errors`; what is done stays on disk.
    """
    material = _checked(recipe)
    process = this_process()
    _n_steps(recipe, material, process.count)
    inputs = {
        "data": material.facts,
        "reward": material.reward_facts,
        "prompts": {"policy": load_prompt(recipe.prompt).identity, **reward_prompts(recipe)},
    }
    with training(recipe, out, process, inputs=inputs) as folder:
        if (result := finished(out)) is not None:
            return result
        from esckit.rl.training import train

        facts = train(recipe, material, out, process, StepsInPlace(folder, progress))
        if folder is not None:
            folder.update_manifest(**facts)
    return (finished(out) if process.is_main else None) or RunResult(out, {})


def _checked(recipe: TrainRlRecipe) -> RlMaterial:
    require_runs(recipe, idle=_idle(recipe))
    find_backbone(recipe.models.policy.backbone)
    load_prompt(recipe.prompt, "policy")
    check_reward(recipe)
    reward_prompts(recipe)
    return collect(recipe)


def _idle(recipe: TrainRlRecipe) -> set[str]:
    """Return the fields that are not looked at under the recipe's algorithm and reward."""
    online = recipe.algorithm == "grpo" and recipe.reward.kind == "online"
    trained = recipe.algorithm == "grpo" and recipe.reward.kind in ("classifier", "ranker")
    players = set() if online else {"models.seeker", "models.critic", "models.supporter"}
    return players if trained else players | {"models.reward"}


def _n_steps(recipe: TrainRlRecipe, material: RlMaterial, n_processes: int) -> int:
    """Return how many steps there are at most.

    Raises:
        ConfigError: If the processes cannot share a step evenly.
        DataError: If there is less than one step takes.
    """
    optim = policy_optim(recipe)
    if recipe.algorithm == "dpo":
        n_pairs = _n_pairs(material)
        return plan_dpo(dpo_settings(recipe), optim, n_pairs=n_pairs, n_processes=n_processes).steps
    return plan_grpo(grpo_settings(recipe), optim, n_rows=len(material.train), n_processes=n_processes).steps


def _n_pairs(material: RlMaterial) -> int:
    groups = by_context(material.futures)
    return sum(best_and_worst(group) is not None for group in groups.values())


def _online_calls(recipe: TrainRlRecipe, n_outputs: int) -> dict[str, int]:
    """Return bounds on the calls that playing a future of every output takes, none for other rewards."""
    if recipe.reward.kind != "online":
        return {}
    online = recipe.online
    readings = online.horizon + online.score_first_exchange
    per_reading = 1 if online.critic.readout == "expected" else online.critic.samples
    return {
        "supporter": n_outputs * online.horizon,
        "seeker": n_outputs * (online.horizon + 1),
        "critic": n_outputs * readings * per_reading,
    }
