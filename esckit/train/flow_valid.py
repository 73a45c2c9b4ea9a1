"""Validation of a flow model on trees from seed dialogues that training never saw (arXiv 2602.08826)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from esckit.models.flow_model import FlowOutputs
from esckit.train.flow import TERMS, Metrics
from esckit.train.flow_batch import FlowBatch, FlowSettings
from esckit.train.flow_loss import flow_loss

SELECTS = "valid/loss"


class FlowValidation:
    """The terms of the loss on all valid trees at once, and how often the policy takes the best known strategy.

    Args:
        passes: Forward passes of this process over all valid trees, as one update.
        settings: The loss; ``valid/loss`` is its flow and ranking terms, without the pull to the reference.
        device: Where to compute.
        reduce: Sums a tensor over processes.
    """

    def __init__(
        self,
        passes: Sequence[FlowBatch],
        settings: FlowSettings,
        *,
        device: torch.device,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        self._passes, self._settings, self._device, self._reduce = passes, settings, device, reduce

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> Metrics:
        """Return the values of a model in eval mode, given as the Trainer wraps it."""
        sums = torch.zeros(len(TERMS) + 4, device=self._device)
        for batch in self._passes:
            here = batch.to(self._device)
            outputs = model(here.rows)
            terms = flow_loss(outputs, here, self._settings)
            sums += torch.stack([*(terms[name].float() for name in TERMS), *best_actions(outputs, here)])
        *found, n_right, n_compared, entropy, n_states = self._reduce(sums).tolist()
        values = dict(zip(TERMS, found, strict=True))
        metrics = {f"valid/{name}": values[name] for name in ("flow", "rank", "kl")}
        metrics[SELECTS] = values["flow"] + self._settings.rank_weight * values["rank"]
        metrics["valid/policy_entropy"] = entropy / n_states
        if n_compared:
            metrics["valid/best_action"] = n_right / n_compared
        return metrics


def best_actions(outputs: FlowOutputs, batch: FlowBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return how often the policy decides for a child of highest search value, out of how many states, and its entropy.

    The decision is argmax(log π + V) over all strategies; states with at least two visited children are compared. The
    last two values are the summed entropy of π in nats and the number of states. Every state of the update counts once.
    """
    first = batch.first_state
    compared = first & (batch.visited.sum(dim=1) >= 2)
    chosen = (outputs.log_pi + outputs.log_value.exp()).argmax(dim=1, keepdim=True)
    known = torch.where(batch.visited, batch.child_value, -torch.inf)
    right = known.gather(1, chosen).squeeze(1) == known.max(dim=1).values
    entropy = -(outputs.log_pi.exp() * outputs.log_pi).sum(dim=1)
    return (
        (right & compared).sum().float(),
        compared.sum().float(),
        torch.where(first, entropy, 0.0).sum(),
        first.sum().float(),
    )
