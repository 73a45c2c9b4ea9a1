"""Attention in which many rows read one copy of a shared prefix.

Keys and values of a prefix are held once, not once per row. All rows of a group ask it in a single matrix product, and
one softmax runs over prefix and own tokens together, so the result is that of ordinary attention on the whole sequence.
transformers hands the layout of a forward pass through to the attention function; the model code stays untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from esckit.models.kvcache import PrefixKV

ATTENTION = "esckit_shared_prefix"


@dataclass(frozen=True, slots=True)
class PrefixUse:
    """Rows of a batch that continue one prefix.

    Attributes:
        rows: Row indices (n,); None where it is every row of the batch.
        kv: The prefix's keys and values.
    """

    rows: Tensor | None
    kv: PrefixKV


@dataclass(frozen=True, slots=True)
class Layout:
    """What belongs to what in one forward pass.

    Attributes:
        query_pos: Position of each query token in its sequence, prefix included (B, T).
        key_pos: Position of each own key (B, S); -1 where there is no token.
        uses: Which rows continue which prefix.
        n_positions: Length of the longest sequence.
    """

    query_pos: Tensor
    key_pos: Tensor
    uses: tuple[PrefixUse, ...]
    n_positions: int

    def own_mask(self) -> Tensor | None:
        """Return which own keys a query may see, bool (B, 1, T, S); None where plain causal attention will do.

        A padding query sees the padding, because a softmax over nothing would spread NaN into the batch.
        """
        is_whole = not self.uses and self.query_pos is self.key_pos  # from position 0 on, nothing cached before
        if is_whole and bool((self.query_pos >= 0).all()):
            return None
        query, key = self.query_pos[:, :, None], self.key_pos[:, None, :]
        return (((key >= 0) & (key <= query)) | (query < 0))[:, None]


def use_shared_prefix_attention(model: Any) -> None:
    """Let a transformers model read shared prefixes; without a layout it attends as before."""
    AttentionInterface.register(ATTENTION, shared_prefix_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)


def shared_prefix_attention(  # noqa: PLR0913 - transformers fixes the signature
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend to the own keys and, where the layout names one, to the prefix of each row.

    Args:
        module: The attention module; its ``layer_idx`` picks the prefix's layer.
        query: (B, n_heads, T, D).
        key: Own keys (B, n_kv_heads, S, D).
        value: Own values (B, n_kv_heads, S, D).
        attention_mask: Own mask, bool (B, 1, T, S); None means causal.
        scaling: Factor on the scores; None means ``D ** -0.5``.
        softcap: Bound of the scores (Gemma 2), None for no bound.
        sliding_window: How far back this layer sees, None for all the way.
        layout: The batch's layout; None outside :class:`~esckit.models.decode.Engine`.
        kwargs: What else transformers passes.

    Returns:
        The attended values (B, T, n_heads, D), and None in place of weights.
    """
    windowed = layout is not None and sliding_window is not None and layout.n_positions > sliding_window
    uses = layout.uses if layout is not None else ()
    if not uses and not windowed and softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    n_rows, n_heads, n_queries, width = query.shape
    n_kv_heads, n_own = key.shape[1], key.shape[2]
    n_prefix = max((use.kv.length for use in uses), default=0)
    # (B, n_kv_heads, heads per kv head * T, D): the heads that share a key become rows of one product
    grouped = _precise(query.reshape(n_rows, n_kv_heads, -1, width))
    scores = _scores(grouped, key, uses, n_prefix, _layer(module)) * (scaling or width**-0.5)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    by_query = scores.view(n_rows, n_kv_heads, -1, n_queries, n_prefix + n_own)
    own_mask = attention_mask if attention_mask is not None else _causal(n_queries, n_own, query.device)
    by_query[..., n_prefix:].masked_fill_(~own_mask[:, :, None], -torch.inf)
    if windowed and layout is not None and sliding_window is not None:
        by_query.masked_fill_(_out_of_window(layout, n_prefix, sliding_window), -torch.inf)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(grouped.dtype)
    attended = _mix(weights, value, uses, n_prefix, _layer(module)).to(query.dtype)
    return attended.view(n_rows, n_heads, n_queries, width).transpose(1, 2).contiguous(), None


def _precise(part: Tensor) -> Tensor:
    """Return float32 on the processor, whose products in bfloat16 would round every score to eight bits.

    The fused kernels of torch keep scores in float32, too. On a GPU the copies would cost more than they give.
    """
    return part.float() if part.device.type == "cpu" else part


def _layer(module: nn.Module) -> int:
    """Return the layer's number, which transformers sets on each attention module."""
    return int(module.layer_idx)  # type: ignore[arg-type]


def _scores(grouped: Tensor, key: Tensor, uses: tuple[PrefixUse, ...], n_prefix: int, layer: int) -> Tensor:
    """Return raw scores (B, n_kv_heads, Q, n_prefix + S); -inf where a row has a shorter prefix or none."""
    own = grouped @ _precise(key).transpose(-1, -2)
    if not uses:
        return own
    if len(uses) == 1 and uses[0].rows is None:
        return torch.cat([_ask_prefix(grouped, uses[0].kv.keys[layer]), own], dim=-1)
    scores = own.new_full((*own.shape[:-1], n_prefix + own.shape[-1]), -torch.inf)
    scores[..., n_prefix:] = own
    for use in uses:
        scores[use.rows, :, :, : use.kv.length] = _ask_prefix(grouped[use.rows], use.kv.keys[layer])
    return scores


def _ask_prefix(grouped: Tensor, keys: Tensor) -> Tensor:
    """Multiply the queries (n, H, Q, D) of several rows with one prefix's keys (H, P, D) into (n, H, Q, P)."""
    n_rows, n_kv_heads, n_queries, width = grouped.shape
    flat = grouped.transpose(0, 1).reshape(n_kv_heads, n_rows * n_queries, width)
    return (flat @ _precise(keys).transpose(-1, -2)).view(n_kv_heads, n_rows, n_queries, -1).transpose(0, 1)


def _mix(weights: Tensor, value: Tensor, uses: tuple[PrefixUse, ...], n_prefix: int, layer: int) -> Tensor:
    """Return the weighted values (B, n_kv_heads, Q, D)."""
    mixed = weights[..., n_prefix:] @ _precise(value)
    for use in uses:
        share = weights[..., : use.kv.length] if use.rows is None else weights[use.rows, :, :, : use.kv.length]
        n_rows, n_kv_heads, n_queries, _ = share.shape
        flat = share.transpose(0, 1).reshape(n_kv_heads, n_rows * n_queries, use.kv.length)
        part = (flat @ _precise(use.kv.values[layer])).view(n_kv_heads, n_rows, n_queries, -1).transpose(0, 1)
        if use.rows is None:
            mixed = mixed + part
        else:
            mixed[use.rows] += part
    return mixed


def _causal(n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """Return the causal mask of queries that are the last tokens of the keys, bool (1, 1, T, S)."""
    query = torch.arange(n_keys - n_queries, n_keys, device=device)
    return (torch.arange(n_keys, device=device)[None, :] <= query[:, None])[None, None]


def _out_of_window(layout: Layout, n_prefix: int, window: int) -> Tensor:
    """Return which keys lie too far back, bool (B, 1, 1, T, n_prefix + S); padding queries see everything."""
    prefix = torch.arange(n_prefix, device=layout.key_pos.device).expand(layout.key_pos.shape[0], -1)
    key = torch.cat([prefix, layout.key_pos], dim=1)
    query = layout.query_pos[:, :, None]
    return ((query - key[:, None, :] >= window) & (query >= 0))[:, None, None]
