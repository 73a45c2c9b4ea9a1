"""From logits to the next token of each row, as pure tensor functions.

A row's draw depends on its own logits, its own settings and its own uniform number only, never on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esckit.types import Sampling

_CUT_WIDTHS = (256, 4096)
"""How many of the likeliest tokens are looked at before all are sorted."""


def uniforms(seed: int, n: int) -> Tensor:
    """Return the uniform numbers in [0, 1) of a call's first ``n`` tokens, float64 (n,), from its own generator."""
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Settings:
    """Decoding settings of a batch, one number per row.

    Attributes:
        temperature: float32 (B,); 0 is greedy.
        top_p: float64 (B,); 1 is no cut.
        top_k: int64 (B,); 0 is no cut.
        penalty: float32 (B,); 1 is none.
    """

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    penalty: Tensor

    @classmethod
    def of(cls, samplings: Sequence[Sampling], device: torch.device) -> Settings:
        """Collect the settings of several rows."""
        return cls(
            temperature=torch.tensor([s.temperature for s in samplings], dtype=torch.float32, device=device),
            top_p=torch.tensor([s.top_p for s in samplings], dtype=torch.float64, device=device),
            top_k=torch.tensor([s.top_k or 0 for s in samplings], dtype=torch.long, device=device),
            penalty=torch.tensor([s.repetition_penalty for s in samplings], dtype=torch.float32, device=device),
        )

    def rows(self, index: Tensor) -> Settings:
        """Return the settings of some rows."""
        return Settings(self.temperature[index], self.top_p[index], self.top_k[index], self.penalty[index])


def penalise(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Make tokens that the prompt or the reply already holds less likely (arXiv 1909.05858, equation 2, sign-safe).

    Args:
        logits: (B, V).
        seen: bool (B, V).
        penalty: (B,); positive logits are divided by it, negative ones multiplied.

    Returns:
        New logits (B, V).
    """
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits < 0, logits * factor, logits / factor), logits)


def draw(logits: Tensor, settings: Settings, uniform: Tensor) -> Tensor:
    """Choose the next token of each row.

    Temperature first, then the ``top_k`` likeliest, then the fewest of them whose share reaches ``top_p``.

    Args:
        logits: float32 (B, V), penalties applied.
        settings: Settings of the rows.
        uniform: float64 (B,) in [0, 1); a row's token is where the cumulative probability passes it.

    Returns:
        Token ids (B,).
    """
    chosen = logits.argmax(dim=-1)
    sampled = settings.temperature > 0
    if not bool(sampled.any()):
        return chosen
    cut = (settings.top_k > 0) | (settings.top_p < 1)
    for which, choose in ((sampled & ~cut, _draw_any), (sampled & cut, _draw_cut)):
        rows = which.nonzero().flatten()
        if len(rows):
            own = settings.rows(rows)
            chosen[rows] = choose(logits[rows] / own.temperature[:, None], own, uniform[rows])
    return chosen


def _draw_any(logits: Tensor, settings: Settings, uniform: Tensor) -> Tensor:
    """Draw from the whole vocabulary."""
    return _invert(torch.softmax(logits, dim=-1).double(), uniform)


def _draw_cut(logits: Tensor, settings: Settings, uniform: Tensor) -> Tensor:
    """Draw from the likeliest tokens, sorting no more of them than a row needs."""
    n_tokens = logits.shape[-1]
    log_total = torch.logsumexp(logits, dim=-1, keepdim=True)
    chosen = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)
    for width in (*(w for w in _CUT_WIDTHS if w < n_tokens), n_tokens):
        top, ids = logits[rows].topk(width, dim=-1)
        own = settings.rows(rows)
        p = (top - log_total[rows]).exp().double()
        enough = torch.where(own.top_k > 0, own.top_k <= width, p.sum(dim=-1) >= own.top_p) | (width == n_tokens)
        if bool(enough.any()):
            ready = enough.nonzero().flatten()
            kept = _keep_likeliest(p[ready], own.rows(ready))
            ranks = _invert(kept, uniform[rows[ready]])
            chosen[rows[ready]] = ids[ready].gather(1, ranks[:, None]).squeeze(1)
        rows = rows[~enough]
        if not len(rows):
            break
    return chosen


def _keep_likeliest(p: Tensor, settings: Settings) -> Tensor:
    """Zero what the cuts leave out; ``p`` (B, K) falls from left to right, the first of a row always stays."""
    rank = torch.arange(p.shape[-1], device=p.device)
    in_top_k = (settings.top_k[:, None] == 0) | (rank < settings.top_k[:, None])
    p = p * in_top_k
    # without top_k the share is of the whole distribution, with it of what top_k left
    total = torch.where(settings.top_k > 0, p.sum(dim=-1), torch.ones_like(settings.top_p))
    before = p.cumsum(dim=-1) - p
    return p * (before < (settings.top_p * total)[:, None])


def _invert(p: Tensor, uniform: Tensor) -> Tensor:
    """Return per row of ``p`` (B, K), not normalised, where its cumulative sum passes the uniform number."""
    cumulative = p.cumsum(dim=-1)
    target = (uniform * cumulative[:, -1])[:, None]
    index = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    # rounding may put the target at the very end, where only tokens of probability 0 are left
    last = (p > 0).long().mul(torch.arange(1, p.shape[-1] + 1, device=p.device)).argmax(dim=-1)
    return torch.minimum(index, last)
