"""Attention over a tree-packed row that computes only what the tree mask allows.

A dense mask makes every query look at every key of the row and throws most of it away: about a quarter of the causal
triangle is live in a 60-simulation tree. Here the row is cut into runs, a run being a node followed by first children
(they stand next to each other in preorder); its queries see the keys of the run and of its ancestors, nothing else.
The result is the same sum over the same keys, differentiable by the framework itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv

from esckit.models.packed_rows import NodeSpan

TREE_ATTENTION = "esckit_tree"
MAX_RUN_TOKENS = 200
"""A run is cut above this length, so that little of a long one's upper triangle is computed in vain."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive nodes of a row whose queries are computed together.

    Attributes:
        ancestors: Indices of the nodes above the first one, root first.
        first: Index of its first node.
        last: Index after its last node.
        mask: Additive mask (queries, keys).
    """

    ancestors: tuple[int, ...]
    first: int
    last: int
    mask: Tensor


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """How a packed row is cut: tokens per node, tokens per run, and the runs."""

    node_sizes: list[int]
    run_sizes: list[int]
    runs: tuple[Run, ...]


def tree_layout(spans: Sequence[NodeSpan], *, dtype: torch.dtype, device: torch.device) -> TreeLayout:
    """Return the layout of a row.

    Args:
        spans: The nodes in row order; they fill the row without gaps.
        dtype: Compute type of the attention.
        device: Where the masks are needed.
    """
    sizes = [span.end - span.start for span in spans]
    ancestors: list[tuple[int, ...]] = []
    for span in spans:
        ancestors.append(() if span.parent < 0 else (*ancestors[span.parent], span.parent))
    heads = [0]
    for index, span in enumerate(spans[1:], start=1):
        if span.parent != index - 1 or span.end - spans[heads[-1]].start > MAX_RUN_TOKENS:
            heads.append(index)
    runs = []
    for first, last in zip(heads, [*heads[1:], len(spans)], strict=True):
        n_queries = sum(sizes[first:last])
        n_above = sum(sizes[node] for node in ancestors[first])
        mask = torch.full((n_queries, n_queries), torch.finfo(dtype).min, dtype=dtype, device=device).triu(1)
        runs.append(Run(ancestors[first], first, last, F.pad(mask, (n_above, 0))))
    return TreeLayout(sizes, [run.mask.shape[0] for run in runs], tuple(runs))


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: TreeLayout,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend along the paths of a tree; an attention function of transformers' ``AttentionInterface``.

    Args:
        module: The attention layer.
        query: (B, H, L, D).
        key: (B, G, L, D), G key-value heads.
        value: (B, G, L, D).
        attention_mask: Unused; the layout says what is allowed.
        layout: How the rows are cut; all rows of a batch alike.
        **kwargs: ``scaling``, ``dropout`` and, in soft-capped models, ``softcap``.

    Returns:
        The outputs (B, L, H, D), and no weights.
    """
    n_groups = query.shape[1] // key.shape[1]
    keys = repeat_kv(key, n_groups).split(layout.node_sizes, dim=2)
    values = repeat_kv(value, n_groups).split(layout.node_sizes, dim=2)
    outputs = []
    for run, queries in zip(layout.runs, query.split(layout.run_sizes, dim=2), strict=True):
        nodes = (*run.ancestors, *range(run.first, run.last))
        run_keys = torch.cat([keys[node] for node in nodes], dim=2)
        run_values = torch.cat([values[node] for node in nodes], dim=2)
        outputs.append(_attend(queries, run_keys, run_values, run.mask, **kwargs))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: Any,
) -> Tensor:
    """Return attention outputs (B, H, queries, D).

    On a CPU the plain formula is faster than the fused kernel, whose backward pass is slow there, bfloat16 above all;
    runs are short enough for its memory. Soft-capped scores have no fused kernel. Scores stay in float32, as in fused
    kernels: rounded to bfloat16 they would keep eight bits.
    """
    if softcap is None and query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    with torch.autocast(query.device.type, enabled=False):
        scores = (query.float() * scaling) @ key.float().transpose(2, 3)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = (scores + mask).softmax(dim=-1)
    return F.dropout(weights.to(value.dtype), p=dropout) @ value


def use_attention(backbone: PreTrainedModel, name: str) -> None:
    """Switch a backbone to an attention implementation: transformers' own names, or ``esckit_tree``."""
    AttentionInterface.register(TREE_ATTENTION, tree_attention)
    backbone.set_attn_implementation(name)
