"""Losses of reward models as pure tensor functions (RLFF-ESC, arXiv 2508.12935; RRHF for the ranking ablation)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def classifier_loss(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of two logits.

    Args:
        logits: (B, 2).
        label: 0 or 1 (B,).
        weight: Weight of each class (2,); None weighs both 1. The mean is over inputs, not over weights: it must not
            hang on how inputs meet in batches.
    """
    losses = F.cross_entropy(logits, label, reduction="none")
    return (losses if weight is None else losses * weight[label]).mean()


def pairwise_loss(score: Tensor, pairs: Tensor, weight: Tensor) -> Tensor:
    """Return Σ weight · −log σ(s_better − s_worse).

    Args:
        score: s (B,).
        pairs: Indices (better, worse) (P, 2).
        weight: Of each pair (P,): 1 over its context's pairs and over the contexts of the batch.
    """
    return (weight * F.softplus(score[pairs[:, 1]] - score[pairs[:, 0]])).sum()


def rrhf_loss(score: Tensor, pairs: Tensor, best: Tensor, n_tokens: Tensor) -> Tensor:
    """Return Σ_{reward_i > reward_j} max(0, s_j − s_i) − Σ_t log p(token t of the best response), mean over contexts.

    Args:
        score: Mean token log-probability s of each response (B,).
        pairs: Indices (better, worse) (P, 2).
        best: Index of the best response of each context (C,).
        n_tokens: Tokens of each response (B,).
    """
    rank = (score[pairs[:, 1]] - score[pairs[:, 0]]).clamp(min=0.0).sum()
    likelihood = (score[best] * n_tokens[best]).sum()
    return (rank - likelihood) / len(best)
