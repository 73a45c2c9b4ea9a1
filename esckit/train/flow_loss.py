"""The losses of AFlow (arXiv 2602.08826) over one forward pass.

L = L_flow + w_rank · L_rank + β · KL + w_resp · L_resp. Every term is a sum over the pass divided by the denominators
of the whole update, so the passes of an update add up to its loss.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from esckit.models.flow_model import FlowOutputs
from esckit.train.divergence import kl_full, kl_taken
from esckit.train.flow_batch import FlowBatch, FlowSettings
from esckit.train.objectives import objective, path_terms, policy_value, potentials, without_terminal
from esckit.train.ranking import RankPairs, decision_losses, hinge, preference, rank_pairs, state_losses


class FlowPaths(NamedTuple):
    """What objectives see: log_pf (P, T), log_flow (P, T+1) and mask (P, T)."""

    log_pf: Tensor
    log_flow: Tensor
    mask: Tensor


def flow_loss(outputs: FlowOutputs, batch: FlowBatch, settings: FlowSettings) -> dict[str, Tensor]:
    """Return the terms of the loss and their weighted sum, each divided by the update's denominator.

    Returns:
        Scalars ``loss``, ``flow``, ``rank``, ``kl`` and ``resp``. With ``dpo`` or ``bc`` the term ``flow`` is theirs.
    """
    nothing = outputs.log_pi.new_zeros(())
    pairs = _pairs(batch, settings)
    terms = {
        "flow": main_term(outputs, batch, settings, pairs),
        "rank": _rank_term(outputs, batch, settings, pairs) if settings.rank_weight > 0 else nothing,
        "kl": _kl_term(outputs, batch, settings) if _has_kl(settings) else nothing,
        "resp": _response_term(outputs, batch) if settings.response_weight > 0 else nothing,
    }
    # Heads without any term still take part in the graph: data-parallel training waits for their gradients.
    touch = 0.0 * (outputs.log_pi.sum() + outputs.log_value.sum())
    loss = (
        terms["flow"]
        + settings.rank_weight * terms["rank"]
        + settings.kl_weight * terms["kl"]
        + settings.response_weight * terms["resp"]
        + touch
    )
    return {"loss": loss, **terms}


def gather_paths(outputs: FlowOutputs, batch: FlowBatch, settings: FlowSettings) -> FlowPaths:
    """Return the paths of a pass: head outputs, computed once per state, gathered along them.

    log F(s_t) = log max(ε, Q_hat(s_t)) + log V(s_t) before the leaf; at the leaf the search value alone.
    """
    log_pf = outputs.log_pi[batch.state, batch.action]
    if settings.state_value == "taken":
        log_value = outputs.log_value[batch.state, batch.action]
    else:
        log_value = policy_value(outputs.log_pi, outputs.log_value)[batch.state]
    log_value = F.pad(torch.where(batch.mask, log_value, 0.0), (0, 1))
    return FlowPaths(log_pf, batch.value.clamp(min=settings.flow_eps).log() + log_value, batch.mask)


def main_term(outputs: FlowOutputs, batch: FlowBatch, settings: FlowSettings, pairs: RankPairs) -> Tensor:
    """Return the flow loss, or what stands in its place."""
    if settings.objective == "bc":
        return _cloning_sum(outputs, batch, settings) / batch.denominators.flow
    if settings.objective == "dpo":
        losses = preference(outputs.log_pi, log_reference(batch, settings))
        return _by_decision(losses, pairs, batch, settings) / batch.denominators.flow
    paths = gather_paths(outputs, batch, settings)
    if not settings.terminal_boundary:
        paths = FlowPaths(*without_terminal(*paths))
    if settings.weighting == "paths":
        per_path = objective(settings.objective, subtb_lambda=settings.subtb_lambda)
        return per_path(*paths).sum() / batch.denominators.flow
    first = batch.first_node if settings.state_value == "policy_mean" else batch.first_edge
    squares, _ = path_terms(settings.objective, subtb_lambda=settings.subtb_lambda)(potentials(*paths), paths.mask)
    return (squares * first[:, 1 : squares.shape[1] + 1]).sum() / batch.denominators.flow


def _cloning_sum(outputs: FlowOutputs, batch: FlowBatch, settings: FlowSettings) -> Tensor:
    """Return the summed −log π of the strategies taken, weighted by class if asked for."""
    losses = torch.where(batch.mask, -outputs.log_pi[batch.state, batch.action], 0.0)
    if settings.class_weights is not None:
        losses = losses * losses.new_tensor(settings.class_weights)[batch.action]
    return losses.sum()


def log_reference(batch: FlowBatch, settings: FlowSettings) -> Tensor:
    """Return log π_ref of every state (S, A): the recorded prior (it made the data) or uniform."""
    if settings.kl_reference == "uniform":
        return torch.full_like(batch.prior, 1.0 / batch.prior.shape[1]).log()
    return batch.prior.log()


def _pairs(batch: FlowBatch, settings: FlowSettings) -> RankPairs:
    return rank_pairs(
        batch.child_value,
        batch.visited,
        batch.prior,
        batch.root_value,
        negatives=settings.rank_negatives,
        min_gap=settings.rank_min_gap,
    )


def _rank_term(outputs: FlowOutputs, batch: FlowBatch, settings: FlowSettings, pairs: RankPairs) -> Tensor:
    losses = hinge(outputs.log_value.exp(), margin=settings.rank_margin)
    return _by_decision(losses, pairs, batch, settings) / batch.denominators.rank


def _by_decision(losses: Tensor, pairs: RankPairs, batch: FlowBatch, settings: FlowSettings) -> Tensor:
    """Return the sum over paths of their mean decision, or over the update's distinct states."""
    if settings.weighting == "unique":
        return torch.where(batch.first_state, state_losses(losses, pairs, batch.visited), 0.0).sum()
    of_decisions = torch.where(batch.mask, decision_losses(losses, pairs, batch.state, batch.action), 0.0)
    return (of_decisions.sum(dim=1) / batch.mask.sum(dim=1).clamp(min=1)).sum()


def _has_kl(settings: FlowSettings) -> bool:
    return settings.kl_weight > 0 and settings.kl_reference != "none"


def _kl_term(outputs: FlowOutputs, batch: FlowBatch, settings: FlowSettings) -> Tensor:
    log_ref = log_reference(batch, settings)
    if settings.kl_form == "taken":
        taken = kl_taken(outputs.log_pi[batch.state, batch.action], log_ref[batch.state, batch.action], batch.mask)
        return taken.sum() / batch.denominators.kl
    of_states = kl_full(outputs.log_pi, log_ref)
    if settings.weighting == "unique":
        return torch.where(batch.first_state, of_states, 0.0).sum() / batch.denominators.kl
    of_decisions = torch.where(batch.mask, of_states[batch.state], 0.0)
    return (of_decisions.sum(dim=1) / batch.mask.sum(dim=1).clamp(min=1)).sum() / batch.denominators.kl


def _response_term(outputs: FlowOutputs, batch: FlowBatch) -> Tensor:
    """Return the weighted negative log-likelihood of the supporter's words."""
    if outputs.target_log_p is None:
        raise ValueError("the rows hold no response targets")
    return -(outputs.target_log_p * batch.target_weight).sum() / batch.denominators.response
