"""How much memory a training needs on each device, estimated from the shape of its model before anything is loaded.

Counted are weights, gradients, optimiser states, and what a forward pass keeps for its backward pass, layer by layer as
transformers, peft and PyTorch keep it; the tests compare these with the bytes of live tensors. Not counted are the
CUDA context (about 0.5 GB), fragments, and what a kernel needs while it runs. Inputs count with the greatest length
that the recipe allows. Where the shape of a model is not known, neither is the sum: nothing is guessed. Imports nothing
heavy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from esckit.config.training import Attention, Lora, Precision, TrainedModel
from esckit.errors import MissingRunsError
from esckit.models.backbones import find_backbone
from esckit.models.shape import Shape, shape_of_backbone
from esckit.training.run import Process

_NF4 = 0.5 + (1 + 4 / 256) / 64
"""Bytes of a weight in 4 bits: itself, and its share of the 8-bit scale of its block of 64 (arXiv 2305.14314)."""

_F32 = 4

_TRL_VOCABULARY = 32_768
"""Entries of the vocabulary whose logits TRL computes at a time."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a training does on one device.

    Attributes:
        model: The model to train.
        trainable: What of it: all, an adapter, or only a head on top of it.
        precision: Of the forward passes; ``auto`` stands for a GPU that computes in bfloat16.
        rows: Sequences of a forward pass.
        tokens: Length of each.
        checkpointing: Whether activations are computed again in the backward pass.
        lora: The adapter of ``trainable: lora``.
        targets: Layers that it adapts; None is all linear ones.
        head: Weights of the heads, which are always trained.
        attention: How attention is computed.
        dense_mask: Whether attention takes a mask (padding on the left, trees), for which keys and values are repeated.
        frozen_layers: Lowest layers that stay frozen, embeddings too, with ``trainable: full``.
        logits: Logits that exist at a time; 0 if nothing reads the output layer.
        generated: Sequences that one process generates at a time.
        generated_tokens: Length of each, prompt included.
        averaged: Whether the mean of the trained weights stands beside them.
    """

    model: TrainedModel
    trainable: Literal["full", "head", "lora"]
    precision: Precision
    rows: int
    tokens: int
    checkpointing: bool
    lora: Lora | None = None
    targets: Sequence[str] | None = None
    head: int = 0
    attention: Attention = "auto"
    dense_mask: bool = False
    frozen_layers: int = 0
    logits: int = 0
    generated: int = 0
    generated_tokens: int = 0
    averaged: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device, at the moment that needs the most.

    Attributes:
        weights: Of the trained model, frozen or not; with ``zero3`` and ``fsdp`` a share, and the layer in use whole.
            The mean of trained weights, if one is kept.
        gradients: Of what is trained, with the buckets in which processes exchange them.
        optimiser: The two moments of AdamW, with DeepSpeed also the float32 originals.
        activations: What a forward pass keeps for the backward pass.
        generation: Keys, values and logits while the policy generates, when there are no activations.
        other_models: Weights of models that stand beside the trained one.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int
    generation: int = 0
    other_models: int = 0

    @property
    def total(self) -> int:
        """The largest sum at any moment."""
        # AdamW's update needs as much again as one of its moments, once activations are gone.
        moment = max(self.activations, self.generation, self.optimiser // 2)
        return self.weights + self.gradients + self.optimiser + self.other_models + moment

    def facts(self) -> dict[str, int]:
        """Return the parts and the total by name."""
        return {name: getattr(self, name) for name in (*self.__slots__, "total")}


def estimate(work: Workload, shape: Shape, process: Process, *, other_models: int = 0) -> Memory:
    """Return what a training needs on each of its devices.

    Args:
        work: What one device does.
        shape: That of the model.
        process: How many processes there are and what they divide.
        other_models: Bytes of the models beside it.
    """
    bf16 = work.precision != "float32"
    deepspeed, split = process.sharding in ("zero2", "zero3"), process.sharding in ("zero3", "fsdp")
    n = process.count
    trained = trained_weights(work, shape)
    frozen = frozen_bytes(work, shape, as_bf16=deepspeed and bf16)
    own = trained * (2 if deepspeed and bf16 else _F32)
    weights = frozen + own
    if split:
        # The layers in use are whole, and so is the embedding (or the output layer).
        whole = (2 * shape.layer + shape.embedding) * weights // (_held(work, shape) + work.head)
        weights = min(weights, weights // n + whole)
    divides = n if process.sharding != "none" else 1
    buckets = 2 if n > 1 and process.sharding == "none" else 1
    generation = 0
    if work.generated:
        per_token = 2 * shape.n_layers * shape.keys * (2 if bf16 else _F32)
        generation = work.generated * (work.generated_tokens * per_token + 3 * shape.vocabulary * _F32)
        if process.sharding == "zero3":  # gathered while it generates
            generation += max(0, frozen + own - weights)
    return Memory(
        weights=weights + work.averaged * trained * _F32 // divides,
        gradients=trained * _F32 * buckets // divides,
        optimiser=trained * (3 if deepspeed and bf16 else 2) * _F32 // divides,
        activations=activation_bytes(work, shape, casts=not deepspeed),
        generation=generation,
        other_models=other_models,
    )


def trained_weights(work: Workload, shape: Shape) -> int:
    """Return the number of weights that are trained."""
    if work.trainable == "head":
        return work.head
    if work.trainable == "full":
        below = work.frozen_layers * shape.layer + (shape.embedding if work.frozen_layers else 0)
        return _held(work, shape) - below + work.head
    assert work.lora is not None
    rank = work.lora.rank
    adapted = sum(rank * (n_in + n_out) for n_in, n_out in _adapted(work, shape).values())
    embedding = rank * (shape.vocabulary + shape.hidden) if "embed_tokens" in (work.targets or ()) else 0
    return shape.n_layers * adapted + embedding + work.head


def frozen_bytes(work: Workload, shape: Shape, *, as_bf16: bool = False) -> int:
    """Return the bytes of weights that stay frozen; an engine may hold them in bfloat16."""
    if work.trainable == "full":
        return (_held(work, shape) - (trained_weights(work, shape) - work.head)) * (2 if as_bf16 else _F32)
    width = 2 if as_bf16 else _width(work)
    in_bits = shape.in_linears if work.model.quantisation is not None else 0
    return (_held(work, shape) - in_bits) * width + int(in_bits * _NF4)


def _held(work: Workload, shape: Shape) -> int:
    """Return the number of the backbone's weights on the device: the output layer is left out if nothing reads it."""
    return shape.total if work.logits else shape.decoder


def _width(work: Workload) -> int:
    """Return the bytes of a weight of the frozen backbone."""
    dtype = work.model.dtype
    return _F32 if dtype == "float32" or (dtype == "auto" and work.precision == "float32") else 2


def _adapted(work: Workload, shape: Shape) -> dict[str, tuple[int, int]]:
    """Return the linear layers of a decoder layer that the adapter adapts."""
    if work.trainable != "lora":
        return {}
    ends = work.targets
    return {
        name: size
        for name, size in shape.linears.items()
        if ends is None or any(f".{name}".endswith(f".{end}") for end in ends)
    }


# ---------------------------------------------------------------- activations


def activation_bytes(work: Workload, shape: Shape, *, casts: bool = True) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, at the moment when they are most.

    Args:
        work: What is computed.
        shape: That of the model.
        casts: Whether autocast keeps bfloat16 copies of float32 weights; DeepSpeed holds bfloat16 weights itself.
    """
    n_tokens, bf16 = work.rows * work.tokens, work.precision != "float32"
    logits = work.logits * 2 * _F32  # and as many probabilities
    if work.trainable == "head":
        return n_tokens * shape.hidden * _F32 + logits
    residual = 2 if bf16 and work.trainable == "lora" and _width(work) == 2 else _F32
    copies = 0
    if bf16 and casts and residual == _F32 and work.model.quantisation is None:
        copies = 2 * shape.in_linears
    last = n_tokens * _norm(work, shape, shape.hidden)
    if work.dense_mask and work.attention != "flash_attention_2":
        last += n_tokens * work.tokens * _compute(work)
    layer = layer_bytes(work, shape)
    n_layers = shape.n_layers - work.frozen_layers
    if not work.checkpointing:
        return n_layers * layer + last + logits + copies
    kept = n_layers * n_tokens * shape.hidden * residual + last
    # The copies live until the forward pass ends; then one layer after the other is computed again, with its copies.
    return kept + max(copies + logits, layer + copies // shape.n_layers)


def layer_bytes(work: Workload, shape: Shape) -> int:
    """Return the bytes that one decoder layer keeps for the backward pass."""
    per_token = _norms(work, shape) + _attention(work, shape) + _inputs(work, shape) + _feed_forward(work, shape)
    return work.rows * work.tokens * per_token


def _norms(work: Workload, shape: Shape) -> int:
    """Return the bytes of a layer's norms per token."""
    own = sum(_norm(work, shape, width) for width in (shape.queries, shape.keys)) if shape.qk_norms else 0
    return shape.n_norms * _norm(work, shape, shape.hidden) + own


def _norm(work: Workload, shape: Shape, width: int) -> int:
    """Return the bytes of one norm per token: RMS norms compute in float32, and trained ones keep what they scale."""
    full = work.trainable == "full"
    if shape.gated:
        return _F32 * (width * (2 if full else 1) + 1)
    return width * (_F32 if full or _compute(work) == _F32 else 2) + 2 * _F32


def _compute(work: Workload) -> int:
    """Return the bytes of a number in matrix products."""
    return _F32 if work.precision == "float32" and _width(work) == _F32 else 2


def _attention(work: Workload, shape: Shape) -> int:
    """Return the bytes of the attention per token: queries, keys, values, output; the scores where it stores them."""
    a, q, k = _compute(work), shape.queries, shape.keys
    if not shape.gated:
        k = q
    if work.attention == "eager" or (shape.soft_caps and work.attention != "flash_attention_2"):
        scores = shape.n_heads * work.tokens * (_F32 + (a if a < _F32 else 0) + (a if shape.soft_caps else 0))
        return a * (q + 2 * q) + scores
    repeated = q if work.dense_mask and work.attention != "flash_attention_2" else k
    return a * (2 * q + 2 * repeated) + shape.n_heads * _F32


def _inputs(work: Workload, shape: Shape) -> int:
    """Return the bytes per token of what linear layers keep of their inputs: those with weights to train."""
    a, h, i = _compute(work), shape.hidden, shape.inner
    if work.trainable == "full":
        # Autocast makes a copy for each layer that reads a float32 state; else they share one.
        if shape.gated:
            return a * ((5 if a < _F32 else 2) * h + i)
        return a * (2 * h + i)
    adapted = _adapted(work, shape)
    assert work.lora is not None
    middle = a * work.lora.rank * len(adapted)
    if work.lora.dropout:  # a mask, and the dropped input in float32 or its copy
        return middle + sum((1 + a) * n_in for n_in, _ in adapted.values())
    if a < _F32:
        return middle + a * sum(n_in for n_in, _ in adapted.values())
    groups = (("q_proj", "k_proj", "v_proj", "c_attn"), ("gate_proj", "up_proj", "c_fc"), ("down_proj", "mlp.c_proj"))
    shared = [max((adapted[name][0] for name in group if name in adapted), default=0) for group in groups]
    return middle + a * sum(shared)


def _feed_forward(work: Workload, shape: Shape) -> int:
    """Return the bytes per token of the feed-forward part between its linear layers."""
    return _compute(work) * shape.inner * (3 if shape.gated else 4)


# ---------------------------------------------------------------- for dry runs


def plan_memory(
    work: Workload, process: Process, *, others: Mapping[str, str | None] | None = None
) -> dict[str, int] | None:
    """Return the parts of the estimate in bytes by name, None where a model's shape is not known.

    Args:
        work: What one device does.
        process: How many processes there are and what they divide.
        others: Backbones of the models that stand beside it by their places, None where one is not known.

    Raises:
        ConfigError: If there is no such backbone.
    """
    shape = shape_of_backbone(work.model.backbone)
    beside: list[int] = []
    for ref in dict.fromkeys((others or {}).values()):
        other = None if ref is None else shape_of_backbone(ref)
        if other is None:
            return None
        beside.append(other.total * 2)
    return None if shape is None else estimate(work, shape, process, other_models=sum(beside)).facts()


def plan_without_inputs(
    process: Process, memory: dict[str, int] | None, error: MissingRunsError, *, not_counted: str | None = None
) -> dict[str, Any]:
    """Return the plan of a training whose inputs are not there yet: what its memory takes, and why it would be refused.

    Args:
        process: How many processes there are.
        memory: What :func:`plan_memory` found.
        error: What is missing.
        not_counted: What needs memory too, but is known from the inputs alone.
    """
    return {
        "steps_at_most": None,
        "processes": process.count,
        "memory_per_device": memory,
        **({"memory_not_counted": not_counted} if not_counted else {}),
        "refusal": error,
    }


def trl_logits(backbone: str, n_tokens: int) -> int:
    """Return how many logits TRL holds at a time for so many tokens; 0 if the backbone's shape is not known."""
    shape = shape_of_backbone(backbone)
    return 0 if shape is None else n_tokens * min(shape.vocabulary, _TRL_VOCABULARY)


def lora_targets(lora: Lora, backbone: str) -> tuple[str, ...] | None:
    """Return the layers that an adapter adapts; None is all linear ones."""
    if lora.targets is None:
        entry = find_backbone(backbone).backbone
        return entry.lora_targets if entry is not None else None
    return None if isinstance(lora.targets, str) else lora.targets


def readable(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan with its memory in words."""
    memory = plan["memory_per_device"]
    if memory is None:
        words = "unknown: the sizes of a model are not on this machine, or it is of a kind that is not counted"
    else:
        words = ", ".join(f"{name.replace('_', ' ')} {in_gb(size)}" for name, size in memory.items() if size)
    return {**plan, "memory_per_device": words}


def in_gb(size: int) -> str:
    """Return a number of bytes in GB (10⁹ bytes) with three digits or, below a tenth of one, in MB."""
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
