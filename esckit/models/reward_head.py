"""The small float32 head that makes a reward model of a backbone, and where it reads (RLFF-ESC, arXiv 2508.12935)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from esckit.models.heads import Float32Linear

Pooling = Literal["last", "mean"]


class RewardHead(nn.Module):
    """A linear layer to two logits, or to one scalar for rankers; always in float32.

    Args:
        hidden_size: Width of the backbone's states.
        n_outputs: 2 for a classifier, 1 for a ranker.
    """

    def __init__(self, hidden_size: int, n_outputs: int = 2) -> None:
        super().__init__()
        self.out = Float32Linear(hidden_size, n_outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return logits (B, n_outputs) of pooled states (B, d)."""
        out: Tensor = self.out(pooled)
        return out


def positions(attention_mask: Tensor) -> Tensor:
    """Return each token's position in its own sequence (B, T); padding on either side counts for nothing."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def last_index(attention_mask: Tensor) -> Tensor:
    """Return the column of the last real token of each row (B,), whichever side is padded."""
    columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (columns * attention_mask.long()).argmax(dim=1)


def pool(hidden: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Return one float32 state per row (B, d): that of the last real token, or the mean over real tokens.

    Args:
        hidden: States (B, T, d).
        attention_mask: 1 for real tokens (B, T), padding on either side.
        pooling: Which of the two.
    """
    if pooling == "last":
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return hidden[rows, last_index(attention_mask)].float()
    mask = attention_mask.unsqueeze(-1).float()
    # Where, not times: what stands at padding may be NaN.
    kept = torch.where(mask > 0, hidden.float(), 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
