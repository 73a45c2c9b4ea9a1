"""``esckit train-sft``: a supporter that writes as the best replies of a source do, by supervised fine-tuning.

The run folder holds ``checkpoint/`` with its card (what later recipes name by the run), ``metrics.jsonl`` and
``summary.json``; while it trains also ``states/``, from which a stopped run resumes. A run that diverged leaves
``diverged.json`` beside the last finite state. Torch is imported only when a training begins.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esckit.errors import ConfigError, MissingRunsError
from esckit.lineage import require_runs
from esckit.models.backbones import find_backbone
from esckit.models.checkpoint import FOLDER, read_metadata
from esckit.play.runner import SUMMARY, RunResult
from esckit.prompts.prompt import load_prompt
from esckit.protocols import Progress
from esckit.records import write_json
from esckit.sft.examples import SftMaterial, collect_to_train, form_warnings
from esckit.sft.recipe import TrainSftRecipe, plan_steps
from esckit.training.memory import Workload, lora_targets, plan_memory, plan_without_inputs, trl_logits
from esckit.training.policy import SftMetadata
from esckit.training.run import Process, Sharding, StepPlan, check_model, check_trackers, this_process, training

if TYPE_CHECKING:
    from esckit.sft.trainer import Training

log = logging.getLogger(__name__)


def plan(recipe: TrainSftRecipe, *, n_processes: int | None = None, sharding: Sharding | None = None) -> dict[str, Any]:
    """Return what a run of the recipe would do, without any model.

    Its bounds are those before examples that are too long are left out.

    Args:
        recipe: The recipe.
        n_processes: Processes that would share it; None takes those that a launcher started.
        sharding: What they would divide; None likewise.

    Raises:
        EsckitError: If the source or the recipe is wrong.
    """
    check_trackers(recipe.trackers)
    process = this_process().planned(n_processes, sharding)
    try:
        return _checked(recipe, process)[0]
    except MissingRunsError as error:
        steps = plan_steps(recipe, n_rows=recipe.optim.batch_size, n_processes=process.count)
        return plan_without_inputs(process, plan_memory(workload(recipe, steps), process), error) | {"warnings": []}


def _checked(recipe: TrainSftRecipe, process: Process) -> tuple[dict[str, Any], SftMaterial]:
    """Check everything that needs no model; return plan and material."""
    require_runs(recipe)
    find_backbone(recipe.model.backbone)
    check_model(recipe.model, "model", process.sharding, attention=recipe.model.attention)
    prompt = load_prompt(recipe.prompt, "policy")
    if recipe.form.strategy == "prompt" and "strategy" not in prompt.optional:
        raise ConfigError(
            f"form.strategy: prompt with prompt {prompt.identity}, which names no strategy",
            expected="a prompt with optional: [strategy], such as supporter_rlff",
        )
    material = collect_to_train(recipe)
    steps = plan_steps(recipe, n_rows=len(material.train), n_processes=process.count)
    parts = {"train": material.train, "dev": material.dev}
    planned = {
        "dialogues": {name: len({each.dialogue_id for each in part}) for name, part in parts.items()},
        "examples": {name: len(part) for name, part in parts.items()},
        "left_out": material.left_out,
        "steps_at_most": steps.steps,
        "processes": process.count,
        "memory_per_device": plan_memory(workload(recipe, steps), process),
        "warnings": form_warnings(recipe.form, prompt),
    }
    return planned, material


def workload(recipe: TrainSftRecipe, steps: StepPlan) -> Workload:
    """Return what a training does on one device."""
    model, limits, rows = recipe.model, recipe.encoding, steps.micro_batch
    return Workload(
        model=model,
        trainable=model.trainable,
        precision=recipe.optim.precision,
        rows=rows,
        tokens=limits.max_prompt_tokens + limits.max_completion_tokens,
        checkpointing=recipe.optim.gradient_checkpointing,
        lora=recipe.lora,
        targets=lora_targets(recipe.lora, model.backbone),
        attention=model.attention,
        dense_mask=rows > 1,
        logits=trl_logits(model.backbone, rows * limits.max_completion_tokens),
    )


def run(recipe: TrainSftRecipe, *, out: Path, progress: Progress | None = None) -> RunResult:
    """Train the supporter of the recipe; a stopped run resumes from its last state.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        progress: Shows how far the run is.

    Raises:
        EsckitError: See :mod:`esckit.errors`; what is done stays on disk.
    """
    planned, material = _checked(recipe, this_process())
    with training(recipe, out, inputs=_inputs(recipe, material), progress=progress) as run:
        if (result := run.finished(recipe.trackers)) is not None:
            return result
        for warning in planned["warnings"] if run.process.is_main else ():
            log.warning("%s", warning)
        from esckit.sft.trainer import train
        from esckit.training.harness import warn_of_memory

        warn_of_memory(planned["memory_per_device"], run.process)
        trained = train(recipe, material, run)
        if run.folder is not None:
            _finish(trained)
        return (run.finished(recipe.trackers) if run.process.is_main else None) or RunResult(out, {})


def known_inputs(recipe: TrainSftRecipe) -> dict[str, Any]:
    """Return what a run of the recipe is known by beside the recipe.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    return _inputs(recipe, _checked(recipe, this_process())[1])


def _inputs(recipe: TrainSftRecipe, material: SftMaterial) -> dict[str, Any]:
    return {"data": material.facts, "prompts": {"supporter": load_prompt(recipe.prompt).identity}}


def _finish(trained: Training) -> None:
    """Write summary and card, and let the states go."""
    from esckit.training.checkpoint import metrics_table, write_card

    recipe, material, out = trained.recipe, trained.material, trained.run.out
    metadata = read_metadata(SftMetadata, out)
    steps = trained.trainer.state.global_step
    adapter = f"an adapter (rank {recipe.lora.rank}, alpha {recipe.lora.alpha}, {recipe.lora.layers})"
    names = sorted({name for row in trained.dev.rows.values() for name in row})
    facts = {
        **metadata.model_dump(),
        "trained": "the whole model" if metadata.trainable == "full" else adapter,
        "form": _form_in_words(metadata),
        "steps": steps,
        "n_train": trained.counts["rows"],
        "n_dev": len(material.dev),
        "n_dialogues": len(metadata.dialogue_ids),
        "metrics": metrics_table(trained.dev.rows, names) if trained.dev.rows else "Not measured.",
    }
    write_card(out / FOLDER, "sft", facts)
    summary = {
        "schema": "esckit.train_sft_summary/1",
        "source": recipe.source,
        "steps": steps,
        "selected_step": metadata.step,
        "examples": {"train": len(material.train), "dev": len(material.dev)},
        "left_out": material.left_out,
        "rows": trained.counts,
        "dev": trained.dev.rows,
        "dialogues": len(material.dialogue_ids),
    }
    write_json(out / SUMMARY, summary)
    trained.run.forget_states(recipe.trackers)


def _form_in_words(metadata: SftMetadata) -> str:
    """Return what stands before a reply."""
    before = ["its reasoning"] if metadata.reasoning else []
    before += ["its strategy"] if metadata.strategy == "tag" else []
    form = f"{' and '.join(before)} in `<think>`, then the reply in `<response>`" if before else "the reply alone"
    return f"{form}; the prompt names the strategy" if metadata.strategy == "prompt" else form
