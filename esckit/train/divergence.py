"""How far the policy has moved from the policy that made the data: two forms of the KL term (arXiv 2602.08826)."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_taken(log_pi: Tensor, log_ref: Tensor, mask: Tensor) -> Tensor:
    """Return max(0, mean over decisions of log π − log π_ref of the strategies taken) of each path (B,).

    Args:
        log_pi: Of the strategies taken (B, T).
        log_ref: The same under the reference (B, T).
        mask: Real decisions, boolean (B, T); entries outside count for nothing.
    """
    gap = torch.where(mask, log_pi, 0.0) - torch.where(mask, log_ref, 0.0)
    return (gap.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).clamp(min=0.0)


def kl_full(log_pi: Tensor, log_ref: Tensor) -> Tensor:
    """Return Σ_a π (log π − log π_ref) of each state (S,) from two (S, A): exact and never negative."""
    return (log_pi.exp() * (log_pi - log_ref)).sum(dim=-1)
