"""``esckit train-reward``: from scored futures to a reward model (RLFF-ESC, arXiv 2508.12935).

The run folder holds ``checkpoint/`` (the best state so far, whole at any moment), ``metrics.jsonl``,
``dev_predictions.jsonl``, ``calibration.json`` and ``.svg``, ``summary.json``; while it trains also ``states/``, from
which a stopped run resumes. :class:`RewardKind` says as what other runs can use the checkpoint, which holds::

    checkpoint/reward.json            metadata: prompt, label rule, objective, backbone, what it was trained on
    checkpoint/head.safetensors       the float32 head (of a ranker with an untied LM head: that)
    checkpoint/adapter/ or backbone/  as peft or transformers write them; neither if only the head was trained
    checkpoint/tokenizer/             as transformers writes it

A model is used only with the prompt it was trained with.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esckit.errors import CheckpointError, DataError, MissingRunsError, named_by
from esckit.lineage import require_runs
from esckit.models.backbones import find_backbone
from esckit.models.checkpoint import read_metadata
from esckit.models.shape import shape_of_backbone
from esckit.play.futures import RewardInputs, read_inputs
from esckit.play.runner import RunResult
from esckit.prompts.prompt import prompt_names
from esckit.protocols import Part, Progress
from esckit.reward.examples import USUAL_LABELS, Parts, check_parts, label_name, label_parts, split_futures
from esckit.reward.recipe import TrainRewardRecipe, plan_steps
from esckit.reward.text import RewardMetadata, reward_template
from esckit.runs import MANIFEST, read_manifest, stated
from esckit.training.memory import Workload, lora_targets, plan_memory, plan_without_inputs
from esckit.training.policy import PolicyStart, read_start
from esckit.training.run import Process, Sharding, check_model, check_trackers, this_process, training

if TYPE_CHECKING:
    from esckit.reward.model import RewardModel

log = logging.getLogger(__name__)

USUAL_RESPONSE = 128
"""Tokens of a response in the estimate of memory: no field of the recipe bounds them."""


def plan(
    recipe: TrainRewardRecipe, *, n_processes: int | None = None, sharding: Sharding | None = None
) -> dict[str, Any]:
    """Return what a run of the recipe would do, without any model.

    Labels of one class only are the ``refusal`` of the plan (a DataError, else None): it shows by what rule they would
    be of two. ``positive_share`` is given by label rule, the recipe's own first; ``steps_at_most`` is the number before
    examples that are too long or pair with nothing are left out.

    Args:
        recipe: The recipe.
        n_processes: Processes that would share it; None takes those that a launcher started.
        sharding: What they would divide; None likewise.

    Raises:
        EsckitError: If the inputs or the recipe are wrong.
    """
    check_trackers(recipe.trackers)
    process = this_process().planned(n_processes, sharding)
    try:
        inputs, parts, start = _read(recipe, process)
    except MissingRunsError as error:
        is_ranker = recipe.objective.kind != "classifier"
        memory = plan_memory(workload(recipe, process, per_context=2 if is_ranker else 1), process)
        more = "more than two candidates of a context" if is_ranker else None
        return plan_without_inputs(process, memory, error, not_counted=more) | {"warnings": []}
    train, dev = parts.train.futures, parts.dev.futures
    shares: dict[str, dict[str, float | None]] = {}
    for label in (recipe.label, *USUAL_LABELS):
        labelled = label_parts(train, dev, label)
        sides = (("train", labelled.train), ("dev", labelled.dev))
        shares[label_name(label)] = {name: side.labelling.positive_share for name, side in sides}
    warnings: list[str] = []
    refusal = None
    try:
        warnings = _warnings(parts, start)
    except DataError as error:
        refusal = error
    n_items = len(train) if recipe.objective.kind == "classifier" else len({future.context_id for future in train})
    delta = parts.train.labelling.delta
    steps = plan_steps(recipe.optim, n_items=n_items, n_processes=process.count).steps
    return {
        "dialogues": {"train": parts.train.n_dialogues, "dev": parts.dev.n_dialogues},
        "examples": {"train": len(train), "dev": len(dev)},
        "failed_futures": len(inputs.futures) - len(train) - len(dev),
        "positive_share": shares,
        "delta": None if delta is None else float(delta),
        "steps_at_most": steps,
        "processes": process.count,
        "memory_per_device": _memory(recipe, process, parts),
        "warnings": warnings,
        "refusal": refusal,
    }


def workload(recipe: TrainRewardRecipe, process: Process, *, per_context: int) -> Workload:
    """Return what a training does on one device.

    Args:
        recipe: The recipe.
        process: How it is shared.
        per_context: Candidates of a context, which a ranker reads together.
    """
    model, optim, kind = recipe.model, recipe.optim, recipe.objective.kind
    rows = plan_steps(optim, n_items=1, n_processes=process.count).micro_batch
    shape = shape_of_backbone(model.backbone)
    n_rows = rows if kind == "classifier" else rows * per_context
    n_outputs = {"classifier": 2, "pairwise": 1, "rrhf": 0}[kind]
    return Workload(
        model=model,
        trainable=model.trainable,
        precision=optim.precision,
        rows=n_rows,
        tokens=model.max_length,
        checkpointing=optim.gradient_checkpointing,
        lora=model.lora,
        targets=lora_targets(model.lora, model.backbone),
        head=0 if shape is None else n_outputs * (shape.hidden + 1),
        attention=model.attention,
        dense_mask=rows > 1 or kind != "classifier",
        logits=n_rows * USUAL_RESPONSE * shape.vocabulary if kind == "rrhf" and shape is not None else 0,
    )


def _memory(recipe: TrainRewardRecipe, process: Process, parts: Parts) -> dict[str, int] | None:
    """Return what a device needs for the examples of a training, None if the model's shape is not known."""
    per_context = max(Counter(future.context_id for future in parts.train.futures).values(), default=1)
    return plan_memory(workload(recipe, process, per_context=per_context), process)


def run(recipe: TrainRewardRecipe, *, out: Path, progress: Progress | None = None) -> RunResult:
    """Train the reward model of the recipe; a stopped run resumes from its last state.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        progress: Shows how far the run is.

    Raises:
        EsckitError: See :mod:`esckit.errors`; what is done stays on disk.
    """
    inputs, parts, start = _read(recipe, this_process())
    warnings = _warnings(parts, start)
    plan_steps(recipe.optim, n_items=len(parts.train.futures), n_processes=this_process().count)
    with training(recipe, out, inputs=_known_inputs(recipe, inputs, start), progress=progress) as run:
        if (result := run.finished(recipe.trackers)) is not None:
            return result
        for warning in warnings if run.process.is_main else ():
            log.warning("%s", warning)
        from esckit.reward.quality import finish
        from esckit.reward.trainer import prepare, train
        from esckit.training.harness import warn_of_memory

        warn_of_memory(_memory(recipe, run.process, parts), run.process)
        session = prepare(recipe, inputs, parts, start, run)
        train(session)
        return RunResult(out, finish(session, warnings) if run.process.is_main else {})


def known_inputs(recipe: TrainRewardRecipe) -> dict[str, Any]:
    """Return what a run of the recipe is known by beside the recipe.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    inputs, _, start = _read(recipe, this_process())
    return _known_inputs(recipe, inputs, start)


def _known_inputs(recipe: TrainRewardRecipe, inputs: RewardInputs, start: PolicyStart) -> dict[str, Any]:
    known = {"data": inputs.facts(), "prompts": {"reward_model": reward_template(recipe.prompt).prompt}}
    if start.start is None:
        return known
    ids = list(dict.fromkeys([*inputs.dialogue_ids, *start.seen]))
    return known | {"data": known["data"] | {"ids": ids, "inherited_ids": ids}, "start": start.start.model_dump()}


def _start(recipe: TrainRewardRecipe) -> PolicyStart:
    """Return what the network begins with.

    Raises:
        CheckpointError: If the run that is named holds no supporter of ``train-sft``, or one of another backbone.
        DataError: If it is no run folder.
    """
    model = recipe.model
    if model.start is None:
        return PolicyStart(model.backbone)
    with named_by("model.start"):
        found = read_start(model.start)
        if found.backbone != model.backbone:
            raise CheckpointError(
                f"{model.start} is a supporter on {found.backbone}", expected=f"one on {model.backbone}, model.backbone"
            )
    return found


def _warnings(parts: Parts, start: PolicyStart) -> list[str]:
    """Return warnings about rare classes, and about what the training begins with.

    Raises:
        DataError: If a part is empty, or has one class only.
    """
    dev_ids = {future.dialogue_id for future in parts.dev.futures}
    return [*check_parts(parts), *start.warnings(dev_ids, of="network")]


def _read(recipe: TrainRewardRecipe, process: Process) -> tuple[RewardInputs, Parts, PolicyStart]:
    """Return the inputs, their labelled futures and what the network begins with; check what else the recipe names."""
    require_runs(recipe)
    find_backbone(recipe.model.backbone)
    start = _start(recipe)
    check_model(recipe.model, "model", process.sharding, attention=recipe.model.attention)
    reward_template(recipe.prompt)
    with named_by("inputs"):
        inputs = read_inputs(recipe.inputs)
    train, dev = split_futures(inputs.futures, seed=recipe.seed, share=recipe.dev.share)
    return inputs, label_parts(train, dev, recipe.label), start


# ---------------------------------------------------------------- its checkpoints in use


def reward_manifest(run: Path) -> dict[str, Any]:
    """Return the manifest of a run of ``train-reward`` whose model can be used today; loads nothing heavy.

    Raises:
        CheckpointError: If it is not such a run, holds no reward model, or its prompt has changed since.
    """
    if not (run / MANIFEST).is_file():
        raise CheckpointError(f"{run} is not a run folder", expected="a run folder of train-reward")
    manifest = read_manifest(run)
    if manifest["command"] != "train-reward":
        raise CheckpointError(f"{run} is a run of {manifest['command']!r}", expected="one of 'train-reward'")
    trained = read_metadata(RewardMetadata, run).template
    name = str(stated(manifest, "recipe.prompt", path=run))
    # A prompt file of the user's own may be gone; then the model is read as it was trained.
    today = reward_template(name) if name in prompt_names() or Path(name).is_file() else trained
    if today != trained:
        raise CheckpointError(
            f"{run} was trained with prompt {trained.prompt}",
            expected=today.prompt,
            hint="Train it again, or name the prompt's version that it was trained with",
        )
    return manifest


class RewardKind:
    """Checkpoints of ``train-reward``: they score supporter turns."""

    parts: frozenset[Part] = frozenset({"scorer"})

    def check(self, run: Path, part: Part, strategies: tuple[str, ...] | None) -> None:
        """Refuse a model that was trained with another version of its prompt."""
        reward_manifest(run)

    def identity(self, run: Path) -> str:
        """Return ``reward_model/<digest of its recipe>``."""
        return f"reward_model/{read_manifest(run)['recipe_digest']}"

    def taxonomy(self, run: Path) -> str | None:
        """Return None: it knows no strategies."""
        return None

    def prompt(self, run: Path) -> str | None:
        """Return None: it was not trained as a chat model."""
        return None

    def load(self, run: Path, part: Part, abbreviations: Mapping[str, str], **options: Any) -> RewardModel:
        """Return the reward model, see :meth:`esckit.reward.model.RewardModel.load`.

        Raises:
            CheckpointError: If there is no reward model, it is not whole, or it was trained with another prompt.
            ConfigError: If its backbone cannot be had.
        """
        from esckit.reward.model import RewardModel

        status = reward_manifest(run).get("status")
        if status != "complete":
            log.warning("%s is not complete (%s): its reward model is the best so far", run, status)
        return RewardModel.load(run, **options)
