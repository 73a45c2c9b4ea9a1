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
from peft import PeftModel
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from esckit.errors import CheckpointError
from esckit.models import checkpoint as checkpoints
from esckit.models.backbones import quiet_off_terminal, resolve_backbone
from esckit.models.loading import (
    check_stored,
    check_whole,
    load_adapter,
    load_base,
    load_causal,
    load_tensors,
    load_tokenizer,
    tidy_adapter,
)
from esckit.records import dump_line, fresh_folder, write_atomic
from esckit.reward.network import Kind, Pooling, RewardNet, Trainable
from esckit.reward.text import RewardTemplate
from esckit.types import Record

METADATA = "reward.json"

HEAD = "head.safetensors"

ADAPTER = "adapter"

BACKBONE = "backbone"

TOKENIZER = "tokenizer"


class RewardMetadata(Record):
    """What belongs to a trained reward model.

    Attributes:
        backbone: Name, folder or hub id of the backbone.
        kind: What its output is, see :mod:`esckit.reward.network`.
        trainable: What was trained.
        pooling: Which state the head reads.
        max_length: Longest input in tokens.
        template: The prompt it was trained with.
        label: The label rule, as the recipe says it.
        delta: The threshold that the rule came to, as a fraction; None for ``goal``.
        simulation: Preset, read-out, horizon, threshold and critic prompt of the futures.
        inputs: Digest of the futures per input folder.
        dialogue_ids: Dialogues trained or selected on, those inherited from the inputs included.
        dev_ids: Those of them that the checkpoint was selected on.
        selected_by: How the checkpoint was selected.
        step: Optimiser steps taken.
        metrics: Dev metrics at this step.
    """

    SCHEMA: ClassVar[str] = "esckit.reward_model/1"

    backbone: str
    kind: Kind
    trainable: Trainable
    pooling: Pooling
    max_length: int
    template: RewardTemplate
    label: dict[str, str]
    delta: str | None
    simulation: dict[str, str | int | bool]
    inputs: dict[str, str]
    dialogue_ids: tuple[str, ...]
    dev_ids: tuple[str, ...]
    selected_by: str
    step: int = 0
    metrics: dict[str, float | int | None] = Field(default_factory=dict)


def save_checkpoint(
    net: RewardNet, state: Mapping[str, Tensor], tokenizer: Any, metadata: RewardMetadata, folder: Path
) -> None:
    """Write a checkpoint in place of the last one; a folder that is there is whole.

    Args:
        net: The net.
        state: Its trained tensors by name (a sharded net's are gathered before).
        tokenizer: The backbone's.
        metadata: What to know of it.
        folder: Where to; replaced as a whole.
    """
    inner = {name.removeprefix("backbone."): t for name, t in state.items() if name.startswith("backbone.")}
    outer = {name: t.detach().cpu().contiguous() for name, t in state.items() if not name.startswith("backbone.")}
    with fresh_folder(folder) as fresh:
        if isinstance(net.backbone, PeftModel):
            net.backbone.save_pretrained(str(fresh / ADAPTER), state_dict=inner)
            tidy_adapter(fresh / ADAPTER, metadata.backbone)
        elif metadata.trainable == "full":
            net.backbone.save_pretrained(str(fresh / BACKBONE), state_dict=inner)  # type: ignore[operator]
        save_file(outer, str(fresh / HEAD))
        tokenizer.save_pretrained(str(fresh / TOKENIZER))
        check_stored(state, fresh)
        write_atomic(fresh / METADATA, dump_line(metadata) + "\n")


def read_metadata(run: Path) -> RewardMetadata:
    """Return the metadata of the reward model in a run folder (or of a checkpoint folder).

    Raises:
        CheckpointError: If there is none, or it cannot be read.
    """
    return checkpoints.read_metadata(RewardMetadata, run, METADATA, what="reward model", command="train-reward")


def checkpoint_folder(run: Path) -> Path:
    """Return the folder with the checkpoint itself."""
    return checkpoints.checkpoint_folder(run, METADATA)


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
