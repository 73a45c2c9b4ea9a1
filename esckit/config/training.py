"""Recipe sections of the trainings: the model to train, adapters, the optimiser, and which futures are good."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Discriminator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, Tag, field_validator

from esckit.config.sections import DecimalText, Section

Schedule = Literal["linear", "cosine", "constant"]

Precision = Literal["auto", "float32", "bfloat16"]
"""``auto`` is bfloat16 autocast on a GPU and float32 on a processor."""


Quantisation = Literal["nf4"]

Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]
"""``auto`` is what transformers takes for the model; the others are its names."""


class FrozenWeights(Section):
    """How the weights of a trained model are held that stay frozen.

    Attributes:
        dtype: Number type of weights that stay frozen; ``auto`` is that of the forward passes (``precision``). Trained
            weights, adapters and heads are float32 always.
        quantisation: ``nf4`` holds the frozen linear layers in 4 bits (QLoRA, arXiv 2305.14314: 4-bit NormalFloat with
            double quantisation), computed in ``dtype``; needs an adapter to train. None holds them in ``dtype``.
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantisation: Quantisation | None = None

    def check_frozen(self, *, is_trained: bool) -> None:
        """Refuse settings of frozen weights where the whole backbone is trained.

        Raises:
            ValueError: If there are any.
        """
        for name, value in (("dtype", self.dtype), ("quantisation", self.quantisation)):
            if is_trained and value not in ("auto", "float32", None):
                raise ValueError(f"{name}: {value} is for frozen weights, and trainable: full freezes none; use lora")


class TrainedModel(FrozenWeights):
    """The language model to train, or to train on top of.

    Attributes:
        backbone: A name of the backbone registry, a folder, or a hub id.
    """

    backbone: str = Field(min_length=1)


class Lora(Section):
    """A LoRA adapter.

    Attributes:
        rank: Rank of the adapter's matrices; it has more weights the higher it is.
        alpha: Scale of the adapter: its output is multiplied by alpha / rank.
        dropout: Share of the adapter's inputs that are set to zero in training.
        targets: Names of modules, ``all-linear`` for those of attention and MLP, or None for those that the backbone
            registry names.
    """

    rank: PositiveInt
    alpha: PositiveInt
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: tuple[str, ...] | Literal["all-linear"] | None = None


class PolicyLora(Lora):
    """The LoRA adapter that is trained.

    Attributes:
        targets: Names of modules, or ``all-linear`` for those of attention and MLP.
    """

    rank: PositiveInt = 8
    alpha: PositiveInt = 32
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"

    @field_validator("targets", mode="before")
    @classmethod
    def _names_or_all(cls, targets: object) -> object:
        if isinstance(targets, str) and targets != "all-linear":
            raise ValueError(f"must be a list of module names, or all-linear, not {targets!r}")
        return targets

    @property
    def layers(self) -> str:
        """The targets in words."""
        return self.targets if isinstance(self.targets, str) else ", ".join(self.targets)


class Optim(Section):
    """The optimiser: AdamW (0.9, 0.999) with a warm-up.

    Attributes:
        lr: Highest learning rate.
        epochs: Passes over the training part.
        schedule: How the learning rate goes on after the warm-up: it falls linearly or by a cosine, or stays.
        warmup_share: Share of all steps during which the learning rate rises.
        weight_decay: How much AdamW shrinks the weights at each step, in units of the learning rate; 0 does not.
        max_grad_norm: Longer gradients are shortened to this length.
    """

    lr: PositiveFloat
    epochs: PositiveInt
    schedule: Schedule = "linear"
    warmup_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0


class PolicyOptim(Optim):
    """The optimiser of a supporter that is trained as a language model.

    Attributes:
        epochs: Passes over what is learnt from.
        max_steps: Make just so many steps, whether they are fewer or more than ``epochs`` come to; None makes all.
        warmup_share: Part of all steps during which the learning rate rises.
        select: Keep the last state, or the best on dev.
        precision: ``auto`` is bfloat16 on a GPU and float32 on a processor.
        gradient_checkpointing: Compute activations again in the backward pass, to save memory.
    """

    epochs: PositiveInt = 2
    max_steps: PositiveInt | None = None
    warmup_share: float = Field(default=0.03, ge=0.0, lt=1.0)
    select: Literal["last", "best_dev"] = "last"
    precision: Precision = "auto"
    gradient_checkpointing: bool = True


class Saving(Section):
    """How often the state to resume from is written: in steps, with GRPO up to the next multiple of its iterations.

    Operational.

    Attributes:
        save_every: Steps between two states to resume from.
    """

    save_every: PositiveInt = 100


# ---------------------------------------------------------------- which futures are good


class ThresholdLabel(Section):
    """A future is good if its reward is strictly above ``delta``.

    Attributes:
        rule: When a future is good; ``threshold`` compares its reward with ``delta``.
        delta: The reward that must be exceeded; a decimal, compared exactly.
    """

    rule: Literal["threshold"]
    delta: DecimalText


class GoalLabel(Section):
    """A future is good if it reached the goal.

    Attributes:
        rule: When a future is good; ``goal`` asks whether it reached the critic's threshold.
    """

    rule: Literal["goal"]


class QuantileLabel(Section):
    """A future is good if its reward is strictly above the ``q``-quantile of the training part.

    Attributes:
        rule: When a future is good; ``quantile`` compares its reward with those of the training part.
        q: The quantile, a decimal between 0 and 1, both excluded.
    """

    rule: Literal["quantile"]
    q: DecimalText

    @field_validator("q")
    @classmethod
    def _in_range(cls, q: str) -> str:
        if not 0 < Fraction(q) < 1:
            raise ValueError("must lie between 0 and 1")
        return q


def _rule_tag(value: object) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("rule")
    elif isinstance(value, ThresholdLabel | GoalLabel | QuantileLabel):
        value = value.rule
    return f"<{value}>" if value in ("threshold", "goal", "quantile") else None


Label = Annotated[
    Annotated[ThresholdLabel, Tag("<threshold>")]
    | Annotated[GoalLabel, Tag("<goal>")]
    | Annotated[QuantileLabel, Tag("<quantile>")],
    Discriminator(
        _rule_tag,
        custom_error_type="label_rule",
        custom_error_message="must be a mapping with rule: threshold (and delta), goal, or quantile (and q)",
    ),
]
"""The paper does not report its threshold, so the rule is always the user's choice."""
