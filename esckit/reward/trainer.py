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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, Trainer, TrainerState, TrainingArguments

from esckit.errors import NotFiniteError
from esckit.ledger import derive_seed
from esckit.models.decoder import layer_classes
from esckit.processes import Process
from esckit.reward.examples import RewardExample, preference_pairs
from esckit.reward.model import RewardBatch, RewardNet, collate, probability
from esckit.reward.recipe import StepPlan, TrainRewardRecipe, plan_steps
from esckit.reward.text import RewardInput, RewardText
from esckit.training.harness import Diverged, TrainingRun, fit, in_order, trainer_arguments
from esckit.training.monitor import EpochEnds, Logs, Monitor, is_best
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

_WATCHED = ("loss", "grad_norm")
"""What must be finite at every step, and is written."""


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


class MicroBatches(Dataset[dict[str, Tensor]]):
    """All forward passes of one process, in the order of training, each epoch shuffled by a seed of its own.

    A step's items are the same whatever the number of processes, and its loss is the mean over them. So a pass carries
    the weight of its items in the step, and where a step has too few items for all processes, an idle pass weighs 0.

    Args:
        items: What to learn from.
        collate: Puts items into tensors.
        plan: How they come into steps.
        epochs: Passes over the items.
        seed: The run's.
        process: This process.
    """

    def __init__(
        self,
        items: Sequence[Item],
        collate: Callable[[Sequence[Item]], dict[str, Tensor]],
        *,
        plan: StepPlan,
        epochs: int,
        seed: int,
        process: Process,
    ) -> None:
        self._items, self._collate = items, collate
        self._passes: list[tuple[list[int], float]] = []
        n_passes = plan.accumulate * process.count
        batch = plan.micro_batch * n_passes
        for epoch in range(epochs):
            order = list(range(len(items)))
            random.Random(derive_seed(seed, "reward-epoch", epoch)).shuffle(order)
            for start in range(0, len(order), batch):
                step = order[start : start + batch]
                for first in range(process.rank * plan.micro_batch, batch, process.count * plan.micro_batch):
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
        return in_order(self.train_dataset)


class DevScores:
    """What the net says of the dev examples, and how good that is.

    Args:
        ids: Ids of the dev examples.
        judge: Returns the dev metrics of their p.

    Attributes:
        p: Of the dev examples in order, at the latest evaluation.
        metrics: At the latest evaluation.
        broken: Ids of the dev examples whose p is not finite.
    """

    def __init__(self, ids: Sequence[str], judge: Callable[[Sequence[float]], Metrics]) -> None:
        self._ids, self._judge = ids, judge
        self.p: tuple[float, ...] = ()
        self.metrics: Metrics = {}
        self.broken: list[str] = []

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Judge one pass over dev; the Trainer logs what it returns.

        Raises:
            NotFiniteError: If the net gives a number that is not finite: after the last step no loss shows it.
        """
        self.p = tuple(float(value) for value in prediction.predictions)
        broken = {name: p for name, p in zip(self._ids, self.p, strict=True) if not math.isfinite(p)}
        if broken:
            self.broken = list(broken)
            raise NotFiniteError("p of a dev example", next(iter(broken.values())))
        self.metrics = self._judge(self.p)
        return {name: float(value) for name, value in self.metrics.items() if value is not None}


def train_reward(
    task: RewardTask,
    train: Sequence[Item],
    dev: Sequence[Item],
    *,
    recipe: TrainRewardRecipe,
    run: TrainingRun,
    judge: Callable[[Sequence[float]], Metrics],
    keep: Callable[[int, DevScores, Mapping[str, Tensor]], None],
) -> None:
    """Train, evaluating before the first step and after each epoch, and hand over each best state so far.

    Args:
        task: The net with its loss.
        train: Items to draw from.
        dev: Items to evaluate on, one example each.
        recipe: Its sections ``optim``, ``dev`` and ``logging``.
        run: Where to train, and from which state on.
        judge: Returns the dev metrics of p in the order of ``dev``.
        keep: Called in the main process after an evaluation that is best so far, with the step, what the net says of
            dev, and the trained tensors. The evaluation before the first step gives way to any later one.

    Raises:
        TrainingError: If a loss, a gradient or p of dev is not finite; what was kept stays.
        ConfigError: If the processes cannot share a step evenly.
    """
    optim, select_by = recipe.optim, recipe.dev.select_by
    plan = plan_steps(optim, n_items=len(train), n_processes=run.process.count)
    collator = Collator({name for item in train for name in item.ids})
    scores = DevScores([name for item in dev for name in item.ids], judge)
    diverged = Diverged(run, lambda: scores.broken or list(collator.recent))

    def evaluated(state: TrainerState, logs: Logs) -> None:
        monitor.row(state.global_step, {"dev": scores.metrics})
        greater = {"auc": True, "log_loss": False, "last": None}[select_by]
        if is_best(state, scores.metrics.get(select_by), greater_is_better=greater):
            trained = gathered_state(trainer, trained_only=True)
            if run.process.is_main:
                keep(state.global_step, scores, {name.removeprefix("net."): t for name, t in trained.items()})

    monitor = Monitor(
        run,
        diverged,
        watched=lambda logs: _WATCHED,
        means=_means,
        epoch=lambda step: round(step / plan.per_epoch, 4),
        every=recipe.logging.every,
        evaluated=evaluated,
    )
    trainer = RewardTrainer(
        model=task,
        args=trainer_arguments(
            TrainingArguments,
            optim,
            run=run,
            seed=recipe.seed,
            n_steps=plan.steps,
            precision=optim.precision,
            trackers=recipe.trackers,
            per_device_train_batch_size=plan.micro_batch,
            per_device_eval_batch_size=8,
            gradient_accumulation_steps=plan.accumulate,
            eval_on_start=run.state is None,
            label_names=["labels"],
        ),
        train_dataset=MicroBatches(
            train, collator, plan=plan, epochs=optim.epochs, seed=recipe.seed, process=run.process
        ),
        eval_dataset=list(dev),
        data_collator=collator,
        compute_metrics=scores,
        callbacks=[
            monitor,
            EngineGuard(lambda: trainer, diverged.stop),
            EpochEnds(range(plan.per_epoch, plan.steps + 1, plan.per_epoch), recipe.logging.save_every),
        ],
    )
    fit(trainer, run, diverged)


def _means(window: Sequence[Logs]) -> dict[str, float]:
    """Return the row of ``metrics.jsonl`` for a window of steps."""
    means = {
        name: math.fsum(float(logs[name]) for logs in window) / len(window)
        for name in _WATCHED
        if all(name in logs for logs in window)
    }
    return {**means, "lr": window[-1]["learning_rate"]}
