"""Checkpoints of reward models: the trained weights, the tokenizer, and what one must know to use them.

::

    reward.json            metadata: prompt, label rule, objective, backbone, what it was trained on
    head.safetensors       the float32 head (of a ranker with an untied LM head: that)
    adapter/ or backbone/  as peft or transformers write them (safetensors); neither if only the head was trained
    tokenizer/             as transformers writes it
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from esckit.errors import CheckpointError
from esckit.models.backbones import quiet_off_terminal, resolve_backbone
from esckit.models.checkpoint import ADAPTER, BACKBONE, TOKENIZER, CheckpointMetadata, checkpoint_folder
from esckit.models.loading import (
    check_whole,
    load_adapter,
    load_base,
    load_causal,
    load_tensors,
    load_tokenizer,
)
from esckit.reward.network import Kind, Pooling, RewardNet, Trainable
from esckit.reward.text import RewardTemplate

HEAD = "head.safetensors"


class RewardMetadata(CheckpointMetadata):
    """What belongs to a trained reward model.

    Attributes:
        kind: What its output is, see :mod:`esckit.reward.network`.
        trainable: What was trained.
        pooling: Which state the head reads.
        max_length: Longest input in tokens.
        template: The prompt it was trained with.
        label: The label rule, as the recipe says it.
        delta: The threshold that the rule came to, as a fraction; None for ``goal``.
        simulation: Preset, read-out, horizon, threshold and critic prompt of the futures.
    """

    SCHEMA: ClassVar[str] = "esckit.reward_model/1"
    COMMAND: ClassVar[str] = "train-reward"

    kind: Kind
    trainable: Trainable
    pooling: Pooling
    max_length: int
    template: RewardTemplate
    label: dict[str, str]
    delta: str | None
    simulation: dict[str, str | int | bool]


def load_net(run: Path, metadata: RewardMetadata, *, dtype: torch.dtype) -> tuple[RewardNet, Any]:
    """Return a trained net in evaluation mode, adapters merged, and its tokenizer.

    Raises:
        CheckpointError: If files are missing or do not fit.
        ConfigError: If the backbone that it names cannot be had.
    """
    folder = checkpoint_folder(run)
    quiet_off_terminal()
    check_whole(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    outer = load_tensors(folder / HEAD)
    decoder, lm_head = _backbone(folder, metadata, outer, dtype)
    net = RewardNet(
        decoder,
        metadata.kind,
        hidden_size=decoder.config.hidden_size,
        pooling=metadata.pooling,
        lm_head=lm_head,
        logit_softcap=decoder.config.to_dict().get("final_logit_softcapping"),
    )
    if net.head is not None:
        own = {name.removeprefix("head."): tensor for name, tensor in outer.items() if name.startswith("head.")}
        wanted = {name: tensor.shape for name, tensor in net.head.state_dict().items()}
        if wanted != {name: tensor.shape for name, tensor in own.items()}:
            raise CheckpointError(f"the head in {folder} does not fit its backbone")
        net.head.load_state_dict(own)
    return net.eval(), tokenizer


def _backbone(
    folder: Path, metadata: RewardMetadata, outer: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[Any, nn.Module | None]:
    """Return the trained decoder and, for a ranker, its projection to the vocabulary."""
    if metadata.trainable == "full":
        decoder = load_base(folder / BACKBONE, dtype=dtype)
        lm_head = None
        if metadata.kind == "rrhf":
            weight = outer.get("lm_head.weight", decoder.get_input_embeddings().weight.detach())
            lm_head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
            lm_head.load_state_dict({"weight": weight})
        return decoder, lm_head
    causal, _ = load_causal(resolve_backbone(metadata.backbone), dtype=dtype)
    decoder, lm_head = causal.base_model, causal.get_output_embeddings()
    if metadata.trainable == "lora":
        decoder = load_adapter(decoder, folder / ADAPTER).merge_and_unload()
    return decoder, lm_head
