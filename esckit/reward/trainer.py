"""Losses of reward models as pure tensor functions (RLFF-ESC, arXiv 2508.12935; RRHF for the ranking ablation).

Training of reward models through the Hugging Face ``Trainer``: ours are the loss, the batches and what is kept.

Not here: how labels come about (:mod:`esckit.reward.examples`), metrics (handed in), and scoring with what was trained
(:mod:`esckit.reward.scorer`).
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, PrinterCallback, Trainer

from esckit.errors import NotFiniteError
from esckit.ledger import derive_seed
from esckit.models.decoder import layer_classes
from esckit.reward.examples import RewardExample, preference_pairs
from esckit.reward.network import RewardBatch, RewardNet, collate, probability
from esckit.reward.text import RewardInput, RewardText
from esckit.training.callbacks import DivergenceGuard, EpochEnds, MetricsLog, OnEvaluation, StepProgress
from esckit.training.harness import Diverged, OptimSettings, StepPlan, plan_steps, step_of, training_arguments
from esckit.training.sharding import EngineGuard, gathered_state


def classifier_loss(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of two logits.

    Args:
        logits: (B, 2).
        label: 0 or 1 (B,).
        weight: Weight of each class (2,); None weighs both 1. The mean is over inputs, not over weights: it must not
            hang on how inputs meet in batches.
    """
    losses = F.cross_entropy(logits, label, reduction="none")
    return (losses if weight is None else losses * weight[label]).mean()


def pairwise_loss(score: Tensor, pairs: Tensor, weight: Tensor) -> Tensor:
    """Return Σ weight · −log σ(s_better − s_worse).

    Args:
        score: s (B,).
        pairs: Indices (better, worse) (P, 2).
        weight: Of each pair (P,): 1 over its context's pairs and over the contexts of the batch.
    """
    return (weight * F.softplus(score[pairs[:, 1]] - score[pairs[:, 0]])).sum()


def rrhf_loss(score: Tensor, pairs: Tensor, best: Tensor, n_tokens: Tensor) -> Tensor:
    """Return Σ_{reward_i > reward_j} max(0, s_j − s_i) − Σ_t log p(token t of the best response), mean over contexts.

    Args:
        score: Mean token log-probability s of each response (B,).
        pairs: Indices (better, worse) (P, 2).
        best: Index of the best response of each context (C,).
        n_tokens: Tokens of each response (B,).
    """
    rank = (score[pairs[:, 1]] - score[pairs[:, 0]]).clamp(min=0.0).sum()
    likelihood = (score[best] * n_tokens[best]).sum()
    return (rank - likelihood) / len(best)


Metrics = Mapping[str, float | int | None]

SelectBy = Literal["log_loss", "auc", "last"]


STATES = "states"
"""Folder of the states to resume from, inside a run folder."""


@dataclass(frozen=True, slots=True)
class Item:
    """What the data loader draws: one example of a classifier, or all candidates of a context of a ranker.

    Attributes:
        ids: Ids of the examples.
        inputs: Their tokens.
        labels: 1 for good futures.
        pairs: Index pairs (better, worse).
        best: Index of the highest reward.
    """

    ids: tuple[str, ...]
    inputs: tuple[RewardInput, ...]
    labels: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    best: int = 0


@dataclass(frozen=True, slots=True)
class Encoded:
    """Examples as tokens; those whose response does not fit are left out.

    Attributes:
        examples: What is left, in order.
        inputs: Their tokens.
        n_too_long: How many were left out.
        n_cut: How many lost oldest turns.
    """

    examples: tuple[RewardExample, ...]
    inputs: tuple[RewardInput, ...]
    n_too_long: int
    n_cut: int


def encode_examples(examples: Sequence[RewardExample], text: RewardText) -> Encoded:
    """Return examples as tokens."""
    pairs = [(example, text.encode(example.turns, example.response)) for example in examples]
    kept = [(example, tokens) for example, tokens in pairs if tokens is not None]
    return Encoded(
        examples=tuple(example for example, _ in kept),
        inputs=tuple(tokens for _, tokens in kept),
        n_too_long=len(pairs) - len(kept),
        n_cut=sum(tokens.n_dropped_turns > 0 for _, tokens in kept),
    )


def single_items(encoded: Encoded) -> list[Item]:
    """Return one item for each example."""
    return [
        Item((example.id,), (tokens,), (int(example.label),))
        for example, tokens in zip(encoded.examples, encoded.inputs, strict=True)
    ]


def group_items(encoded: Encoded, *, margin: Fraction) -> tuple[list[Item], int]:
    """Return one item for each context whose candidates differ, and the number of contexts that give no pair."""
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(encoded.examples):
        groups.setdefault(example.group, []).append(index)
    items = []
    for members in groups.values():
        values = [encoded.examples[index].reward for index in members]
        pairs = preference_pairs(values, margin)
        if pairs:
            items.append(
                Item(
                    ids=tuple(encoded.examples[index].id for index in members),
                    inputs=tuple(encoded.inputs[index] for index in members),
                    labels=tuple(int(encoded.examples[index].label) for index in members),
                    pairs=pairs,
                    best=values.index(max(values)),
                )
            )
    return items, len(groups) - len(items)


class Collator:
    """Puts items into tensors, and remembers whose they were.

    Args:
        remembered: Ids to remember: those of the training part, since the Trainer evaluates through the same collator.
        n_remembered: How many of them, the latest.
    """

    def __init__(self, remembered: Container[str], *, n_remembered: int = 64) -> None:
        self._remembered = remembered
        self.recent: deque[str] = deque(maxlen=n_remembered)

    def __call__(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Return one batch; ``pairs`` and ``best`` index its rows."""
        batch = collate([tokens for item in items for tokens in item.inputs])
        pairs: list[tuple[int, int]] = []
        weights: list[float] = []
        best: list[int] = []
        start = 0
        for item in items:
            self.recent.extend(name for name in item.ids if name in self._remembered)
            pairs += [(start + better, start + worse) for better, worse in item.pairs]
            weights += [1.0 / (len(item.pairs) * len(items)) for _ in item.pairs]
            best.append(start + item.best)
            start += len(item.inputs)
        return {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "response_mask": batch.response_mask,
            "labels": torch.tensor([label for item in items for label in item.labels]),
            "pairs": torch.tensor(pairs, dtype=torch.long).view(-1, 2),
            "pair_weights": torch.tensor(weights),
            "best": torch.tensor(best),
        }


class RewardTask(nn.Module):
    """A net with its loss, as the Trainer wants it; its state holds what is trained and nothing else."""

    # The Trainer asks for it when a state lacks tensors, as ours does where the backbone is frozen.
    _keys_to_ignore_on_save: list[str] | None = None

    def __init__(self, net: RewardNet, *, class_weight: Tensor | None = None) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("class_weight", class_weight, persistent=False)
        self._trained = frozenset(name for name, parameter in self.named_parameters() if parameter.requires_grad)
        self.register_state_dict_post_hook(_keep_trained)
        self.register_load_state_dict_post_hook(_expect_trained)
        self._no_split_modules = layer_classes(net)  # what FSDP shards as one piece

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        response_mask: Tensor,
        labels: Tensor,
        pairs: Tensor,
        pair_weights: Tensor,
        best: Tensor,
        weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return loss and p (B,) of a batch from :class:`Collator`; ``weight`` is the batch's in its step."""
        out = self.net(RewardBatch(input_ids, attention_mask, response_mask))
        if self.net.kind == "classifier":
            class_weight: Tensor | None = self.class_weight  # type: ignore[assignment]
            loss = classifier_loss(out, labels, class_weight)
        elif self.net.kind == "pairwise":
            loss = pairwise_loss(out, pairs, pair_weights)
        else:
            loss = rrhf_loss(out, pairs, best, response_mask.sum(dim=1))
        if weight is not None:
            loss = loss * weight
        return {"loss": loss, "p": probability(self.net.kind, out.detach())}


def _keep_trained(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """Leave what is frozen, and second names of tied weights, out of a state."""
    assert isinstance(module, RewardTask)
    for name in [name for name in state if name.removeprefix(prefix) not in module._trained]:
        del state[name]


def _expect_trained(module: nn.Module, found: Any) -> None:
    """Miss nothing in a state but what is trained: an engine loads it strictly."""
    assert isinstance(module, RewardTask)
    found.missing_keys[:] = [name for name in found.missing_keys if name in module._trained]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation on dev: optimiser steps so far, metrics, and p of each dev example in order."""

    step: int
    metrics: Metrics
    p: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Where a training run lies and how it goes on.

    Attributes:
        folder: The run folder; ``metrics.jsonl`` and ``diverged.json`` are written to it.
        state: State to resume from, None for a fresh start.
        best: What the checkpoint at hand was selected with, None if there is none yet.
        rank: Which process this is; 0 is the one that writes.
        n_processes: How many processes train together.
        log_every: Steps between two rows of the metrics.
        start: Called with all steps and the steps done before.
        advance: Called after each step.
    """

    folder: Path
    state: Path | None
    best: tuple[int, Metrics] | None
    rank: int
    n_processes: int
    log_every: int
    start: Callable[[int, int], None]
    advance: Callable[[], None]

    @property
    def resumed_step(self) -> int:
        """Step that training goes on from."""
        return step_of(self.state)

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0


class MicroBatches(Dataset[dict[str, Tensor]]):
    """All forward passes of one process, in the order of training, each epoch shuffled by a seed of its own.

    A step's items are the same whatever the number of processes, and its loss is the mean over them. So a pass carries
    the weight of its items in the step, and where a step has too few items for all processes, an idle pass weighs 0.

    Args:
        items: What to learn from.
        collate: Puts items into tensors.
        settings: The optimiser's.
        plan: What they come to.
        rank: This process.
        n_processes: How many processes train together.
    """

    def __init__(
        self,
        items: Sequence[Item],
        collate: Callable[[Sequence[Item]], dict[str, Tensor]],
        *,
        settings: OptimSettings,
        plan: StepPlan,
        rank: int,
        n_processes: int,
    ) -> None:
        self._items, self._collate = items, collate
        self._passes: list[tuple[list[int], float]] = []
        n_passes = plan.accumulate * n_processes
        batch = plan.micro_batch * n_passes
        for epoch in range(settings.epochs):
            order = list(range(len(items)))
            random.Random(derive_seed(settings.seed, "reward-epoch", epoch)).shuffle(order)
            for start in range(0, len(order), batch):
                step = order[start : start + batch]
                for first in range(rank * plan.micro_batch, batch, n_processes * plan.micro_batch):
                    own = step[first : first + plan.micro_batch]
                    self._passes.append((own or step[:1], len(own) * n_passes / len(step)))

    def __len__(self) -> int:
        """Return the number of forward passes."""
        return len(self._passes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one forward pass."""
        own, weight = self._passes[index]
        return {**self._collate([self._items[item] for item in own]), "weight": torch.tensor(weight)}


class RewardTrainer(Trainer):
    """The Trainer over passes that are shared out to the processes already."""

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return the passes in order."""
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=_only)


def _only(passes: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    (one,) = passes
    return one


def train_reward(
    task: RewardTask,
    train: Sequence[Item],
    dev: Sequence[Item],
    *,
    settings: OptimSettings,
    select_by: SelectBy,
    judge: Callable[[Sequence[float]], Metrics],
    keep: Callable[[Evaluation, Mapping[str, Tensor]], None],
    run: Run,
) -> None:
    """Train, evaluating before the first step and after each epoch, and hand over each best state so far.

    Args:
        task: The net with its loss.
        train: Items to draw from.
        dev: Items to evaluate on, one example each.
        settings: The optimiser's.
        select_by: Which evaluation is best; the one before the first step never is once there is another.
        judge: Returns the dev metrics of p in the order of ``dev``.
        keep: Called in the main process with an evaluation that is best so far, and the trained tensors.
        run: Where and how.

    Raises:
        TrainingError: If a loss, a gradient or p of dev is not finite; what was kept stays.
        ConfigError: If the processes cannot share a step evenly.
    """
    plan = plan_steps(settings, n_items=len(train), n_processes=run.n_processes)
    collator = Collator({name for item in train for name in item.ids})
    selection = Selection([name for item in dev for name in item.ids], judge, select_by, run.best)
    diverged = Diverged(
        run.folder / "diverged.json", lambda: selection.broken or list(collator.recent), writes=run.is_main
    )
    rows = MetricsLog(
        run.folder / "metrics.jsonl",
        every=run.log_every,
        steps_per_epoch=plan.steps_per_epoch,
        resumed_step=run.resumed_step,
        writes=run.is_main,
    )

    def evaluated(step: int) -> None:
        rows.evaluation(step, selection.metrics)
        best = selection.best_at(step)
        if best is not None:
            state = gathered_state(trainer, trained_only=True)
            if run.is_main:
                keep(best, {name.removeprefix("net."): t for name, t in state.items()})

    trainer = RewardTrainer(
        model=task,
        args=training_arguments(settings, plan, folder=run.folder / STATES, evaluate_first=run.state is None),
        train_dataset=MicroBatches(
            train, collator, settings=settings, plan=plan, rank=run.rank, n_processes=run.n_processes
        ),
        eval_dataset=list(dev),
        data_collator=collator,
        compute_metrics=selection.judge,
        callbacks=[
            DivergenceGuard(diverged),  # first, so that nothing is written of a diverged step
            EngineGuard(lambda: trainer, diverged.stop),
            EpochEnds(range(plan.steps_per_epoch, plan.steps + 1, plan.steps_per_epoch), settings.save_every),
            rows,
            OnEvaluation(evaluated),
            StepProgress(run.start, run.advance),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    with diverged.guarded(trainer):
        trainer.train(resume_from_checkpoint=str(run.state) if run.state else None)


class Selection:
    """Judges what the net says of dev, and knows the best evaluation so far.

    Attributes:
        metrics: Of the latest evaluation.
        broken: Ids of the dev examples whose p is not finite.
    """

    def __init__(
        self,
        ids: Sequence[str],
        judge: Callable[[Sequence[float]], Metrics],
        select_by: SelectBy,
        best: tuple[int, Metrics] | None,
    ) -> None:
        self._ids = ids
        self._judge = judge
        self._select_by = select_by
        self._best = best
        self._p: tuple[float, ...] = ()
        self.metrics: Metrics = {}
        self.broken: list[str] = []

    def judge(self, prediction: EvalPrediction) -> dict[str, float]:
        """Judge one pass over dev; the Trainer logs what it returns.

        Raises:
            NotFiniteError: If the net gives a number that is not finite: after the last step no loss tells of it.
        """
        self._p = tuple(float(value) for value in prediction.predictions)
        broken = {name: p for name, p in zip(self._ids, self._p, strict=True) if not math.isfinite(p)}
        if broken:
            self.broken = list(broken)
            raise NotFiniteError("p of a dev example", next(iter(broken.values())))
        self.metrics = self._judge(self._p)
        return {name: float(value) for name, value in self.metrics.items() if value is not None}

    def best_at(self, step: int) -> Evaluation | None:
        """Return the latest evaluation if it is the best so far."""
        if self._best is not None and not is_better(self.metrics, step, self._best, self._select_by):
            return None
        self._best = (step, self.metrics)
        return Evaluation(step, self.metrics, self._p)


def is_better(metrics: Metrics, step: int, best: tuple[int, Metrics], select_by: SelectBy) -> bool:
    """Return whether an evaluation takes the place of the best one so far; ties keep the earlier one."""
    best_step, best_metrics = best
    if step <= best_step:
        return False
    if select_by == "last" or best_step == 0:
        return True
    ours, theirs = metrics[select_by], best_metrics[select_by]
    if ours is None or theirs is None:
        return theirs is None
    return ours > theirs if select_by == "auc" else ours < theirs
