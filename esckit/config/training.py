"""Recipe sections of the trainings: the model to train, adapters, the optimiser."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from esckit.config.sections import Section

Schedule = Literal["linear", "cosine", "constant"]

Precision = Literal["auto", "float32", "bfloat16"]
"""``auto`` is bfloat16 autocast on a GPU and float32 on a processor."""


Quantisation = Literal["nf4"]

Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]
"""``auto`` is what transformers takes for the model; the others are its names."""


class TrainedModel(Section):
    """The language model to train, or to train on top of.

    Attributes:
        backbone: A name of the backbone registry, a folder, or a hub id.
        dtype: Number type of weights that stay frozen; ``auto`` is that of the forward passes (``precision``). Trained
            weights, adapters and heads are float32 always.
        quantisation: ``nf4`` holds the frozen linear layers in 4 bits (QLoRA, arXiv 2305.14314: 4-bit NormalFloat with
            double quantisation), computed in ``dtype``; needs an adapter to train. None holds them in ``dtype``.
    """

    backbone: str = Field(min_length=1)
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


class Lora(Section):
    """A LoRA adapter.

    Attributes:
        targets: Names of modules, ``all-linear`` for those of attention and MLP, or None for those that the backbone
            registry names.
    """

    rank: PositiveInt
    alpha: PositiveInt
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: tuple[str, ...] | Literal["all-linear"] | None = None


class Optim(Section):
    """The optimiser: AdamW (0.9, 0.999) with a warm-up.

    Attributes:
        lr: Highest learning rate.
        epochs: Passes over the training part.
        warmup_share: Share of all steps during which the learning rate rises.
    """

    lr: PositiveFloat
    epochs: PositiveInt
    schedule: Schedule = "linear"
    warmup_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
