"""The flow model of AFlow (arXiv 2602.08826): a backbone with a strategy head and a flow head.

One backbone and one adapter serve both heads. The model reads packed rows (:mod:`esckit.models.packed_rows`) and gives
log π and log V of every state in them. Not here: losses, and how checkpoints are stored
(:mod:`esckit.models.flow_checkpoint`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from esckit.errors import ConfigError
from esckit.models.heads import FlowHead, StrategyHead
from esckit.models.packable import PATH_MODE
from esckit.models.packed_rows import NodeSpan, PackedRows, additive_mask
from esckit.models.tree_attention import TREE_ATTENTION, tree_layout, use_attention

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


def base_decoder(backbone: nn.Module) -> PreTrainedModel:
    """Return the transformers decoder inside a backbone, with or without an adapter around it."""
    for module in backbone.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise ConfigError(f"{type(backbone).__name__} holds no transformers model")


def layer_classes(backbone: nn.Module) -> list[str]:
    """Return the class names of a backbone's layers."""
    return sorted(base_decoder(backbone)._no_split_modules or ())


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
