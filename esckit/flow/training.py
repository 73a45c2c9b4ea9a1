"""One training of a flow model: material, model, validation and Trainer put together. Imports torch.

See :mod:`esckit.flow.run` for the command and its run folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging

from esckit.flow.batch import Encoding, FlowBatch, FlowSettings, chunks, make_update, n_tokens
from esckit.flow.data import Material, flow_trees
from esckit.flow.gold import GoldValidation, log_shares
from esckit.flow.model import (
    FlowModel,
    LoraSettings,
    check_exact,
    freeze_layers,
    load_decoder,
    load_flow_model,
    load_tokenizer,
    new_flow_model,
    save_flow_model,
)
from esckit.flow.recipe import TrainFlowRecipe
from esckit.flow.text import FLOW_TEXT, FlowMetadata, FlowText, read_metadata
from esckit.flow.trainer import SELECTS, FlowTrainer, FlowValidation, Keep, Metrics, Rows, Updates
from esckit.flow.trees import FlowTree, class_counts, class_weights, token_counts
from esckit.models.backbones import quiet_off_terminal
from esckit.models.capabilities import checkpoint_activations
from esckit.models.checkpoint import FOLDER
from esckit.models.decoder import base_decoder
from esckit.models.packing import check_packable
from esckit.play.executor import Progress
from esckit.play.session import STATES
from esckit.processes import Process
from esckit.records import JsonlAppender
from esckit.training.callbacks import DivergenceGuard, StepProgress
from esckit.training.harness import (
    Diverged,
    OptimSettings,
    StepPlan,
    TrainingRun,
    last_state,
    step_of,
    training_arguments,
)
from esckit.training.monitor import EpochEnds, keep_rows
from esckit.training.sharding import EngineGuard, gathered_state

METRICS = "metrics.jsonl"

_POWER = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}


@dataclass(frozen=True, slots=True)
class Session:
    """Everything that a training is made of, before it starts.

    Attributes:
        trees: The material as token ids, by use.
        counts: How often each strategy is taken in training.
    """

    recipe: TrainFlowRecipe
    material: Material
    out: Path
    process: Process
    tokenizer: Any
    trees: dict[str, list[FlowTree]]
    encoding: Encoding
    settings: FlowSettings
    counts: tuple[int, ...]

    def passes(self, use: str) -> list[FlowBatch]:
        """Return this process's forward passes over a part, all of it as one update."""
        part = [chunk for tree in self.trees[use] for chunk in chunks(tree, self.encoding)]
        part.sort(key=lambda chunk: n_tokens([chunk], self.encoding))
        return make_update(part, self.encoding, self.settings, rank=self.process.rank, n_ranks=self.process.count)

    def alone(self) -> Session:
        """Return the same as seen by a single process."""
        return replace(self, process=Process())

    def updates(self) -> Updates:
        """Return the optimiser steps."""
        return Updates(
            [chunk for tree in self.trees["train"] for chunk in chunks(tree, self.encoding)],
            self.encoding,
            self.settings,
            epochs=self.recipe.optim.epochs,
            paths_per_update=self.recipe.optim.paths_per_update,
            seed=self.recipe.seed,
            rank=self.process.rank,
            n_ranks=self.process.count,
        )

    def tokens(self) -> dict[str, int]:
        """Return how many tokens each encoding would read in an epoch."""
        return asdict(reduce(add, (token_counts(tree) for tree in self.trees["train"])))


def prepare(recipe: TrainFlowRecipe, material: Material, out: Path, process: Process) -> Session:
    """Tokenise the material and say how it becomes batches."""
    transformers_logging.set_verbosity_error()
    quiet_off_terminal()
    if recipe.executor.threads is not None:
        torch.set_num_threads(recipe.executor.threads)
    tokenizer = load_tokenizer(recipe.model.backbone)
    text = FlowText(
        tokenizer,
        situation=recipe.encoding.situation,
        strategy_tags=recipe.encoding.strategy_tags,
        abbreviations=material.abbreviations,
    )
    trees = {use: flow_trees(material, use, recipe, text) for use in material.parts}
    encoding = Encoding(
        mode=recipe.encoding.mode,
        max_tokens=recipe.encoding.max_tokens,
        pad_id=tokenizer.pad_token_id or 0,
        max_paths_per_chunk=recipe.encoding.max_paths_per_chunk,
        max_prefix_tokens=recipe.encoding.max_prefix_tokens,
        responses=recipe.response_weight > 0,
    )
    counts = class_counts(trees["train"], len(material.strategies))
    return Session(recipe, material, out, process, tokenizer, trees, encoding, flow_settings(recipe, counts), counts)


def flow_settings(recipe: TrainFlowRecipe, counts: tuple[int, ...]) -> FlowSettings:
    """Return the loss that a recipe asks for.

    Args:
        recipe: The recipe.
        counts: How often each strategy is taken in training.
    """
    objective, is_gold = recipe.objective, recipe.data.gold is not None
    weights = None
    if objective.name == "bc" and objective.class_weight != "none":
        weights = class_weights(counts, power=_POWER[objective.class_weight])
    return FlowSettings(
        objective=objective.name,
        subtb_lambda=objective.subtb_lambda,
        terminal_boundary=objective.terminal_boundary,
        flow_eps=objective.flow_eps,
        state_value=objective.state_value,
        weighting=objective.weighting,
        rank_weight=0.0 if is_gold else recipe.rank.weight,
        rank_margin=recipe.rank.margin,
        rank_negatives=recipe.rank.negatives,
        rank_min_gap=recipe.rank.min_gap,
        kl_weight=0.0 if is_gold else recipe.kl.weight,
        kl_form=recipe.kl.form,
        kl_reference=recipe.kl.reference,
        response_weight=recipe.response_weight,
        class_weights=weights,
    )


# ---------------------------------------------------------------- the model


def build_model(session: Session) -> FlowModel:
    """Return the model to train, on the processor; every process builds the same.

    Raises:
        ConfigError: If the backbone cannot be packed or adapted as asked for.
        CheckpointError: If ``model.init`` does not fit.
    """
    recipe = session.recipe
    set_seed(recipe.seed % 2**32)
    model = _from_checkpoint(session) if recipe.model.init else _fresh(session)
    decoder = base_decoder(model.backbone)
    if recipe.encoding.mode == "tree":
        paths = (
            tree.prefix_length(path.nodes[-1])
            for part in session.trees.values()
            for tree in part
            for path in tree.paths
        )
        check_packable(decoder.config.to_dict(), longest_path=max(paths))
        if recipe.encoding.attention != "flex":  # which runs on a GPU only
            check_exact(model)
    if recipe.model.gradient_checkpointing:
        checkpoint_activations(decoder)
    return model.train()


def _fresh(session: Session) -> FlowModel:
    recipe = session.recipe
    return new_flow_model(
        load_decoder(recipe.model.backbone, dtype=torch.float32),
        session.material.strategies,
        attention=recipe.encoding.attention,
        lora=LoraSettings(**recipe.lora.model_dump()) if recipe.model.trainable == "lora" else None,
        frozen_layers=recipe.model.frozen_layers,
        with_lm_head=recipe.response_weight > 0,
    )


def _from_checkpoint(session: Session) -> FlowModel:
    """Return the model of ``model.init``; an adapter keeps its own shape."""
    recipe = session.recipe
    model = load_flow_model(
        Path(recipe.model.init or ""),
        attention=recipe.encoding.attention,
        strategies=session.material.strategies,
        with_lm_head=recipe.response_weight > 0,
        trainable=True,
    ).model
    if recipe.model.frozen_layers:
        freeze_layers(model.backbone, recipe.model.frozen_layers)
    return model


def metadata_of(session: Session, step: int, metrics: Metrics) -> FlowMetadata:
    """Return what a checkpoint of this training says about itself."""
    recipe, material = session.recipe, session.material
    ids = {use: tuple(dict.fromkeys(t.scenario_id for t in session.trees.get(use, ()))) for use in ("train", "valid")}
    before: tuple[str, ...] = ()
    if recipe.model.init:
        before = read_metadata(Path(recipe.model.init)).dialogue_ids
    return FlowMetadata(
        taxonomy=material.taxonomy,
        strategies=material.strategies,
        flow_text=FLOW_TEXT,
        strategy_tags=recipe.encoding.strategy_tags,
        situation=recipe.encoding.situation,
        backbone=recipe.model.backbone,
        trainable=recipe.model.trainable,
        objective={
            name: value for name, value in recipe.objective.model_dump().items() if not isinstance(value, tuple)
        },
        inputs=material.inputs,
        round=material.round,
        selected_by=recipe.optim.select,
        dialogue_ids=tuple(dict.fromkeys((*before, *ids["train"], *ids["valid"]))),
        dev_ids=ids["valid"],
        step=step,
        metrics=metrics,
    )


# ---------------------------------------------------------------- training


class Validation:
    """What is measured on valid, and what it selects by.

    Attributes:
        key: Name of the deciding value; None without a validation part, or to keep the last.
        greater_is_better: Its direction.
    """

    def __init__(self, session: Session, device: torch.device, reduce: Callable[[Tensor], Tensor]) -> None:
        is_gold = session.recipe.data.gold is not None
        self.gold: GoldValidation | None = None
        self.trees: FlowValidation | None = None
        if is_gold:
            self.gold = GoldValidation(
                session.passes("valid"),
                taus=session.recipe.objective.logit_adjust,
                shares=log_shares(session.counts),
                device=device,
                reduce=reduce,
            )
        elif "valid" in session.trees:
            self.trees = FlowValidation(session.passes("valid"), session.settings, device=device, reduce=reduce)
        key = "valid/macro_f1" if is_gold else SELECTS
        self.key = key if session.recipe.optim.select == "best_valid" else None
        self.greater_is_better = is_gold

    def __call__(self, model: torch.nn.Module) -> Metrics:
        """Return the values of a model in eval mode."""
        measure = self.gold or self.trees
        return measure(model) if measure is not None else {}

    def offset(self, metrics: Metrics) -> Tensor | None:
        """Return what to add to the strategy head's bias in the checkpoint; None leaves it."""
        return self.gold.offset(metrics) if self.gold is not None else None


def fit(session: Session, progress: Progress) -> None:
    """Train, keeping the best state so far in the run folder; a stopped training goes on from its last state.

    Raises:
        TrainingError: If a loss or gradient is not finite; what was kept stays.
    """
    recipe, out, updates = session.recipe, session.out, session.updates()
    state = last_state(out / STATES)
    # Before the arguments: they tell transformers of ZeRO-3, which would split the model before its heads are on it.
    model = build_model(session)
    args = training_arguments(
        _optim(recipe),
        StepPlan(1, 1, len(updates), len(updates), math.ceil(recipe.optim.warmup_share * len(updates))),
        folder=out / STATES,
        evaluate_first=False,
    )
    validation = Validation(session, args.device, lambda tensor: trainer.accelerator.reduce(tensor))

    def keep(step: int, metrics: Metrics) -> None:
        trained = gathered_state(trainer, trained_only=recipe.model.trainable == "lora")
        if session.process.is_main:
            _write_checkpoint(model, session, trained, validation.offset(metrics), metadata_of(session, step, metrics))

    diverged = Diverged(TrainingRun(out, session.process), lambda: updates.tree_ids(trainer.state.global_step - 1))
    trainer = FlowTrainer(
        model,
        args,
        updates=updates,
        settings=session.settings,
        validate=validation,
        head_lr=recipe.optim.head_lr,
        callbacks=[
            DivergenceGuard(diverged, watched=("train/loss", "train/grad_norm")),
            EngineGuard(lambda: trainer, diverged.stop),
            EpochEnds(updates.epoch_ends, recipe.checkpoints.every),
            Keep(validation.key, greater_is_better=validation.greater_is_better, keep=keep),
            StepProgress(progress.start, lambda: progress.advance(failed=0)),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    resume = str(state) if state else None
    if not session.process.is_main:
        trainer.train(resume_from_checkpoint=resume)
        return
    keep_rows(out / METRICS, step_of(state), key="update")
    with JsonlAppender(out / METRICS) as rows:
        trainer.add_callback(Rows(rows, updates.epoch_ends, session.tokens()))
        trainer.train(resume_from_checkpoint=resume)


def uses_bf16(recipe: TrainFlowRecipe) -> bool:
    """Return whether forward passes run under bfloat16 autocast."""
    precision = recipe.model.precision
    return precision == "bfloat16" or (precision == "auto" and torch.cuda.is_available())


def _optim(recipe: TrainFlowRecipe) -> OptimSettings:
    """Return the settings of the Trainer; to it the whole training is one epoch, and an item is an update."""
    optim = recipe.optim
    return OptimSettings(
        seed=recipe.seed,
        lr=optim.lr,
        epochs=1,
        batch_size=1,
        accumulate=1,
        schedule=optim.schedule,
        warmup_share=optim.warmup_share,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        precision=recipe.model.precision,
        trackers=recipe.trackers,
    )


def _write_checkpoint(
    model: FlowModel, session: Session, state: dict[str, Tensor], offset: Tensor | None, metadata: FlowMetadata
) -> None:
    """Write the checkpoint; a chosen shift of the logits becomes part of the head's bias."""
    bias = "strategy_head.out.bias"
    shifted = state if offset is None else {**state, bias: state[bias] + offset.to(state[bias].device)}
    save_flow_model(model, metadata, session.out / FOLDER, tokenizer=session.tokenizer, state=shifted)
