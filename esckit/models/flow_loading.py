"""Building flow models: anew on a backbone, or from a checkpoint of ``train-flow``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from esckit.errors import CheckpointError, ConfigError
from esckit.models.backbones import fetch_backbone, find_backbone, resolve_backbone
from esckit.models.flow_checkpoint import (
    ADAPTER,
    BACKBONE,
    TOKENIZER,
    FlowMetadata,
    checkpoint_folder,
    load_heads,
    read_metadata,
)
from esckit.models.flow_model import Attention, FlowModel, base_decoder
from esckit.models.loading import load_tokenizer as load_tokenizer_of
from esckit.models.loading import check_lora_targets, load_adapter, load_base, load_causal
from esckit.models.stored import check_whole
from esckit.models.tiny import tiny_tokenizer


class LoraSettings(NamedTuple):
    """An adapter to make."""

    rank: int
    alpha: int
    dropout: float
    targets: tuple[str, ...]


class Loaded(NamedTuple):
    """A backbone without its LM head, the head, and the tokenizer."""

    decoder: PreTrainedModel
    lm_head: nn.Module
    tokenizer: Any


def load_tokenizer(ref: str) -> Any:
    """Return the tokenizer of a backbone.

    Raises:
        ConfigError: If there is no such backbone, or it cannot be reached.
        CheckpointError: If it holds no tokenizer that transformers can load.
    """
    if find_backbone(ref).kind == "memory":
        return tiny_tokenizer()
    return load_tokenizer_of(fetch_backbone(ref))


def load_decoder(ref: str, *, dtype: torch.dtype) -> Loaded:
    """Return a backbone ready for heads.

    Args:
        ref: NAME, FOLDER or HUB-ID.
        dtype: Type of its weights.

    Raises:
        ConfigError: If there is no such backbone, or it cannot be reached or loaded.
    """
    model, tokenizer = load_causal(resolve_backbone(ref), dtype=dtype)
    return Loaded(model.get_decoder(), model.get_output_embeddings(), tokenizer)


def new_flow_model(
    loaded: Loaded,
    strategies: tuple[str, ...],
    *,
    attention: Attention,
    lora: LoraSettings | None,
    frozen_layers: int = 0,
    with_lm_head: bool = False,
) -> FlowModel:
    """Return a flow model with fresh heads.

    Args:
        loaded: The backbone.
        strategies: The taxonomy in order.
        attention: How packed rows are attended.
        lora: The adapter to train; None trains the backbone itself.
        frozen_layers: Without an adapter: so many lowest layers and the embeddings are not trained.
        with_lm_head: Keep the projection to the vocabulary, for the response term.
    """
    decoder = loaded.decoder
    if lora is not None:
        decoder = _adapted(decoder, lora)
    elif frozen_layers:
        freeze_layers(decoder, frozen_layers)
    return FlowModel(decoder, strategies, attention=attention, lm_head=loaded.lm_head if with_lm_head else None)


def _adapted(decoder: nn.Module, lora: LoraSettings) -> nn.Module:
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets), bias="none"
    )
    check_lora_targets(decoder, lora.targets)
    return get_peft_model(decoder, settings)


def freeze_layers(decoder: nn.Module, n_layers: int) -> None:
    """Keep the lowest layers of a backbone, and its embeddings, as they are.

    Raises:
        ConfigError: If it has fewer layers.
    """
    base = base_decoder(decoder)
    layers: Sequence[nn.Module] = base.layers
    if n_layers > len(layers):
        raise ConfigError(f"model.frozen_layers: {n_layers}", expected=f"at most {len(layers)}, as many as there are")
    base.get_input_embeddings().requires_grad_(False)
    for layer in layers[:n_layers]:
        layer.requires_grad_(False)


class FlowCheckpoint(NamedTuple):
    """A trained model and what it takes to use it."""

    model: FlowModel
    tokenizer: Any
    metadata: FlowMetadata


def load_flow_model(
    run: Path,
    *,
    attention: Attention = "sdpa",
    dtype: torch.dtype = torch.float32,
    strategies: tuple[str, ...] | None = None,
    with_lm_head: bool = False,
    trainable: bool = False,
) -> FlowCheckpoint:
    """Return the model of a checkpoint.

    Args:
        run: The checkpoint, or the run folder that holds it.
        attention: How packed rows are attended.
        dtype: Type of the backbone's weights.
        strategies: The taxonomy it is wanted for; None takes its own.
        with_lm_head: Keep the projection to the vocabulary, for the response term.
        trainable: Load it to be trained further.

    Raises:
        CheckpointError: If the checkpoint is not whole, or is of another taxonomy or text form.
        ConfigError: If its backbone cannot be reached.
    """
    metadata, folder = read_metadata(run, strategies=strategies), checkpoint_folder(run)
    full = metadata.trainable == "full"
    part = folder / (BACKBONE if full else ADAPTER)
    if not part.is_dir():
        raise CheckpointError(f"{folder} lacks {part.name}", expected="a whole checkpoint of train-flow")
    check_whole(folder)
    if full:
        decoder = load_base(part, dtype=dtype)
        lm_head, tokenizer = None, load_tokenizer_of(folder / TOKENIZER)
    else:
        loaded = load_decoder(metadata.backbone, dtype=dtype)
        decoder = load_adapter(loaded.decoder, part, trainable=trainable)
        lm_head, tokenizer = loaded.lm_head, loaded.tokenizer
    if with_lm_head and lm_head is None:
        lm_head = load_decoder(metadata.backbone, dtype=dtype).lm_head
    model = FlowModel(decoder, metadata.strategies, attention=attention, lm_head=lm_head if with_lm_head else None)
    load_heads(model, folder)
    return FlowCheckpoint(model.train(trainable), tokenizer, metadata)
