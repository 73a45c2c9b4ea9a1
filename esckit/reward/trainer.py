"""One training of a reward model (RLFF-ESC, arXiv 2508.12935; RRHF for the ranking ablation): losses, batches and loop.

Not here: the command and its run folder (:mod:`esckit.reward.run`), where labels come from
(:mod:`esckit.reward.examples`), and how good the result is (:mod:`esckit.reward.quality`).
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, Trainer, TrainerState, TrainingArguments

from esckit.errors import DataError, NotFiniteError
from esckit.ledger import derive_seed
from esckit.models.checkpoint import FOLDER
from esckit.models.loading import layer_classes
from esckit.play.futures import RewardInputs
from esckit.records import write_records
from esckit.reward.examples import Parts, RewardExample, build_examples, preference_pairs
from esckit.reward.model import HEAD, RewardNet, build_net, collate, probability
from esckit.reward.quality import PREDICTIONS, DevPrediction, Metrics, dev_metrics
from esckit.reward.recipe import StepPlan, TrainRewardRecipe, plan_steps
from esckit.reward.text import RewardInput, RewardMetadata, RewardText, reward_template
from esckit.training.checkpoint import save_checkpoint
from esckit.training.harness import Diverged, fit, frozen_as, frozen_dtype, in_order, set_up, trainer_arguments
from esckit.training.monitor import EpochEnds, Logs, Monitor, is_best
from esckit.training.policy import PolicyStart
from esckit.training.run import Process, TrainingRun
from esckit.training.sharding import EngineGuard, gathered_state, store_trained_only

_WATCHED = ("loss", "grad_norm")
"""What must be finite at every step, and is written."""

# ---------------------------------------------------------------- losses


def classifier_loss(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of two logits.

    Args:
        logits: (B, 2).
        label: 0 or 1 (B,).
        weight: Weight of each class (2,); None weighs both 1. The mean is over inputs, not over weights: it must not
            depend on how inputs meet in batches.
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


# ---------------------------------------------------------------- batches

N_REMEMBERED = 64
"""How many of the latest examples are remembered, for the report of a divergence."""


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


def collate_items(items: Sequence[Item]) -> dict[str, Tensor]:
    """Return one batch: that of :func:`~esckit.reward.model.collate`, ``labels`` (B,) and what rankers need.

    ``pairs`` (P, 2) and ``best`` (C,) index the batch's rows; ``pair_weights`` (P,) sum up to 1.
    """
    pairs: list[tuple[int, int]] = []
    weights: list[float] = []
    best: list[int] = []
    start = 0
    for item in items:
        pairs += [(start + better, start + worse) for better, worse in item.pairs]
        weights += [1.0 / (len(item.pairs) * len(items)) for _ in item.pairs]
        best.append(start + item.best)
        start += len(item.inputs)
    return {
        **collate([tokens for item in items for tokens in item.inputs]),
        "labels": torch.tensor([label for item in items for label in item.labels]),
        "pairs": torch.tensor(pairs, dtype=torch.long).view(-1, 2),
        "pair_weights": torch.tensor(weights),
        "best": torch.tensor(best),
    }


class MicroBatches(Dataset[dict[str, Tensor]]):
    """All forward passes of one process, in the order of training, each epoch shuffled by a seed of its own.

    A step's items are the same whatever the number of processes, and its loss is the mean over them. So a pass carries
    the weight of its items in the step, and where a step has too few items for all processes, an idle pass weighs 0.

    Args:
        items: What to learn from.
        plan: How they come into steps.
        epochs: Passes over the items.
        seed: The run's.
        process: This process.

    Attributes:
        recent: Ids of the latest examples.
    """

    def __init__(self, items: Sequence[Item], *, plan: StepPlan, epochs: int, seed: int, process: Process) -> None:
        self._items = items
        self.recent: deque[str] = deque(maxlen=N_REMEMBERED)
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
        items = [self._items[item] for item in own]
        self.recent.extend(name for item in items for name in item.ids)
        return {**collate_items(items), "weight": torch.tensor(weight)}


# ---------------------------------------------------------------- before the first step


@dataclass(frozen=True, slots=True)
class Session:
    """Everything that the training and its report need."""

    recipe: TrainRewardRecipe
    inputs: RewardInputs
    parts: Parts
    start: PolicyStart
    run: TrainingRun
    net: RewardNet
    tokenizer: Any
    train: Encoded
    dev: Encoded
    items: list[Item]
    n_without_pairs: int


def prepare(
    recipe: TrainRewardRecipe, inputs: RewardInputs, parts: Parts, start: PolicyStart, run: TrainingRun
) -> Session:
    """Seed the generators, then build the net and the examples.

    Raises:
        DataError: If too few examples fit.
    """
    set_up(run.process, seed=recipe.seed, threads=recipe.executor.threads)
    net, tokenizer = build_net(
        recipe.model,
        recipe.objective.kind,
        dtype=frozen_dtype(recipe.model, recipe.optim.precision),
        gradient_checkpointing=recipe.optim.gradient_checkpointing,
    )
    text = RewardText(tokenizer, reward_template(recipe.prompt), max_length=recipe.model.max_length)
    train = encode_examples(build_examples(parts.train, inputs.contexts), text)
    dev = encode_examples(build_examples(parts.dev, inputs.contexts), text)
    n_without_pairs = 0
    if recipe.objective.kind == "classifier":
        items = single_items(train)
    else:
        items, n_without_pairs = group_items(train, margin=Fraction(recipe.objective.margin))
    for name, part in (("training", train), ("dev", dev)):
        if part.n_too_long and len({example.label for example in part.examples}) < 2:
            raise DataError(
                f"one class only in the {name} part, once {part.n_too_long} responses that are too long are left out",
                expected="both classes",
                hint="Raise model.max_length",
            )
    if not items or not dev.examples:
        raise DataError(
            "nothing to train or to select on is left",
            expected="responses that fit, and for rankers contexts whose candidates differ",
            hint="See model.max_length and objective.margin, and simulate more candidates or dialogues",
        )
    return Session(recipe, inputs, parts, start, run, net, tokenizer, train, dev, items, n_without_pairs)


# ---------------------------------------------------------------- training


class RewardTask(nn.Module):
    """The network with its loss, as the Trainer expects it; its state holds only trained tensors."""

    # The Trainer asks for it when a state lacks tensors, as ours does where the backbone is frozen.
    _keys_to_ignore_on_save: list[str] | None = None

    def __init__(self, net: RewardNet, *, class_weight: Tensor | None = None) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("class_weight", class_weight, persistent=False)
        store_trained_only(self)
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
        """Return loss and p (B,) of a batch from :func:`collate_items`.

        ``weight`` is that of a training batch in its step.
        """
        out = self.net(input_ids, attention_mask, response_mask)
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


class RewardTrainer(Trainer):
    """The Trainer over passes that are shared out to the processes already."""

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Return the passes in order."""
        return in_order(self.train_dataset)


class DevScores:
    """The predictions of the network on the dev examples, and their metrics.

    Args:
        dev: The dev examples.

    Attributes:
        p: The probability of each dev example in order, at the latest evaluation.
        metrics: The metrics of the latest evaluation.
        broken: Ids of the dev examples whose p is not finite.
    """

    def __init__(self, dev: Encoded) -> None:
        self._examples = dev.examples
        self.p: tuple[float, ...] = ()
        self.metrics: Metrics = {}
        self.broken: list[str] = []

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Judge one pass over dev; the Trainer logs what it returns.

        Raises:
            NotFiniteError: If a p is not finite; after the last step, no loss would show it.
        """
        self.p = tuple(float(value) for value in prediction.predictions)
        broken = {example.id: p for example, p in zip(self._examples, self.p, strict=True) if not math.isfinite(p)}
        if broken:
            self.broken = list(broken)
            raise NotFiniteError("p of a dev example", next(iter(broken.values())))
        self.metrics = dev_metrics(self.p, self._examples)
        return {name: float(value) for name, value in self.metrics.items() if value is not None}


def train(session: Session) -> None:
    """Train, resuming from the run's state, and evaluate before the first step and after each epoch.

    The best checkpoint so far is kept in the run folder; any later one replaces that of the first evaluation.

    Raises:
        TrainingError: If a loss, a gradient or p of dev is not finite; what was kept stays.
        ConfigError: If the processes cannot share a step evenly.
    """
    recipe, run, optim = session.recipe, session.run, session.recipe.optim
    plan = plan_steps(optim, n_items=len(session.items), n_processes=run.process.count)
    passes = MicroBatches(session.items, plan=plan, epochs=optim.epochs, seed=recipe.seed, process=run.process)
    scores = DevScores(session.dev)
    diverged = Diverged(run, lambda: scores.broken or list(passes.recent))
    better = {"auc": True, "pair_accuracy": True, "log_loss": False, "last": None}[recipe.dev.select_by]

    def evaluated(state: TrainerState, logs: Logs) -> None:
        monitor.row(state.global_step, {"dev": scores.metrics})
        if is_best(state, scores.metrics.get(recipe.dev.select_by), greater_is_better=better):
            trained = gathered_state(trainer, trained_only=True)
            if run.process.is_main:
                _keep(session, state.global_step, scores, trained)

    monitor = Monitor(
        run,
        diverged,
        watched=lambda logs: _WATCHED,
        means=_means,
        epoch=lambda step: round(step / plan.per_epoch, 4),
        every=recipe.logging.every,
        evaluated=evaluated,
    )
    class_weight = None
    if recipe.objective.class_weight == "balanced":  # N / (2 N_c)
        n, n_positive = len(session.train.examples), sum(example.label for example in session.train.examples)
        class_weight = torch.tensor([n / (2 * (n - n_positive)), n / (2 * n_positive)])
    trainer = RewardTrainer(
        model=RewardTask(session.net, class_weight=class_weight),
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
        train_dataset=passes,
        eval_dataset=single_items(session.dev),
        data_collator=collate_items,
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


# ---------------------------------------------------------------- what is kept


def _keep(session: Session, step: int, scores: DevScores, state: Mapping[str, Tensor]) -> None:
    """Write the best checkpoint so far and its predictions on dev."""
    recipe, delta, inputs = session.recipe, session.parts.train.labelling.delta, session.inputs
    write_records(
        session.run.out / PREDICTIONS,
        [
            DevPrediction(
                id=example.id,
                dialogue_id=example.dialogue_id,
                p=p,
                label=example.label,
                reward_num=example.reward.numerator,
                reward_den=example.reward.denominator,
                step=step,
            )
            for example, p in zip(session.dev.examples, scores.p, strict=True)
        ],
    )
    metadata = RewardMetadata(
        **recipe.model.model_dump(include={"backbone", "trainable", "pooling", "max_length"}),
        frozen_as=None if recipe.model.trainable == "full" else frozen_as(recipe.model, recipe.optim.precision),
        start=session.start.start,
        kind=recipe.objective.kind,
        template=reward_template(recipe.prompt),
        label={name: str(value) for name, value in recipe.label.model_dump().items()},
        delta=None if delta is None else str(delta),
        simulation=inputs.simulation,
        inputs=inputs.digests,
        dialogue_ids=tuple(dict.fromkeys([*inputs.dialogue_ids, *session.start.seen])),
        dev_ids=tuple(dict.fromkeys(example.dialogue_id for example in session.dev.examples)),
        selected_by=recipe.dev.select_by,
        step=step,
        metrics=dict(scores.metrics),
    )
    save_checkpoint(
        session.run.out / FOLDER,
        metadata,
        backbone=session.net.backbone,
        tokenizer=session.tokenizer,
        state={name.removeprefix("net."): tensor for name, tensor in state.items()},
        heads_file=HEAD,
    )
