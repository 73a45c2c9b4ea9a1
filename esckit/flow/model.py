"""The flow model of AFlow (arXiv 2602.08826): a backbone with a strategy head and a flow head.

One backbone and one adapter serve both heads. The model reads packed rows (:mod:`esckit.models.packing`) and gives
log π and log V of every state in them. Not here: losses, and how checkpoints are stored
(:mod:`esckit.flow.model`).

Checkpoints of flow models: an adapter (or a whole backbone), two heads, and what one must know to use them.

::

    checkpoint/flow.json              metadata: taxonomy, text form, objective, inputs, round
    checkpoint/heads.safetensors      strategy head and flow head, float32
    checkpoint/adapter/ or backbone/  as peft or transformers write them (safetensors)
    checkpoint/tokenizer/             as transformers writes it

Building flow models: anew on a backbone, or from a checkpoint of ``train-flow``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from esckit.errors import CheckpointError, ConfigError
from esckit.flow.heads import FlowHead, StrategyHead
from esckit.flow.text import HEADS, METADATA, FlowMetadata, read_metadata
from esckit.models.backbones import fetch_backbone, find_backbone, resolve_backbone, tiny_tokenizer
from esckit.models.checkpoint import checkpoint_folder
from esckit.models.decoder import base_decoder, layer_classes
from esckit.models.loading import (
    check_lora_targets,
    check_stored,
    check_whole,
    load_adapter,
    load_base,
    load_causal,
    load_tensors,
    tidy_adapter,
)
from esckit.models.loading import load_tokenizer as load_tokenizer_of
from esckit.models.packing import (
    PATH_MODE,
    TREE_ATTENTION,
    NodeSpan,
    PackedRows,
    additive_mask,
    tree_layout,
    use_attention,
)
from esckit.records import dump_line, fresh_folder, write_atomic

Attention = Literal["sdpa", "eager", "flex", "tree"]


_TRANSFORMERS_NAME = {"sdpa": "sdpa", "eager": "eager", "flex": "flex_attention", "tree": TREE_ATTENTION}


@dataclass(frozen=True)  # no slots: ZeRO-3 looks for tensors in vars()
class FlowOutputs:
    """What the model says about S states.

    Attributes:
        log_pi: Log-probability of every strategy (S, A).
        log_value: log V(s, a) (S, A).
        hidden: The states' hidden vectors (S, d).
        target_log_p: Log-probability of every target token (N,); None without a response term.
    """

    log_pi: Tensor
    log_value: Tensor
    hidden: Tensor
    target_log_p: Tensor | None = None


class FlowModel(nn.Module):
    """A backbone and two heads.

    Args:
        backbone: Decoder without LM head, plain or wrapped by peft; its output has ``last_hidden_state``.
        strategies: Names in taxonomy order.
        attention: ``sdpa`` and ``eager`` take a dense mask, ``flex`` a block mask (CUDA), ``tree`` computes only what
            the tree allows. Soft-capped scores (Gemma 2), which SDPA would silently leave uncapped, are ``eager``.
        lm_head: Frozen projection to the vocabulary, for the response term.
    """

    def __init__(
        self,
        backbone: nn.Module,
        strategies: tuple[str, ...],
        *,
        attention: Attention,
        lm_head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.strategies = strategies
        decoder = base_decoder(backbone)
        if attention == "sdpa" and decoder.config.to_dict().get("attn_logit_softcapping"):
            attention = "eager"
        self.attention = attention
        use_attention(decoder, _TRANSFORMERS_NAME[attention])
        self.strategy_head = StrategyHead(decoder.config.hidden_size, len(strategies))
        self.flow_head = FlowHead(decoder.config.hidden_size, len(strategies))
        self._no_split_modules = layer_classes(backbone)  # what FSDP shards as one piece
        self.lm_head = lm_head
        if lm_head is not None:
            lm_head.requires_grad_(False)

    def forward(self, rows: PackedRows) -> FlowOutputs:
        """Read the rows and return what the heads say about their states."""
        hidden = self.backbone(
            input_ids=rows.input_ids, position_ids=rows.position_ids, use_cache=False, **self._masking(rows)
        ).last_hidden_state
        return self.judge(hidden[rows.readout_row, rows.readout_column], self._target_log_p(hidden, rows))

    def judge(self, states: Tensor, target_log_p: Tensor | None = None) -> FlowOutputs:
        """Return what the heads say about hidden states (S, d)."""
        return FlowOutputs(
            log_pi=self.strategy_head(states),
            log_value=self.flow_head(states),
            hidden=states,
            target_log_p=target_log_p,
        )

    def _masking(self, rows: PackedRows) -> dict[str, Any]:
        """Return the arguments by which the attention learns who may look at whom."""
        dtype = self._compute_dtype(rows)
        if self.attention == "tree":
            spans = rows.spans
            if spans is None:
                if rows.subtree_end is not None:
                    raise ConfigError("tree attention on several packed rows at once", expected="one row")
                spans = (NodeSpan(0, rows.input_ids.shape[1], -1),)
            return {"layout": tree_layout(spans, dtype=dtype, device=rows.input_ids.device)}
        if rows.subtree_end is None:
            return {}
        if self.attention == "flex":
            return {"attention_mask": _block_mask(rows.subtree_end)}
        return {"attention_mask": additive_mask(rows.subtree_end, dtype)}

    def _compute_dtype(self, rows: PackedRows) -> torch.dtype:
        """Return the type in which attention is computed: autocast's, or the backbone's own."""
        device = rows.input_ids.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return base_decoder(self.backbone).get_input_embeddings().weight.dtype

    def _target_log_p(self, hidden: Tensor, rows: PackedRows) -> Tensor | None:
        """Return the log-probability of each target token (N,)."""
        if rows.target_row is None or rows.target_column is None or rows.target_ids is None:
            return None
        if self.lm_head is None:
            raise ConfigError("a response term without the backbone's LM head", hint="Set response_weight: 0")
        logits = self.lm_head(hidden[rows.target_row, rows.target_column]).float()
        return -F.cross_entropy(logits, rows.target_ids, reduction="none")


def _block_mask(subtree_end: Tensor) -> Any:
    """Return FlexAttention's block mask of packed rows."""
    if subtree_end.device.type != "cuda":
        raise ConfigError("encoding.attention: flex without a CUDA device", expected="tree, sdpa or eager")
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < subtree_end[batch, key])

    n_rows, length = subtree_end.shape
    return create_block_mask(visible, n_rows, None, length, length, device=subtree_end.device)


@torch.no_grad()
def check_exact(model: FlowModel, *, tolerance: float = 1e-2) -> None:
    """Run a small tree through the backbone and compare it with its paths, each alone.

    This is the last word on a backbone that :func:`check_packable` has nothing against.

    Args:
        model: The model, on its device; it is put into eval mode for the check.
        tolerance: Allowed difference relative to the largest hidden value; generous enough for bfloat16.

    Raises:
        ConfigError: If the two differ, naming ``encoding.mode: path``.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    ids = torch.arange(3, 12, device=device)
    tree = PackedRows(
        input_ids=ids.unsqueeze(0),
        position_ids=torch.tensor([[0, 1, 2, 3, 4, 5, 3, 4, 5]], device=device),
        readout_row=torch.zeros(2, dtype=torch.long, device=device),
        readout_column=torch.tensor([5, 8], device=device),
        subtree_end=torch.tensor([[9, 9, 9, 6, 6, 6, 9, 9, 9]], device=device),
        spans=(NodeSpan(0, 3, -1), NodeSpan(3, 6, 0), NodeSpan(6, 9, 0)),
    )
    paths = PackedRows(
        input_ids=torch.stack([ids[:6], torch.cat([ids[:3], ids[6:]])]),
        position_ids=torch.arange(6, device=device).expand(2, 6),
        readout_row=torch.arange(2, device=device),
        readout_column=torch.full((2,), 5, device=device),
    )
    alone = model(paths).hidden
    difference = (model(tree).hidden - alone).abs().max() / alone.abs().max()
    model.train(training)
    if not difference <= tolerance:
        raise ConfigError(
            f"hidden states of this backbone differ by {difference:.1e} between a tree and its paths", hint=PATH_MODE
        )


ADAPTER = "adapter"

BACKBONE = "backbone"

TOKENIZER = "tokenizer"


def save_flow_model(
    model: FlowModel,
    metadata: FlowMetadata,
    folder: Path,
    *,
    tokenizer: Any = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint in place of the last one; a folder that is there is whole.

    Args:
        model: The model.
        metadata: What to know of it.
        folder: Where to; replaced as a whole.
        tokenizer: The backbone's; None leaves it out.
        state: The model's tensors by name where they had to be gathered from several devices; None takes its own.
    """
    tensors = model.state_dict() if state is None else state
    backbone, is_adapted = model.backbone, isinstance(model.backbone, PeftModel)
    inner = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith("backbone.") and (".lora_" in name or not is_adapted)
    }
    heads = {name: tensors[name].detach().cpu().contiguous() for name in heads_state(model)}
    plain = {name.removeprefix("backbone."): tensor for name, tensor in inner.items()}
    with fresh_folder(folder) as fresh:
        if isinstance(backbone, PeftModel):
            backbone.save_pretrained(str(fresh / ADAPTER), state_dict=plain, save_embedding_layers=False)
            tidy_adapter(fresh / ADAPTER, metadata.backbone)
        else:
            base_decoder(backbone).save_pretrained(str(fresh / BACKBONE), state_dict=plain)
        save_file(heads, str(fresh / HEADS))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(fresh / TOKENIZER))
        check_stored({**inner, **heads}, fresh)
        write_atomic(fresh / METADATA, dump_line(metadata) + "\n")


def load_heads(model: FlowModel, folder: Path) -> None:
    """Load the heads of a checkpoint into a model.

    Raises:
        CheckpointError: If they do not fit the model.
    """
    stored = load_tensors(folder / HEADS)
    wanted = heads_state(model)
    if {name: tensor.shape for name, tensor in stored.items()} != {name: t.shape for name, t in wanted.items()}:
        raise CheckpointError(f"the heads in {folder} do not fit this backbone and taxonomy")
    for prefix, head in _heads(model).items():
        head.load_state_dict({name.removeprefix(prefix): t for name, t in stored.items() if name.startswith(prefix)})


def heads_state(model: FlowModel) -> dict[str, Tensor]:
    """Return the heads' tensors by name."""
    return {
        prefix + name: tensor.detach().contiguous()
        for prefix, head in _heads(model).items()
        for name, tensor in head.state_dict().items()
    }


def _heads(model: FlowModel) -> dict[str, nn.Module]:
    return {"strategy_head.": model.strategy_head, "flow_head.": model.flow_head}


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
