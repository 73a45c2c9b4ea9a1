r"""Rows of tokens for one forward pass, and the mask that lets several prefixes share them.

In tree packing all nodes of a tree stand in one row in depth-first preorder and every token is read once. A token's
position counts along its path, not along the row. Preorder makes subtrees contiguous, so

    query q may attend to key k  ⇔  k ≤ q and q < subtree_end[k]

which says "k's node is q's node or an ancestor, and causal inside the node". A token's output depends on its id, its
position and the allowed keys, and these are those of its prefix alone: by induction over the layers the hidden states
are those of encoding every prefix by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


class NodeSpan(NamedTuple):
    """One node's tokens in a packed row: [start, end), and the index of its parent's span, -1 at a root."""

    start: int
    end: int
    parent: int


@dataclass(frozen=True, slots=True)
class PackedRows:
    """B rows of L tokens and the S states that are read from them.

    Attributes:
        input_ids: (B, L).
        position_ids: (B, L), counted along paths.
        readout_row: Row of each state's last token (S,).
        readout_column: Its column (S,).
        subtree_end: (B, L); None for plain causal rows, padded on the right.
        spans: The nodes of the row in order, for B = 1 with ``subtree_end``; None otherwise.
        target_row: Row of each token whose successor is to be predicted (N,); None without a response term.
        target_column: Its column (N,).
        target_ids: The successor (N,).
    """

    input_ids: Tensor
    position_ids: Tensor
    readout_row: Tensor
    readout_column: Tensor
    subtree_end: Tensor | None = None
    spans: tuple[NodeSpan, ...] | None = None
    target_row: Tensor | None = None
    target_column: Tensor | None = None
    target_ids: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the rows on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    @property
    def n_tokens(self) -> int:
        """Tokens read, padding included."""
        return self.input_ids.numel()


def allowed(subtree_end: Tensor) -> Tensor:
    """Return which keys each query may attend to, boolean (B, L, L), from ``subtree_end`` (B, L)."""
    index = torch.arange(subtree_end.shape[1], device=subtree_end.device)
    return (index <= index.unsqueeze(1)) & (index.unsqueeze(1) < subtree_end.unsqueeze(1))


def additive_mask(subtree_end: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask (B, 1, L, L) to add to attention scores: 0 or the least finite number.

    Never boolean: some attention implementations add a boolean mask as 0 and 1 and are then silently wrong.
    """
    mask = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=subtree_end.device)
    return torch.where(allowed(subtree_end), mask.new_zeros(()), mask).unsqueeze(1)
