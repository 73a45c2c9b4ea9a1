"""The flow model of AFlow (arXiv 2602.08826): a backbone, a strategy head, a flow head, and its checkpoints.

One backbone and one adapter serve both heads. The model reads packed rows (:mod:`esckit.models.packing`) and gives
log π and log V of every state in them. A model is built anew on a backbone (:func:`build_model`) or read from a
checkpoint of ``train-flow`` (:func:`load_flow_model`)::

    checkpoint/flow.json              metadata: taxonomy, text form, objective, inputs, round
    checkpoint/heads.safetensors      strategy head and flow head, float32
    checkpoint/adapter/ or backbone/  as peft or transformers write them (safetensors)
    checkpoint/tokenizer/             as transformers writes it

Not here: the losses (:mod:`esckit.flow.trainer`), and the metadata (:mod:`esckit.flow.text`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from esckit.config.training import Quantisation
from esckit.errors import CheckpointError, ConfigError
from esckit.flow.recipe import TrainFlowRecipe
from esckit.flow.text import HEADS, FlowMetadata, read_metadata
from esckit.models.backbones import resolve_backbone
from esckit.models.checkpoint import ADAPTER, BACKBONE, TOKENIZER, checkpoint_folder
from esckit.models.loading import (
    Float32Linear,
    base_decoder,
    check_whole,
    checkpoint_activations,
    layer_classes,
    load_adapter,
    load_base,
    load_causal,
    load_tensors,
    load_tokenizer,
    merge_adapter,
)
from esckit.models.packing import (
    FLEX_BLOCK,
    PATH_MODE,
    TREE_ATTENTION,
    NodeSpan,
    PackedRows,
    TreeRow,
    additive_mask,
    block_mask,
    check_packable,
    tree_layout,
    use_attention,
)
from esckit.training.checkpoint import adapter_config

Attention = Literal["sdpa", "eager", "flex", "tree", "flash_attention_2"]

_UNDERFLOW = -15.0

_HEADS = ("strategy_head.", "flow_head.")

_TRANSFORMERS_NAME = {"flex": "flex_attention", "tree": TREE_ATTENTION}


# ---------------------------------------------------------------- the heads


def log_softplus(x: Tensor) -> Tensor:
    """Return log(softplus(x)), elementwise; far below zero this is x itself, so that nothing underflows."""
    low = x < _UNDERFLOW
    # The clamp keeps the branch that is not taken finite: its gradient is multiplied by 0, and 0 · inf is NaN.
    return torch.where(low, x, F.softplus(x.clamp(min=_UNDERFLOW)).log())


class StrategyHead(nn.Module):
    """A linear layer to the strategies: log π(a|s), always in float32."""

    def __init__(self, hidden_size: int, n_strategies: int) -> None:
        super().__init__()
        self.out = Float32Linear(hidden_size, n_strategies)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return log π (S, A) of hidden states (S, d)."""
        return F.log_softmax(self.out(hidden), dim=-1)


class FlowHead(nn.Module):
    """Linear, GELU, linear, softplus: V(s,a) > 0, given as its logarithm, always in float32."""

    def __init__(self, hidden_size: int, n_strategies: int) -> None:
        super().__init__()
        self.inner = Float32Linear(hidden_size, hidden_size)
        self.out = Float32Linear(hidden_size, n_strategies)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return log V (S, A) of hidden states (S, d)."""
        return log_softplus(self.out(F.gelu(self.inner(hidden))))


LOGIT_ROWS = 256
"""Tokens whose logits over the vocabulary exist at once; 152,000 entries in float32 are 156 MB."""


class ResponseHead(nn.Module):
    """A backbone's projection to the vocabulary, for log-probabilities of given tokens.

    One call per forward pass, whatever the number of tokens: an engine that splits weights gathers them at each call,
    and processes do not have equally many tokens.

    Args:
        projection: The backbone's output layer; its weights are shared, not copied.
        softcap: ``final_logit_softcapping`` of the backbone (Gemma 2), None for no bound.
    """

    def __init__(self, projection: nn.Linear, *, softcap: float | None) -> None:
        super().__init__()
        self.weight, self.bias, self.softcap = projection.weight, projection.bias, softcap

    def forward(self, states: Tensor, ids: Tensor) -> Tensor:
        """Return log p of each token (N,) after its state (N, d); memory grows with :data:`LOGIT_ROWS`, not with N."""
        pieces = zip(states.split(LOGIT_ROWS), ids.split(LOGIT_ROWS), strict=True)
        # Logits are not kept for the backward pass, but computed again.
        return torch.cat([checkpoint(self._log_p, *piece, use_reentrant=False) for piece in pieces])

    def _log_p(self, states: Tensor, ids: Tensor) -> Tensor:
        logits = F.linear(states, self.weight, self.bias).float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return -F.cross_entropy(logits, ids, reduction="none")


# ---------------------------------------------------------------- the network


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
        attention: ``sdpa`` and ``eager`` take a dense mask, ``flex`` a block mask (CUDA), ``flash_attention_2`` (CUDA)
            none, ``tree`` computes only what the tree allows. Soft-capped scores (Gemma 2), which SDPA would silently
            leave uncapped, are ``eager``.
        lm_head: Projection to the vocabulary, for the response term; None goes without that term. It is frozen, but for
            weights that it shares with the backbone: tied embeddings are trained where the backbone's are.
    """

    def __init__(
        self,
        backbone: nn.Module,
        strategies: tuple[str, ...],
        *,
        attention: Attention,
        lm_head: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.strategies = strategies
        decoder = base_decoder(backbone)
        if attention == "sdpa" and decoder.config.to_dict().get("attn_logit_softcapping"):
            attention = "eager"
        self.attention = attention
        use_attention(decoder, _TRANSFORMERS_NAME.get(attention, attention))
        self.strategy_head = StrategyHead(decoder.config.hidden_size, len(strategies))
        self.flow_head = FlowHead(decoder.config.hidden_size, len(strategies))
        self._no_split_modules = layer_classes(backbone)  # what FSDP shards as one piece
        self.lm_head: ResponseHead | None = None
        if lm_head is not None:
            softcap = decoder.config.to_dict().get("final_logit_softcapping")
            self.lm_head = ResponseHead(lm_head, softcap=softcap)
            tied = {id(parameter) for parameter in backbone.parameters()}
            for parameter in self.lm_head.parameters():
                if id(parameter) not in tied:
                    parameter.requires_grad_(False)

    def forward(self, rows: PackedRows) -> FlowOutputs:
        """Read the rows and return what the heads say about their states."""
        if self.attention == "flex":
            rows = rows.padded(FLEX_BLOCK)
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
            return {"attention_mask": block_mask(rows.subtree_end)}
        return {"attention_mask": additive_mask(rows.subtree_end, dtype)}

    def _compute_dtype(self, rows: PackedRows) -> torch.dtype:
        """Return the type in which attention is computed: autocast's, or the backbone's own."""
        device = rows.input_ids.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return base_decoder(self.backbone).get_input_embeddings().weight.dtype

    def _target_log_p(self, hidden: Tensor, rows: PackedRows) -> Tensor | None:
        """Return the log-probability of each target token (N,); None without an LM head or in causal rows."""
        if self.lm_head is None or rows.target_row is None or rows.target_column is None or rows.target_ids is None:
            return None
        log_p: Tensor = self.lm_head(hidden[rows.target_row, rows.target_column], rows.target_ids)
        return log_p


@torch.no_grad()
def check_exact(model: nn.Module, *, node_tokens: int = 3, tolerance: float = 1e-2) -> None:
    """Run a small tree through the backbone and compare it with its paths, each alone.

    This is the last word on a backbone that :func:`check_packable` has nothing against.

    Args:
        model: The flow model, also as a trainer wraps it, on its device; it is put into eval mode for the check.
        node_tokens: Length of each of three nodes.
        tolerance: Allowed difference relative to the largest hidden value; generous enough for bfloat16.

    Raises:
        ConfigError: If the two differ, naming ``encoding.mode: path``.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    n = node_tokens
    ids = 3 + torch.arange(3 * n) % 97
    packed = TreeRow.of([(ids[:n].tolist(), -1), (ids[n : 2 * n].tolist(), 0), (ids[2 * n :].tolist(), 0)])
    ends = torch.tensor([2 * n - 1, 3 * n - 1])
    tree = PackedRows(
        input_ids=ids.unsqueeze(0),
        position_ids=torch.tensor([packed.positions]),
        readout_row=torch.zeros(2, dtype=torch.long),
        readout_column=ends,
        subtree_end=torch.tensor([packed.subtree_end()]),
        spans=packed.spans,
    ).to(device)
    paths = PackedRows(
        input_ids=torch.stack([ids[: 2 * n], torch.cat([ids[:n], ids[2 * n :]])]),
        position_ids=torch.arange(2 * n).expand(2, 2 * n),
        readout_row=torch.arange(2),
        readout_column=ends[:1].expand(2),
    ).to(device)
    alone = model(paths).hidden
    difference = (model(tree).hidden - alone).abs().max() / alone.abs().max()
    model.train(training)
    if not difference <= tolerance:
        raise ConfigError(
            f"hidden states of this backbone differ by {difference:.1e} between a tree and its paths", hint=PATH_MODE
        )


# ---------------------------------------------------------------- a model to train


def build_model(
    recipe: TrainFlowRecipe, strategies: tuple[str, ...], *, longest_path: int, dtype: torch.dtype = torch.float32
) -> FlowModel:
    """Return the model to train; every process draws the same from its seeded generators.

    It lies on the processor, with a quantised backbone on the current GPU if there is one.

    Args:
        recipe: The recipe.
        strategies: The taxonomy in order.
        longest_path: Tokens of the longest path.
        dtype: Number type of the backbone's weights where they stay frozen.

    Raises:
        ConfigError: If the backbone cannot be packed or adapted as asked for, or cannot be reached.
        CheckpointError: If ``model.init`` does not fit; an adapter keeps its own shape.
    """
    attention, with_lm_head = recipe.encoding.attention, recipe.response_weight > 0
    dtype = torch.float32 if recipe.model.trainable == "full" else dtype
    if recipe.model.init:
        init = Path(recipe.model.init)
        model = load_flow_model(
            init,
            attention=attention,
            dtype=dtype,
            quantisation=recipe.model.quantisation,
            strategies=strategies,
            with_lm_head=with_lm_head,
            trainable=True,
        ).model
    else:
        causal, _ = load_causal(
            resolve_backbone(recipe.model.backbone), dtype=dtype, quantisation=recipe.model.quantisation
        )
        backbone = causal.get_decoder()
        if recipe.model.trainable == "lora":
            backbone = get_peft_model(backbone, adapter_config(recipe.lora, backbone))
        lm_head = causal.get_output_embeddings() if with_lm_head else None
        model = FlowModel(backbone, strategies, attention=attention, lm_head=lm_head)
    decoder = base_decoder(model.backbone)
    model.to(decoder.device)
    if recipe.model.frozen_layers:
        _freeze_layers(decoder, recipe.model.frozen_layers)
    if recipe.encoding.mode == "tree":
        check_packable(decoder.config.to_dict(), longest_path=longest_path)
        if attention != "flex":  # which is checked on its GPU, when training begins
            check_exact(model)
    if recipe.model.gradient_checkpointing:
        checkpoint_activations(decoder)
    return model.train()


def _freeze_layers(decoder: Any, n_layers: int) -> None:
    """Keep the lowest layers of a backbone, and its embeddings, as they are."""
    layers = decoder.layers
    if n_layers > len(layers):
        raise ConfigError(f"model.frozen_layers: {n_layers}", expected=f"at most {len(layers)}, as many as there are")
    decoder.get_input_embeddings().requires_grad_(False)
    for layer in layers[:n_layers]:
        layer.requires_grad_(False)


# ---------------------------------------------------------------- checkpoints


def load_heads(model: FlowModel, folder: Path) -> None:
    """Load the heads of a checkpoint into a model.

    Raises:
        CheckpointError: If they do not fit the model.
    """
    stored = load_tensors(folder / HEADS)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if name.startswith(_HEADS)}
    if {name: tensor.shape for name, tensor in stored.items()} != wanted:
        raise CheckpointError(f"the heads in {folder} do not fit this backbone and taxonomy")
    model.load_state_dict(stored, strict=False)


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
    quantisation: Quantisation | None = None,
    strategies: tuple[str, ...] | None = None,
    with_lm_head: bool = False,
    trainable: bool = False,
) -> FlowCheckpoint:
    """Return the model of a checkpoint.

    Args:
        run: The checkpoint, or the run folder that holds it.
        attention: How packed rows are attended.
        dtype: Type of the backbone's weights.
        quantisation: How the backbone under an adapter is held; None holds it in ``dtype``.
        strategies: The taxonomy it is wanted for; None takes its own.
        with_lm_head: Keep the projection to the vocabulary, for the response term.
        trainable: Load it to be trained further; otherwise its adapter is merged into the backbone.

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
        decoder, tokenizer = load_base(part, dtype=dtype), load_tokenizer(folder / TOKENIZER)
    if with_lm_head or not full:
        source = resolve_backbone(metadata.backbone)
        causal, own_tokenizer = load_causal(source, dtype=dtype, quantisation=None if full else quantisation)
    if not full:
        decoder, tokenizer = load_adapter(causal.get_decoder(), part, trainable=trainable), own_tokenizer
        if not trainable:
            decoder = merge_adapter(decoder)
    lm_head = causal.get_output_embeddings() if with_lm_head else None
    if lm_head is not None and full and lm_head.weight is causal.get_input_embeddings().weight:
        lm_head.weight = decoder.get_input_embeddings().weight  # tied to the embeddings that were trained
    model = FlowModel(decoder, metadata.strategies, attention=attention, lm_head=lm_head)
    load_heads(model, folder)
    return FlowCheckpoint(model.train(trainable), tokenizer, metadata)
