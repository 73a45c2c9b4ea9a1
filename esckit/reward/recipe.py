"""The recipe of ``esckit train-reward`` (RLFF-ESC, arXiv 2508.12935); the paper's values are the defaults."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from esckit.config.sections import DecimalText, Recipe, Section, Threads
from esckit.config.training import Attention, Label, Lora, Optim, Precision, TrainedModel
from esckit.training.run import share_batch

Kind = Literal["classifier", "pairwise", "rrhf"]

Trainable = Literal["full", "head", "lora"]

Pooling = Literal["last", "mean"]


class RewardLora(Lora):
    """The adapter of ``model.trainable: lora``.

    Attributes:
        targets: Names of the modules that are adapted; None takes those that the backbone registry names.
    """

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    targets: tuple[str, ...] | None = None


class RewardNetwork(TrainedModel):
    """The network to train.

    Attributes:
        attention: How the backbone's attention is computed; ``auto`` is what transformers takes for it.
        start: Run folder of ``train-sft`` on the same backbone, whose weights the network begins with in place of the
            backbone's; with ``trainable: full``.
        trainable: Backbone and head, the head alone on a frozen backbone, or head and LoRA adapter. The paper names
            both of the first two; the full one stands with its settings.
        pooling: The head reads the last token's state, or the mean over all.
        max_length: Longest input in tokens; whole oldest turns are left out above it.
    """

    attention: Attention = "auto"
    start: str | None = None
    trainable: Trainable = "full"
    pooling: Pooling = "last"
    max_length: int = Field(default=2048, ge=64)
    lora: RewardLora = RewardLora()

    @model_validator(mode="after")
    def _frozen(self) -> Self:
        self.check_frozen(is_trained=self.trainable == "full")
        if self.start is not None and self.trainable != "full":
            raise ValueError(
                f"start needs trainable: full, not {self.trainable}; to train less than all of a supporter's weights, "
                "export it with `esckit export` and name that folder as backbone"
            )
        return self


class Objective(Section):
    """What is learnt.

    Attributes:
        kind: Labels by cross-entropy, or the order of candidates by a scalar head or by the language model itself.
        class_weight: ``balanced`` weighs both classes alike; then p is no probability any more.
        margin: Pairs of candidates count if their rewards differ by more.
    """

    kind: Kind = "classifier"
    class_weight: Literal["none", "balanced"] = "none"
    margin: DecimalText = "0"


class RewardOptim(Optim):
    """The optimiser: AdamW (0.9, 0.999) with a warm-up.

    Attributes:
        precision: ``auto`` computes in bfloat16 on a GPU and in float32 on a processor.
        batch_size: Inputs of one forward pass (of rankers: contexts with all their candidates).
        accumulate: Forward passes to a step, over all processes together; so the effective batch is
            ``batch_size · accumulate`` however many processes there are.
        gradient_checkpointing: Compute activations again in the backward pass, to save memory.
    """

    lr: PositiveFloat = 1e-4
    epochs: PositiveInt = 2
    batch_size: PositiveInt = 1
    accumulate: PositiveInt = 8
    precision: Precision = "auto"
    gradient_checkpointing: bool = False


class Dev(Section):
    """The held-out dialogues; ``train-sft`` and ``train-rl`` hold out the same ones with the same seed and share.

    Attributes:
        share: A dialogue is held out if its hash, a number from 0 to 1, lies below.
        select_by: Keep the state with the lowest ``log_loss``, the highest ``auc`` or, of a ranker, the highest
            ``pair_accuracy`` on dev, or the ``last`` one. The first two compare replies of different contexts too.
    """

    share: float = Field(default=0.1, gt=0.0, lt=1.0)
    select_by: Literal["log_loss", "auc", "pair_accuracy", "last"] = "log_loss"


class Logging(Section):
    """How often things are written. Operational.

    Attributes:
        every: Steps between two rows of ``metrics.jsonl``.
        save_every: Steps between two states to resume from, besides those at the end of each epoch; None: only those.
    """

    every: PositiveInt = 10
    save_every: PositiveInt | None = None


class TrainRewardRecipe(Recipe):
    """All settings of ``esckit train-reward``.

    Attributes:
        inputs: Run folders of ``esckit simulate`` whose futures are learnt from.
        label: The rule that says which futures are good; the paper does not report its own.
        prompt: How the reward model is asked: the name of a shipped prompt, or a file.
    """

    command: Literal["train-reward"]
    inputs: tuple[str, ...] = Field(min_length=1)
    label: Label
    model: RewardNetwork
    objective: Objective = Objective()
    optim: RewardOptim = RewardOptim()
    dev: Dev = Dev()
    prompt: str = "reward_model"
    executor: Threads = Threads()
    logging: Logging = Logging()
    trackers: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.objective.kind == "rrhf" and self.model.trainable == "head":
            raise ValueError("objective.kind rrhf has no head: set model.trainable to full or lora")
        if self.objective.kind != "classifier" and self.objective.class_weight != "none":
            raise ValueError("objective.class_weight is for kind classifier only")
        if self.objective.kind == "classifier" and self.dev.select_by == "pair_accuracy":
            raise ValueError("dev.select_by: pair_accuracy is for rankers, objective.kind pairwise or rrhf")
        return self


class StepPlan(NamedTuple):
    """How many steps there will be.

    Attributes:
        micro_batch: Items of one forward pass of one process.
        accumulate: Forward passes to a step of one process.
        per_epoch: Optimiser steps of one pass over the data.
        steps: Of all of them.
    """

    micro_batch: int
    accumulate: int
    per_epoch: int
    steps: int


def plan_steps(optim: RewardOptim, *, n_items: int, n_processes: int) -> StepPlan:
    """Return the steps over a number of items.

    Raises:
        ConfigError: If the processes cannot share a step evenly, so that the effective batch would change.
    """
    batch = optim.batch_size * optim.accumulate
    micro_batch, accumulate = share_batch(
        batch, at_most=optim.batch_size, n_processes=n_processes, what="examples (optim.batch_size · accumulate)"
    )
    per_epoch = math.ceil(n_items / batch)
    return StepPlan(micro_batch, accumulate, per_epoch, per_epoch * optim.epochs)
