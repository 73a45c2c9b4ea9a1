"""What training watches beside its loss (arXiv 2602.08826): how sharp the policy is, and where its flows lie."""

from __future__ import annotations

import torch
from torch import Tensor

from esckit.models.flow_model import FlowOutputs
from esckit.train.flow_batch import FlowBatch, FlowSettings
from esckit.train.flow_loss import gather_paths


class _Monitored:
    """Sums over a pass, in order, and what they are divided by."""

    names = ("entropy", "states", "log_flow", "at_eps", "nodes", "tokens")

    def __len__(self) -> int:
        return len(self.names)

    def means(self, sums: Tensor) -> dict[str, float]:
        """Return the values by name from summed up passes."""
        entropy, states, log_flow, at_eps, nodes, tokens = sums.tolist()
        return {
            "train/policy_entropy": entropy / max(states, 1.0),
            "train/log_flow_mean": log_flow / max(nodes, 1.0),
            "train/share_at_eps": at_eps / max(nodes, 1.0),
            "train/tokens": tokens,
        }


MONITORED = _Monitored()


@torch.no_grad()
def monitor(outputs: FlowOutputs, batch: FlowBatch, settings: FlowSettings) -> Tensor:
    """Return one pass's sums, see :data:`MONITORED`: entropy of π in nats, log F of all nodes of all paths, tokens."""
    log_pi = outputs.log_pi
    if not batch.n_paths:
        return log_pi.new_zeros(len(MONITORED))
    paths = gather_paths(outputs, batch, settings)
    nodes = torch.cat([torch.ones_like(batch.mask[:, :1]), batch.mask], dim=1)
    return torch.stack(
        [
            -(log_pi.exp() * log_pi).sum(),
            log_pi.new_tensor(float(log_pi.shape[0])),
            torch.where(nodes, paths.log_flow, 0.0).sum(),
            (nodes & (batch.value <= settings.flow_eps)).sum().to(log_pi.dtype),
            nodes.sum().to(log_pi.dtype),
            log_pi.new_tensor(float(batch.rows.n_tokens)),
        ]
    )
