"""Supervised fine-tuning through TRL's ``SFTTrainer``, by composition: ours are rows, dev measurements and callbacks.

The loss is −log p of the reply's tokens and of the end of the turn, the mean over all of them in a step, however the
step is shared out; prompts are read and not learnt. **Every value is passed explicitly**, since TRL's defaults differ
between versions, and examples are handed over as token ids, since those must be the ones that a supporter is asked
with.

This module imports torch; :mod:`esckit.sft.run` says what a run does, and what is written about it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, fsum, isfinite
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from transformers import TrainerCallback, TrainerState
from trl import SFTConfig, SFTTrainer

from esckit.errors import DataError, NotFiniteError
from esckit.models.backbones import resolve_backbone
from esckit.models.loading import load_causal
from esckit.prompts.prompt import load_prompt
from esckit.sft.examples import SftMaterial, SftRow, build_rows
from esckit.sft.recipe import TrainSftRecipe, plan_steps
from esckit.training.checkpoint import adapter_config
from esckit.training.harness import Diverged, frozen_as, frozen_dtype, set_up
from esckit.training.learner import (
    DevRecord,
    Learner,
    fit_and_keep,
    learner_of,
    train_in_float32,
    trl_arguments,
    write_supporter,
)
from esckit.training.monitor import EpochEnds, Logs, Monitor
from esckit.training.policy import PolicyPrompt, SftMetadata
from esckit.training.run import StepPlan, TrainingRun, gathered, training_order
from esckit.training.sharding import EngineGuard

log = logging.getLogger(__name__)

_WATCHED = ("loss", "grad_norm")
"""What must be finite at every step, and is written."""

_DEV_LOSS = "dev/loss"

# ---------------------------------------------------------------- the trainer


def load_learner(recipe: TrainSftRecipe) -> Learner:
    """Load the model to train, its frozen weights as the recipe says, without dropout of its own.

    Raises:
        ConfigError: If there is no such backbone, or it cannot be trained.
    """
    model = recipe.model
    dtype = torch.float32 if model.trainable == "full" else frozen_dtype(model, recipe.optim.precision)
    source = resolve_backbone(model.backbone)
    found = load_causal(source, dtype=dtype, quantisation=model.quantisation, attention=model.attention)
    learner = learner_of(*found)
    for module in learner.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return learner


def sft_arguments(recipe: TrainSftRecipe, plan: StepPlan, run: TrainingRun) -> SFTConfig:
    """Return TRL's arguments."""
    return trl_arguments(
        SFTConfig,
        recipe.optim,
        plan,
        run,
        seed=recipe.seed,
        trackers=recipe.trackers,
        save_steps=recipe.logging.save_every,
        average_tokens_across_devices=True,
        loss_type="nll",
        max_length=None,  # rows are cut, or left out, before
        packing=False,
        padding_free=False,
        completion_only_loss=None,  # the labels say it
        assistant_only_loss=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        shuffle_dataset=False,  # the rows are laid out in the order of training
        train_sampling_strategy="sequential",
        activation_offloading=False,
    )


def make_trainer(
    recipe: TrainSftRecipe,
    learner: Learner,
    rows: Sequence[SftRow],
    *,
    plan: StepPlan,
    run: TrainingRun,
    callbacks: Sequence[TrainerCallback] = (),
) -> SFTTrainer:
    """Return TRL's trainer over the rows, ready to train.

    Raises:
        ConfigError: If the model lacks layers that the adapter names.
    """
    order = training_order(len(rows), n_batches=plan.n_batches, batch=plan.batch, seed=recipe.seed)
    is_lora = recipe.model.trainable == "lora"
    trainer = SFTTrainer(
        model=learner.model,
        args=sft_arguments(recipe, plan, run),
        train_dataset=Dataset.from_list([row.as_columns() for row in rows]).select(order),
        processing_class=learner.tokenizer,
        peft_config=adapter_config(recipe.lora, learner.model, task_type="CAUSAL_LM") if is_lora else None,
        callbacks=list(callbacks),
    )
    train_in_float32(trainer.model)
    return trainer


# ---------------------------------------------------------------- dev


@dataclass(frozen=True, slots=True)
class DevSet:
    """Held-out rows and how the model is measured on them.

    Attributes:
        rows: The rows.
        pad_id: What fills up shorter ones.
        batch_size: Rows read together.
    """

    rows: Sequence[SftRow]
    pad_id: int
    batch_size: int

    @torch.no_grad()
    def measure(self, trainer: Any) -> dict[str, float]:
        """Return the mean −log p of the replies' tokens and the share of them that would be chosen greedily.

        Each process reads its share of the rows, and all of them return the values of all rows: the same number,
        however many processes there are. The model's mode stays as it was.

        Raises:
            NotFiniteError: In all processes, if the loss is not finite.
        """
        accelerator, model = trainer.accelerator, trainer.model_wrapped
        rank, n_processes = accelerator.process_index, accelerator.num_processes
        own = self.rows[rank::n_processes]
        # Where a model is split, a forward pass takes all processes: a smaller share is filled up.
        filled = (*own, *self.rows)[: ceil(len(self.rows) / n_processes)]
        was_training = model.training
        model.eval()
        found: list[tuple[float, int, int]] = []
        for start in range(0, len(filled), self.batch_size):
            ids, mask, labels = (each.to(accelerator.device) for each in self._batch(filled[start:][: self.batch_size]))
            with trainer.compute_loss_context_manager():
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            found += [_row_sums(*each) for each in zip(logits, labels[:, 1:], strict=True)]
        model.train(was_training)
        sums = [each for share in gathered(found[: len(own)]) for each in share]
        n_tokens = sum(n for _, _, n in sums)
        loss = fsum(total for total, _, _ in sums) / n_tokens
        if not isfinite(loss):
            raise NotFiniteError("the loss on dev", loss)
        return {_DEV_LOSS: loss, "dev/token_accuracy": sum(right for _, right, _ in sums) / n_tokens}

    def _batch(self, rows: Sequence[SftRow]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return ids, mask and labels (B, T) of rows, filled up on the right."""
        columns = [row.as_columns() for row in rows]
        longest = max(len(row["input_ids"]) for row in columns)

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.tensor([[*row[name], *[value] * (longest - len(row[name]))] for row in columns])

        lengths = torch.tensor([len(row["input_ids"]) for row in columns])
        mask = (torch.arange(longest)[None] < lengths[:, None]).long()
        return padded("input_ids", self.pad_id), mask, padded("labels", -100)


def _row_sums(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int, int]:
    """Return the sum of −log p of a row's labels (T,) under logits (T, V), how many are the likeliest, and how many."""
    is_learnt = labels != -100
    logits, labels = logits[is_learnt].float(), labels[is_learnt]
    total = F.cross_entropy(logits, labels, reduction="sum").item()
    return total, int((logits.argmax(dim=-1) == labels).sum()), len(labels)


@dataclass(eq=False)
class DevMeasurement(TrainerCallback):
    """Measures dev before the first step, every so many steps, and after each epoch and the last step.

    Attributes:
        run: What was measured up to its resumed step is on disk already.
        ends: Tells which steps are measured.
        measured: Called in every process with a step; measures.
        step: Steps that were taken before the current one began.
    """

    run: TrainingRun
    ends: EpochEnds
    measured: Callable[[int], None]
    step: int = field(default=0, init=False)

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Measure the untrained model."""
        if self.run.resumed_step == 0:
            self.measured(0)

    def on_step_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Remember which step begins."""
        self.step = state.global_step

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Measure where it is due."""
        if self.ends.evaluates(state.global_step) or state.global_step == state.max_steps:
            self.measured(state.global_step)


# ---------------------------------------------------------------- one training


@dataclass(slots=True)
class Training:
    """One go at training, and what it has found so far.

    Attributes:
        counts: What became of the training examples, see :func:`esckit.sft.examples.build_rows`.
        dev: What was measured on dev.
    """

    recipe: TrainSftRecipe
    material: SftMaterial
    run: TrainingRun
    learner: Learner
    prompt: PolicyPrompt
    trainer: Any = None
    counts: dict[str, int] = field(default_factory=dict)
    dev: DevRecord = field(default_factory=lambda: DevRecord(_DEV_LOSS, lower_is_better=True))

    def keep(self, step: int, metrics: Mapping[str, float | None], *, diverged: bool = False) -> None:
        """Keep the model as it is, see :func:`esckit.training.learner.write_supporter`."""
        recipe, is_full = self.recipe, self.recipe.model.trainable == "full"

        def metadata() -> SftMetadata:
            return SftMetadata(
                backbone=recipe.model.backbone,
                frozen_as=None if is_full else frozen_as(recipe.model, recipe.optim.precision),
                trainable=recipe.model.trainable,
                prompt=self.prompt.prompt.identity,
                source=recipe.source,
                reasoning=recipe.form.reasoning,
                strategy=recipe.form.strategy,
                inputs=self.material.inputs,
                dialogue_ids=self.material.dialogue_ids,
                dev_ids=self.material.dev_ids,
                selected_by=recipe.optim.select,
                step=step,
                metrics=dict(metrics),
                diverged=diverged,
            )

        prompt = self.prompt.prompt
        write_supporter(self.learner, self.trainer, self.run, metadata, diverged=diverged, prompt=prompt)


def train(recipe: TrainSftRecipe, material: SftMaterial, run: TrainingRun) -> Training:
    """Train, and keep the supporter.

    Raises:
        TrainingError: If training diverged; the last finite state is kept.
        EsckitError: See :mod:`esckit.errors`.
    """
    set_up(run.process, seed=recipe.seed, threads=recipe.executor.threads)
    learner = load_learner(recipe)
    prompt = PolicyPrompt(load_prompt(recipe.prompt), learner.chat, recipe.encoding.max_prompt_tokens)
    training = Training(recipe, material, run, learner, prompt)
    training.dev.restore(run)
    diverged = _prepare(training)
    fit_and_keep(
        training.trainer, run, diverged, kind=SftMetadata, optim=recipe.optim, dev=training.dev, keep=training.keep
    )
    return training


def _prepare(training: Training) -> Diverged:
    """Make the trainer and all that watches it."""
    recipe, run = training.recipe, training.run
    rows, training.counts = _rows(training)
    plan = plan_steps(recipe, n_rows=len(rows), n_processes=run.process.count)
    order = training_order(len(rows), n_batches=plan.n_batches, batch=plan.batch, seed=recipe.seed)

    def input_ids() -> list[str]:
        first = measurement.step * plan.batch
        return [rows[index].id for index in order[first : first + plan.batch]]

    diverged = Diverged(run, input_ids)
    monitor = Monitor(
        run,
        diverged,
        watched=lambda logs: _WATCHED if "loss" in logs else (),
        means=_means,
        epoch=lambda step: round(step / plan.steps_per_epoch, 4),
        every=recipe.monitor.log_every,
    )
    dev, pad_id = _dev_rows(training), training.learner.tokenizer.pad_token_id
    dev_set = DevSet(dev, pad_id, recipe.optim.micro_batch)

    def measured(step: int) -> None:
        if not dev:
            return
        metrics = dev_set.measure(training.trainer)
        monitor.row(step, metrics)
        if training.dev.note(step, metrics) and recipe.optim.select == "best_dev":
            training.keep(step, metrics)

    epochs = range(plan.steps_per_epoch, plan.steps + 1, plan.steps_per_epoch)
    measurement = DevMeasurement(run, EpochEnds(epochs, None, evaluate_every=recipe.monitor.dev_every), measured)
    guard = EngineGuard(lambda: training.trainer, diverged.stop)
    training.trainer = make_trainer(
        recipe, training.learner, rows, plan=plan, run=run, callbacks=[monitor, measurement, guard]
    )
    return diverged


def _rows(training: Training) -> tuple[list[SftRow], dict[str, int]]:
    """Return the training rows.

    Raises:
        DataError: If no example fits.
    """
    recipe, limit = training.recipe, training.recipe.encoding.max_completion_tokens
    rows, counts = build_rows(training.material.train, training.prompt, recipe.form, max_completion_tokens=limit)
    if len(rows) < training.run.process.count:
        raise DataError(
            f"{len(rows)} examples to train on, once {counts['too_long']} that are too long are left out",
            expected=f"at least {training.run.process.count}",
            hint="Raise encoding.max_completion_tokens or encoding.max_prompt_tokens",
        )
    if counts["too_long"] and training.run.process.is_main:
        log.warning("%d of %d examples are too long and left out", counts["too_long"], sum(counts.values()))
    return rows, counts


def _dev_rows(training: Training) -> list[SftRow]:
    """Return the dev rows that are measured.

    Raises:
        DataError: If the best state is to be selected by them and none fits.
    """
    recipe = training.recipe
    examples = training.material.dev[: recipe.dev.max_examples]
    limit = recipe.encoding.max_completion_tokens
    rows, counts = build_rows(examples, training.prompt, recipe.form, max_completion_tokens=limit)
    if not rows and recipe.optim.select == "best_dev":
        raise DataError(
            f"no dev example to select by, once {counts['too_long']} that are too long are left out",
            hint="Raise encoding.max_completion_tokens or dev.max_examples, or set optim.select: last",
        )
    return rows


def _means(window: Sequence[Logs]) -> dict[str, float]:
    """Return the row of ``metrics.jsonl`` for a window of steps."""
    means = {
        f"sft/{name}": fsum(float(logs[name]) for logs in window) / len(window)
        for name in _WATCHED
        if all(name in logs for logs in window)
    }
    return {**means, "sft/lr": window[-1]["learning_rate"]}
