"""Small float32 heads on a backbone, such as the two that make an AFlow policy (arXiv 2602.08826)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esckit.models.decoder import Float32Linear

_UNDERFLOW = -15.0


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
