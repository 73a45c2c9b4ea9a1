"""``esckit train-rl``: a supporter that reasons, trained against future rewards (RLFF-ESC, arXiv 2508.12935).

The run folder holds ``checkpoint/`` with its card (what later recipes name by the run), ``metrics.jsonl``,
``samples.jsonl`` and ``summary.json``; while it trains also ``states/``, from which a stopped run resumes. A run that
diverged leaves ``diverged.json`` beside the last finite policy. Torch is imported only when a training begins.
"""

from __future__ import annotations

import logging
from collections import Counter
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esckit.config.sections import BackboneBinding, CheckpointBinding
from esckit.config.training import TrainedModel
from esckit.documents import read_json_object
from esckit.errors import MissingRunsError
from esckit.lineage import require_runs
from esckit.models.backbones import find_backbone
from esckit.models.checkpoint import FOLDER, KINDS, checkpoint_folder, read_metadata
from esckit.play.runner import SUMMARY, RunResult
from esckit.prompts.prompt import load_prompt
from esckit.protocols import Progress
from esckit.records import write_json
from esckit.rl.forecast import staged_play
from esckit.rl.recipe import TrainRlRecipe, plan_steps
from esckit.rl.rewards import check_reward
from esckit.rl.rows import RlMaterial, best_and_worst, collect, policy_start
from esckit.training.memory import Workload, lora_targets, plan_memory, plan_without_inputs, trl_logits
from esckit.training.policy import PolicyMetadata, begun_with
from esckit.training.run import Process, Sharding, StepPlan, check_model, check_trackers, this_process, training

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from esckit.rl.trainer import Training


def plan(recipe: TrainRlRecipe, *, n_processes: int | None = None, sharding: Sharding | None = None) -> dict[str, Any]:
    """Return what a run of the recipe would do, without any model.

    Its bounds are those before contexts that are too long, or malformed outputs, are left out. Below ``staged`` stands
    what it plays, as a forecast rehearses it; None where it plays nothing.

    Args:
        recipe: The recipe.
        n_processes: Processes that would share it; None takes those that a launcher started.
        sharding: What they would divide; None likewise.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    check_trackers(recipe.trackers)
    if recipe.algorithm == "grpo" and recipe.grpo.engine == "vllm" and util.find_spec("vllm") is None:
        log.warning("grpo.engine: vllm is not installed here; the run needs it (docs/installing.md)")
    process = this_process().planned(n_processes, sharding)
    try:
        return _checked(recipe, process)[0]
    except MissingRunsError as error:
        n_rows = process.count if recipe.algorithm == "dpo" else recipe.grpo.prompts_per_step
        steps = plan_steps(recipe, n_rows=n_rows, n_processes=process.count)
        begins = recipe.models.policy.checkpoint
        if begins is not None and not Path(begins).exists():
            return plan_without_inputs(process, None, error)
        backbone = policy_start(recipe).backbone
        work, others = workload(recipe, steps, process, backbone=backbone), _beside(recipe, backbone)
        unknown = ", ".join(f"models.{role}" for role, backbone in others.items() if backbone is None)
        known = {role: backbone for role, backbone in others.items() if backbone is not None}
        memory = plan_memory(work, process, others=known)
        return plan_without_inputs(process, memory, error, not_counted=unknown)


def _checked(recipe: TrainRlRecipe, process: Process) -> tuple[dict[str, Any], RlMaterial, dict[str, str]]:
    """Check everything that needs no model; return plan, material, and the identities of the reward's prompts."""
    online, in_dialogues = recipe.algorithm == "grpo" and recipe.reward.kind == "online", recipe.episode == "dialogue"
    trained = recipe.algorithm == "grpo" and recipe.reward.kind in ("classifier", "ranker")
    idle = set() if online else {"models.seeker", "models.critic", "models.supporter"}
    require_runs(recipe, idle=idle if trained else idle | {"models.reward"})
    find_backbone(policy_start(recipe).backbone)
    check_model(recipe.models.policy, "models.policy", process.sharding, attention=recipe.models.policy.attention)
    load_prompt(recipe.prompt, "policy")
    prompts = check_reward(recipe)
    material = collect(recipe)
    is_dpo = recipe.algorithm == "dpo"
    n_pairs = sum(pair is not None for pair in best_and_worst(material.futures))
    steps = plan_steps(recipe, n_rows=n_pairs if is_dpo else len(material.train), n_processes=process.count)
    staged = staged_play(recipe, material, steps) if online else None
    calls: Counter[str] = Counter()
    for file in staged.files.values() if staged is not None else ():
        calls.update(file.calls)
    n_started = 0 if is_dpo else steps.n_batches * recipe.grpo.prompts_per_step * recipe.grpo.n_generations
    parts = {"train": material.train, "dev": material.dev}
    planned = {
        "dialogues": {name: len({context.dialogue_id for context in part}) for name, part in parts.items()},
        "contexts": {name: len(part) for name, part in parts.items()},
        "steps_at_most": steps.steps,
        **({"dialogues_played": n_started} if in_dialogues else {}),
        "outputs_at_most": n_started * recipe.turns_per_output,
        "pairs_at_most": n_pairs,
        "calls_at_most": dict(calls),
        "processes": process.count,
        "memory_per_device": plan_memory(
            workload(recipe, steps, process, backbone=material.backbone),
            process,
            others=_beside(recipe, material.backbone),
        ),
        "reward": material.reward_facts,
        "staged": staged,
    }
    return planned, material, prompts


def workload(recipe: TrainRlRecipe, steps: StepPlan, process: Process, *, backbone: str) -> Workload:
    """Return what a training does on one device, on top of a backbone."""
    policy, grpo, is_dpo = recipe.models.policy, recipe.grpo, recipe.algorithm == "dpo"
    limits = recipe.dpo if is_dpo else grpo
    longest = limits.max_prompt_tokens + limits.max_completion_tokens
    rows = steps.micro_batch * (2 if is_dpo else 1)
    generates = not is_dpo and grpo.engine == "transformers"
    return Workload(
        model=TrainedModel(backbone=backbone, dtype=policy.dtype, quantisation=policy.quantisation),
        trainable="lora",
        precision=recipe.optim.precision,
        rows=rows,
        tokens=longest,
        checkpointing=recipe.optim.gradient_checkpointing,
        lora=recipe.lora,
        targets=lora_targets(recipe.lora, backbone),
        attention=policy.attention,
        dense_mask=True,
        logits=trl_logits(backbone, rows * limits.max_completion_tokens),
        generated=steps.micro_batch * steps.accumulate // recipe.turns_per_output if generates else 0,
        generated_tokens=longest,
    )


def _beside(recipe: TrainRlRecipe, policy: str) -> dict[str, str | None]:
    """Return the backbones of local models that stand beside the policy, by role; None where one is not known."""
    if recipe.algorithm == "dpo":
        return {}
    reward, kind = recipe.models.reward, recipe.reward.kind
    if kind in ("classifier", "ranker", "untrained") and reward is not None:
        if reward.checkpoint is None:
            return {"reward": reward.backbone}
        file = checkpoint_folder(Path(reward.checkpoint)) / KINDS["train-reward"].file
        found = read_json_object(file).get("backbone") if file.is_file() else None
        return {"reward": found if isinstance(found, str) else None}
    if kind != "online":
        return {}
    roles = {"seeker": recipe.models.seeker, "critic": recipe.models.critic}
    if recipe.episode == "reply":
        roles["supporter"] = recipe.models.supporter
    found_roles: dict[str, str | None] = {}
    for role, binding in roles.items():
        match binding:
            case BackboneBinding():
                found_roles[role] = binding.backbone
            case CheckpointBinding():
                found_roles[role] = None
            case None:
                found_roles[role] = policy
    return found_roles


def run(recipe: TrainRlRecipe, *, out: Path, progress: Progress | None = None) -> RunResult:
    """Train the policy of the recipe; a stopped run resumes from its last state.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        progress: Shows how far the run is.

    Raises:
        EsckitError: See :mod:`esckit.errors`; what is done stays on disk.
    """
    planned, material, prompts = _checked(recipe, this_process())
    with training(recipe, out, inputs=_inputs(recipe, material, prompts), progress=progress) as run:
        if (result := run.finished(recipe.trackers)) is not None:
            return result
        from esckit.rl.trainer import train
        from esckit.training.harness import warn_of_memory

        warn_of_memory(planned["memory_per_device"], run.process)
        trained = train(recipe, material, run)
        if run.folder is not None:
            _finish(trained)
            run.folder.update_manifest(**trained.facts)
        return (run.finished(recipe.trackers) if run.process.is_main else None) or RunResult(out, {})


def known_inputs(recipe: TrainRlRecipe) -> dict[str, Any]:
    """Return what a run of the recipe is known by beside the recipe.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    _, material, prompts = _checked(recipe, this_process())
    return _inputs(recipe, material, prompts)


def _inputs(recipe: TrainRlRecipe, material: RlMaterial, prompts: dict[str, str]) -> dict[str, Any]:
    return {
        "data": material.facts,
        "reward": material.reward_facts,
        "prompts": {"policy": load_prompt(recipe.prompt).identity, **prompts},
        **({"start": material.start.model_dump()} if material.start is not None else {}),
    }


def _finish(trained: Training) -> None:
    """Write summary and card, and let the states go."""
    from esckit.training.checkpoint import metrics_table, write_card

    recipe, material, out = trained.recipe, trained.material, trained.run.out
    metadata = read_metadata(PolicyMetadata, out)
    steps = trained.trainer.state.global_step
    names = sorted({name for row in trained.dev.rows.values() for name in row})
    facts = {
        **metadata.model_dump(),
        **recipe.lora.model_dump(),
        "backbone": begun_with(metadata.backbone, metadata.start),
        "steps": steps,
        "targets": recipe.lora.layers,
        "reward": ", ".join(f"{name} {value}" for name, value in metadata.reward.items()),
        "n_train": trained.counts["rows"],
        "n_dev": len(material.dev),
        "n_dialogues": len(metadata.dialogue_ids),
        "metrics": metrics_table(trained.dev.rows, names) if trained.dev.rows else "Not measured.",
    }
    write_card(out / FOLDER, "policy", facts)
    summary = {
        "schema": "esckit.train_rl_summary/1",
        "algorithm": recipe.algorithm,
        "steps": steps,
        "selected_step": metadata.step,
        "contexts": {"train": len(material.train), "dev": len(material.dev)},
        "rows": trained.counts,
        "dev": trained.dev.rows,
        "dialogues": len(material.dialogue_ids),
    }
    write_json(out / SUMMARY, summary)
    trained.run.forget_states(recipe.trackers)
