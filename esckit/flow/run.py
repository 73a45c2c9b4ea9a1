"""``esckit train-flow``: from search trees, or a corpus, to a strategy policy (AFlow, arXiv 2602.08826).

The run folder holds ``checkpoint/`` (the best state so far with its card, whole whenever it is there; later recipes
name it by the run), ``metrics.jsonl`` and ``summary.json``; while it trains also ``states/``, from which a stopped run
resumes. :class:`FlowKind` says as what other runs can use the checkpoint. Everything heavy is imported where it is
used, so that a dry run stays light.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esckit.errors import ConfigError, MissingRunsError
from esckit.flow.data import Material, class_counts, class_weights, collect, counts, flow_trees, token_counts
from esckit.flow.recipe import TrainFlowRecipe
from esckit.flow.text import FLOW_TEXT, HEADS, FlowMetadata, FlowText, policy_id, read_metadata, writer_metadata
from esckit.lineage import require_runs
from esckit.models.backbones import fetch_backbone, find_backbone
from esckit.models.checkpoint import FOLDER
from esckit.models.in_memory import build_tokenizer
from esckit.models.shape import shape_of_backbone
from esckit.play.runner import SUMMARY, RunResult
from esckit.protocols import Part, Progress
from esckit.records import write_json
from esckit.registry import load_attr
from esckit.roles.pool import require_taxonomy
from esckit.strategies.kept import keep_taxonomy, taxonomy_inputs
from esckit.training.memory import Workload, plan_memory, plan_without_inputs
from esckit.training.run import (
    STATE_FILE,
    Process,
    Sharding,
    TrainingRun,
    check_model,
    check_trackers,
    this_process,
    training,
)

if TYPE_CHECKING:
    from torch import Tensor

    from esckit.flow.batch import FlowBatch, LossTerms, Updates
    from esckit.flow.data import FlowTree
    from esckit.flow.model import FlowModel
    from esckit.flow.trainer import FlowTrainer, GoldValidation, TreeValidation

log = logging.getLogger(__name__)

LOW_ENTROPY = 0.3
"""Nats of π below which training warns: eight equal strategies have 2.08, two have 0.69."""

RESPONSE_TOKENS = 256
"""Target tokens of the response term whose logits exist at a time: those of :class:`esckit.flow.model.ResponseHead`."""

_POWER = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}


def plan(
    recipe: TrainFlowRecipe, *, n_processes: int | None = None, sharding: Sharding | None = None
) -> dict[str, Any]:
    """Return what a run of the recipe would do, without any model; the number of processes changes no update.

    ``steps_at_most`` counts every path, also those that may be too long, which the tokenizer alone could tell.

    Args:
        recipe: The recipe.
        n_processes: Processes that would share it; None takes those that a launcher started.
        sharding: What they would divide; None likewise.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    process = this_process().planned(n_processes, sharding)
    check_trackers(recipe.trackers)
    try:
        material = _checked(recipe, process)
    except MissingRunsError as error:
        # Heads of so few strategies weigh next to nothing.
        return plan_without_inputs(process, plan_memory(workload(recipe, 0), process), error)
    found = counts(material, recipe.data)
    n_paths = found["train"].get("paths", found["train"].get("dialogues"))
    return found | {
        "steps_at_most": recipe.optim.epochs * math.ceil(n_paths / recipe.optim.paths_per_update),
        "processes": process.count,
        "memory_per_device": plan_memory(workload(recipe, len(material.labels.names)), process),
    }


def workload(recipe: TrainFlowRecipe, n_strategies: int) -> Workload:
    """Return what a training does on one device: it reads rows up to the budget of a forward pass."""
    model, encoding, attention = recipe.model, recipe.encoding, recipe.encoding.attention
    shape = shape_of_backbone(model.backbone)
    h = 0 if shape is None else shape.hidden
    tokens = encoding.max_tokens if encoding.mode == "tree" else min(encoding.max_tokens, encoding.max_path_tokens)
    return Workload(
        model=model,
        trainable=model.trainable,
        precision=model.precision,
        rows=max(1, encoding.max_tokens // tokens),
        tokens=tokens,
        checkpointing=model.gradient_checkpointing,
        lora=recipe.lora,
        targets=recipe.lora.targets,
        head=h * h + h + 2 * n_strategies * (h + 1),
        attention="eager" if attention == "eager" else "sdpa",
        dense_mask=encoding.mode == "tree",
        frozen_layers=model.frozen_layers,
        logits=RESPONSE_TOKENS * shape.vocabulary if recipe.response_weight > 0 and shape is not None else 0,
        averaged=recipe.optim.average_from is not None,
    )


def run(recipe: TrainFlowRecipe, *, out: Path, progress: Progress | None = None) -> RunResult:
    """Train a policy, or resume a training that was stopped.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        progress: Shows how far the run is.

    Raises:
        EsckitError: See :mod:`esckit.errors`; what is done stays on disk.
    """
    material = _checked(recipe, this_process())
    _check_device(recipe)
    with training(recipe, out, inputs=_inputs(recipe, material), progress=progress) as run:
        result = run.finished(recipe.trackers)
        if result is None:
            if run.folder is not None:
                keep_taxonomy(material.labels, out)
            began = time.perf_counter()
            session = _prepare(recipe, material, run)
            n_updates = _fit(session)
            if run.folder is None:
                return RunResult(out, {})
            run.folder.update_manifest(train_s=round(time.perf_counter() - began, 1))
            result = RunResult(out, _finish(session, n_updates))
        run.forget_states(recipe.trackers)
    return result


def known_inputs(recipe: TrainFlowRecipe) -> dict[str, Any]:
    """Return what a run of the recipe is known by beside the recipe.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    return _inputs(recipe, _checked(recipe, this_process()))


def _inputs(recipe: TrainFlowRecipe, material: Material) -> dict[str, Any]:
    init = recipe.model.init
    return {
        "data": material.facts,
        "inputs": material.inputs,
        **taxonomy_inputs(material.labels),
        **({"init": {init: policy_id(Path(init))}} if init is not None else {}),
    }


def _checked(recipe: TrainFlowRecipe, process: Process) -> Material:
    """Return what is learnt from; refuse an unknown backbone, and a checkpoint to start from that does not fit.

    Raises:
        ConfigError: If there is no such backbone, or recipe and checkpoint read dialogues differently.
        CheckpointError: If there is no such checkpoint, or it is of another taxonomy.
    """
    require_runs(recipe)
    if ":" in recipe.objective.name:
        load_attr("esckit.flow.objectives:objective")(recipe.objective.name, subtb_lambda=1.0)
    material = collect(recipe.data)
    find_backbone(recipe.model.backbone)
    check_model(
        recipe.model,
        "model",
        process.sharding,
        attention="flash_attention_2" if recipe.encoding.attention == "flash_attention_2" else "auto",
    )
    if recipe.optim.average_from is not None and process.sharding in ("zero2", "zero3"):
        raise ConfigError(
            "optim.average_from with DeepSpeed, which keeps the weights that are trained to itself",
            expected="one device, --accelerate multi-gpu or fsdp; or optim.average_from: null",
        )
    if recipe.model.init is None:
        return material
    require_taxonomy(Path(recipe.model.init), material.labels)
    metadata = read_metadata(Path(recipe.model.init), strategies=material.labels.names)
    for field, ours, theirs in (
        ("model.backbone", recipe.model.backbone, metadata.backbone),
        ("model.trainable", recipe.model.trainable, metadata.trainable),
        ("encoding.strategy_tags", recipe.encoding.strategy_tags, metadata.strategy_tags),
        ("encoding.situation", recipe.encoding.situation, metadata.situation),
    ):
        if ours != theirs:
            raise ConfigError(
                f"{field}: {ours}, but model.init was trained with {theirs}", hint=f"Set {field} to {theirs}"
            )
    return material


def _check_device(recipe: TrainFlowRecipe) -> None:
    """Refuse FlexAttention without a GPU: on a processor torch has no backward pass for it."""
    if recipe.encoding.attention == "flex":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("encoding.attention: flex without a CUDA device", expected="tree, sdpa or eager")


# ---------------------------------------------------------------- the training


@dataclass(frozen=True, slots=True)
class _Session:
    """Everything that a training is made of, before it starts.

    Attributes:
        trees: The material as token ids, by use.
        counts: How often each strategy is taken in training.
    """

    recipe: TrainFlowRecipe
    material: Material
    run: TrainingRun
    tokenizer: Any
    trees: dict[str, list[FlowTree]]
    counts: tuple[int, ...]
    terms: LossTerms
    updates: Updates

    def passes(self, use: str, process: Process) -> list[FlowBatch]:
        """Return a process's forward passes over a part, all of it as one update; none without that part."""
        from esckit.flow.batch import chunks, make_update

        encoding, trees = self.recipe.encoding, self.trees.get(use, ())
        found = [chunk for tree in trees for chunk in chunks(tree, encoding)]
        return make_update(found, encoding, self.terms, process) if found else []

    def validation(self) -> TreeValidation | GoldValidation:
        """Return how valid is measured in this process: by the losses of trees, or on the labels of a corpus."""
        from esckit.flow.trainer import GoldValidation, TreeValidation

        passes = self.passes("valid", self.run.process)
        if self.recipe.data.gold is None:
            return TreeValidation(passes, self.terms)
        return GoldValidation(passes, taus=self.recipe.objective.logit_adjust, train_counts=self.counts)

    @property
    def longest_path(self) -> int:
        """Tokens of the longest path of all parts."""
        return max(
            tree.prefix_length(path.nodes[-1]) for part in self.trees.values() for tree in part for path in tree.paths
        )


def _prepare(recipe: TrainFlowRecipe, material: Material, run: TrainingRun) -> _Session:
    """Seed the generators, tokenise the material and lay out the updates."""
    from esckit.flow.batch import LossTerms, Updates
    from esckit.models.loading import load_tokenizer
    from esckit.training.harness import set_up, warn_of_memory

    set_up(run.process, seed=recipe.seed, threads=recipe.executor.threads)
    warn_of_memory(plan_memory(workload(recipe, len(material.labels.names)), run.process), run.process)
    backbone, encoding, objective = recipe.model.backbone, recipe.encoding, recipe.objective
    in_memory = find_backbone(backbone).kind == "memory"
    tokenizer = build_tokenizer(find_backbone(backbone).name) if in_memory else load_tokenizer(fetch_backbone(backbone))
    abbreviations = dict(zip(material.labels.names, material.labels.abbrs, strict=True))
    text = FlowText(tokenizer, situation=encoding.situation, tags=abbreviations if encoding.strategy_tags else None)
    trees = {use: flow_trees(material, use, recipe, text) for use in material.parts}
    taken = class_counts(trees["train"], len(material.labels.names))
    is_weighted = objective.name == "bc" and objective.class_weight != "none"
    # A corpus has no search values to rank by, and no recorded prior.
    nothing = {"weight": 0.0} if recipe.data.gold is not None else {}
    terms = LossTerms(
        objective=objective,
        rank=recipe.rank.model_copy(update=nothing),
        kl=recipe.kl.model_copy(update=nothing),
        response_weight=recipe.response_weight,
        class_weights=class_weights(taken, power=_POWER[objective.class_weight]) if is_weighted else None,
    )
    updates = Updates(trees["train"], encoding, terms, recipe.optim, seed=recipe.seed, process=run.process)
    return _Session(recipe, material, run, tokenizer, trees, taken, terms, updates)


def _fit(session: _Session) -> int:
    """Train, keeping the best state so far in the run folder; a stopped training resumes from its last state.

    Returns:
        The number of updates that were made in all.

    Raises:
        TrainingError: If a loss or gradient is not finite; what was kept stays.
    """
    from transformers import TrainerState, TrainingArguments

    from esckit.flow.model import build_model
    from esckit.flow.trainer import FlowTrainer
    from esckit.training.harness import Diverged, fit, frozen_dtype, trainer_arguments
    from esckit.training.monitor import EarlyStop, EpochEnds, Monitor, is_best
    from esckit.training.sharding import EngineGuard

    recipe, run, updates, optim = session.recipe, session.run, session.updates, session.recipe.optim
    # Before the arguments: they tell transformers of ZeRO-3, which would split the model before its heads are on it.
    dtype = frozen_dtype(recipe.model, recipe.model.precision)
    model = build_model(recipe, session.material.labels.names, longest_path=session.longest_path, dtype=dtype)
    validation = session.validation()
    selects = optim.select == "best_valid"
    watched = ("train/loss", "train/grad_norm", *([validation.key] if selects else []))

    def evaluated(state: TrainerState, metrics: Mapping[str, Any]) -> None:
        """Write a row and keep the model if it is the best so far; called in every process."""
        if metrics:
            monitor.row(state.global_step, metrics)
        is_trained = recipe.model.init is not None
        if state.global_step == 0 and not is_trained:
            return
        better, value = validation.greater_is_better if selects else None, metrics.get(validation.key)
        if is_best(state, value, greater_is_better=better, start_counts=is_trained):
            _keep(session, trainer, model, validation.offset(metrics), metrics)

    diverged = Diverged(run, lambda: updates.tree_ids(trainer.state.global_step - 1))
    monitor = Monitor(
        run,
        diverged,
        watched=lambda logs: watched,
        means=_rows(session, lambda: trainer.state.global_step),
        epoch=lambda step: 1 + sum(end < step for end in updates.epoch_ends) if step else 0,
        evaluated=evaluated,
        step_key="update",
    )
    ends = EpochEnds(updates.epoch_ends, recipe.checkpoints.every, evaluate_every=optim.validate_every)
    early_stop = EarlyStop(ends, optim.patience)
    trainer = FlowTrainer(
        model,
        # To the Trainer an item is an update, and the whole training is one epoch.
        trainer_arguments(
            TrainingArguments,
            optim,
            run=run,
            seed=recipe.seed,
            n_steps=len(updates),
            precision=recipe.model.precision,
            trackers=recipe.trackers,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
            eval_on_start=run.state is None,
            label_names=["labels"],
        ),
        updates=updates,
        terms=session.terms,
        validation=validation,
        head_lr=optim.head_lr,
        average_from=optim.average_from,
        callbacks=[
            monitor,
            EngineGuard(lambda: trainer, diverged.stop),
            ends,
            early_stop,
        ],
    )
    if run.state is not None and early_stop.is_due(TrainerState.load_from_json(str(run.state / STATE_FILE))):
        return run.resumed_step
    fit(trainer, run, diverged)
    return trainer.state.global_step


def _rows(session: _Session, step: Callable[[], int]) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]:
    """Return what makes the row of an update, with token counts at the end of an epoch; warn once of a sharp policy.

    Args:
        session: The training.
        step: Number of the update.
    """
    tokens = {f"tokens/{name}": count for name, count in token_counts(session.trees["train"]).items()}
    is_sharp = False

    def row(window: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        nonlocal is_sharp
        (values,) = ({name: value for name, value in logs.items() if "/" in name} for logs in window)
        if values["train/policy_entropy"] < LOW_ENTROPY and not is_sharp:
            is_sharp = True
            log.warning(
                "the policy's entropy is %.2f nats at update %d: it is close to always choosing the same",
                values["train/policy_entropy"],
                step(),
            )
        return values | (tokens if step() in session.updates.epoch_ends else {})

    return row


def _keep(
    session: _Session, trainer: FlowTrainer, model: FlowModel, offset: Tensor | None, metrics: Mapping[str, Any]
) -> None:
    """Write the model as the checkpoint of the run; called in every process.

    Args:
        session: The training.
        trainer: Holds the model's tensors, which may be sharded.
        model: The model as it was built.
        offset: A chosen shift of the logits (A,), which becomes part of the strategy head's bias; None for none.
        metrics: What was measured on valid.
    """
    from esckit.training.checkpoint import save_checkpoint
    from esckit.training.sharding import gathered_state

    state = gathered_state(trainer, trained_only=session.recipe.model.trainable == "lora")
    if not session.run.process.is_main:
        return
    bias = "strategy_head.out.bias"
    if offset is not None:
        state[bias] = state[bias] + offset.to(state[bias].device)
    save_checkpoint(
        session.run.out / FOLDER,
        _metadata(session, trainer, metrics),
        backbone=model.backbone,
        tokenizer=session.tokenizer,
        state={name: tensor for name, tensor in state.items() if not name.startswith("lm_head.")},
        heads_file=HEADS,
    )


def _metadata(session: _Session, trainer: FlowTrainer, metrics: Mapping[str, Any]) -> FlowMetadata:
    """Return what a checkpoint of this training says about itself."""
    from esckit.training.harness import frozen_as

    recipe, material = session.recipe, session.material
    ids = {use: tuple(dict.fromkeys(t.scenario_id for t in session.trees.get(use, ()))) for use in ("train", "valid")}
    before = read_metadata(Path(recipe.model.init)).dialogue_ids if recipe.model.init else ()
    return FlowMetadata(
        taxonomy=material.labels.name,
        strategies=material.labels.names,
        flow_text=FLOW_TEXT,
        strategy_tags=recipe.encoding.strategy_tags,
        situation=recipe.encoding.situation,
        backbone=recipe.model.backbone,
        frozen_as=None if recipe.model.trainable == "full" else frozen_as(recipe.model, recipe.model.precision),
        trainable=recipe.model.trainable,
        objective=recipe.objective.model_dump(exclude={"logit_adjust"}),
        inputs=material.inputs,
        round=material.round,
        max_tokens=recipe.encoding.max_state_tokens,
        selected_by=recipe.optim.select,
        dialogue_ids=tuple(dict.fromkeys((*before, *ids["train"], *ids["valid"]))),
        dev_ids=ids["valid"],
        step=trainer.state.global_step,
        averaged=trainer.average.count(trainer.state),
        metrics=dict(metrics),
    )


# ---------------------------------------------------------------- results


def _finish(session: _Session, n_updates: int) -> dict[str, Any]:
    """Measure the kept checkpoint on test, where there is one, and write summary and card; return the summary."""
    from esckit.training.checkpoint import metrics_table, write_card

    metadata, recipe = read_metadata(session.run.out), session.recipe
    if metadata.step == 0:
        log.warning("no update was better on valid than %s: that policy is kept", recipe.model.init)
    if n_updates < len(session.updates):
        log.info("stopped after %d of %d updates: optim.patience", n_updates, len(session.updates))
    if recipe.optim.average_from is not None and metadata.averaged == 0:
        log.warning("what is kept is no mean: update %d is before optim.average_from", metadata.step)
    valid = {name.removeprefix("valid/"): value for name, value in metadata.metrics.items() if "@" not in name}
    summary: dict[str, Any] = {
        "material": counts(session.material, recipe.data),
        "dropped_paths": sum(tree.n_dropped for part in session.trees.values() for tree in part),
        "tokens_per_epoch": token_counts(session.trees["train"]),
        "updates": n_updates,
        "best_update": metadata.step,
        **({"averaged_updates": metadata.averaged} if recipe.optim.average_from is not None else {}),
        "valid": valid,
    }
    columns: dict[str, Any] = {"valid": valid}
    if "test" in session.trees:
        test = summary["test"] = _test(session)
        columns |= {"test": test, "majority": test["majority"], "frequencies": test["frequency_guessing"]}
    facts = metadata.model_dump() | {
        "objective": metadata.objective["name"],
        "taxonomy": f"{metadata.taxonomy}: {', '.join(metadata.strategies)}",
        "n_train": len(metadata.dialogue_ids) - len(metadata.dev_ids),
        "n_valid": len(metadata.dev_ids),
        "steps": summary["updates"],
        "weights": f"the mean over the last {metadata.averaged} updates" if metadata.averaged else "of that update",
        "metrics": metrics_table(columns, [name for name in valid if name != "loss"]),
    }
    write_card(session.run.out / FOLDER, "flow_policy", facts)
    keep_taxonomy(session.material.labels, session.run.out / FOLDER)
    write_json(session.run.out / SUMMARY, summary)
    return summary


def _test(session: _Session) -> dict[str, Any]:
    """Return how well the kept checkpoint predicts the gold strategies of the test part."""
    import torch

    from esckit.flow.model import load_flow_model
    from esckit.flow.trainer import confusions, test_report
    from esckit.training.harness import frozen_dtype, uses_bf16

    recipe, strategies = session.recipe, session.material.labels.names
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    full = recipe.model.trainable == "full"
    dtype = torch.float32 if full else frozen_dtype(recipe.model, recipe.model.precision)
    model = (
        load_flow_model(
            session.run.out,
            attention=recipe.encoding.attention,
            dtype=dtype,
            quantisation=recipe.model.quantisation,
            trainable=dtype != torch.float32,  # an adapter merged into bfloat16 weights would be rounded away
        )
        .model.eval()
        .to(device)
    )
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(recipe.model.precision)):
        found = confusions(model, session.passes("test", Process()), torch.zeros(1, len(strategies)), device)
    return test_report(found[0], strategies, session.counts)


# ---------------------------------------------------------------- its checkpoints in use


class FlowKind:
    """Checkpoints of ``train-flow``: they choose strategies, may write, and talk as their plain backbone."""

    parts: frozenset[Part] = frozenset({"chat", "strategist", "writer"})

    def check(self, run: Path, part: Part, strategies: tuple[str, ...] | None) -> None:
        """Refuse a checkpoint of another taxonomy, or as writer one that was not trained to write."""
        read_metadata(run, strategies=None if part == "chat" else strategies)
        if part == "writer":
            writer_metadata(run)

    def identity(self, run: Path) -> str:
        """Return ``flow/<digest>``."""
        return policy_id(run)

    def taxonomy(self, run: Path) -> str | None:
        """Return the name of its taxonomy."""
        return read_metadata(run).taxonomy

    def prompt(self, run: Path) -> str | None:
        """Return None: it was not trained as a chat model."""
        return None

    def load(self, run: Path, part: Part, abbreviations: Mapping[str, str], **options: Any) -> Any:
        """Return the policy, the writer, or the plain backbone."""
        if part == "chat":
            from esckit.models.local import LocalModel

            return LocalModel.load(read_metadata(run).backbone, **options)
        from esckit.flow.policy import CheckpointPolicy, FlowWriter

        load = FlowWriter.load if part == "writer" else CheckpointPolicy.load
        return load(run, abbreviations=abbreviations, **options)
