"""Which strategies should rank above which at a state, and the losses that say so.

The learned values V(s,·) must order strategies as the search did ("process supervision", arXiv 2602.08826). A pair
table is a boolean (S, A, A): entry [s, a, b] says that strategy ``a`` should beat strategy ``b`` at state s. Few states
have two visited children, so pairs may also come from the recorded prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Negatives = Literal["visited", "low_prior", "visited_then_low_prior"]

N_LOW_PRIOR = 3
"""How many strategies of lowest prior serve as losers."""


@dataclass(frozen=True, slots=True)
class RankPairs:
    """The pairs of S states.

    Attributes:
        by_state: Pairs that hold whatever strategy was taken (S, A, A).
        by_winner: Pairs of the strategy taken, used at states without any of the former (S, A, A).
    """

    by_state: Tensor
    by_winner: Tensor


def visited_pairs(child_value: Tensor, visited: Tensor, *, min_gap: float) -> Tensor:
    """Return the pairs (S, A, A) of visited strategies whose search values differ by more than ``min_gap``.

    Args:
        child_value: Q(s, a), shape (S, A); arbitrary where unvisited.
        visited: Which strategies the search tried, boolean (S, A).
        min_gap: Least difference, at least 0.
    """
    value = torch.where(visited, child_value, 0.0)
    better = value.unsqueeze(2) - value.unsqueeze(1) > min_gap
    return better & visited.unsqueeze(2) & visited.unsqueeze(1)


def low_prior_pairs(prior: Tensor, allowed: Tensor) -> Tensor:
    """Return pairs (S, A, A) of every winner with the allowed strategies of lowest prior, at most three.

    Args:
        prior: Recorded prior (S, A); equal ones count in taxonomy order.
        allowed: Which strategies may lose, boolean (S, A); the winner itself never does.
    """
    n_strategies = prior.shape[1]
    others = ~torch.eye(n_strategies, dtype=torch.bool, device=prior.device)
    may_lose = allowed.unsqueeze(1) & others
    keys = torch.where(may_lose, prior.unsqueeze(1), torch.inf)
    rank = keys.argsort(dim=2, stable=True).argsort(dim=2)
    return may_lose & (rank < N_LOW_PRIOR)


def rank_pairs(
    child_value: Tensor, visited: Tensor, prior: Tensor, root_value: Tensor, *, negatives: Negatives, min_gap: float
) -> RankPairs:
    """Return the pairs of every state.

    Args:
        child_value: Q(s, a), shape (S, A).
        visited: Boolean (S, A).
        prior: Recorded prior (S, A).
        root_value: Search value of the root of each state's tree (S,).
        negatives: ``visited``: visited pairs only; ``low_prior``: the strategy taken against the three of lowest prior;
            ``visited_then_low_prior``: the former where there are any, elsewhere the latter among unvisited strategies,
            and only if the strategy taken is at least as good as the root, so that no poor one is held up as a winner.
        min_gap: Least difference of search values for a visited pair.
    """
    none = torch.zeros_like(visited).unsqueeze(2).expand(-1, -1, visited.shape[1])
    if negatives == "low_prior":
        return RankPairs(none, low_prior_pairs(prior, torch.ones_like(visited)))
    by_state = visited_pairs(child_value, visited, min_gap=min_gap)
    if negatives == "visited":
        return RankPairs(by_state, none)
    good = visited & (child_value >= root_value.unsqueeze(1))
    return RankPairs(by_state, low_prior_pairs(prior, ~visited) & good.unsqueeze(2))


def hinge(values: Tensor, *, margin: float) -> Tensor:
    """Return max(0, margin − (V(s,a) − V(s,b))) for all ordered pairs, (S, A) → (S, A, A)."""
    return (margin - (values.unsqueeze(2) - values.unsqueeze(1))).clamp(min=0.0)


def preference(log_pi: Tensor, log_ref: Tensor) -> Tensor:
    """Return −log σ of the difference of log-ratios for all ordered pairs, (S, A) → (S, A, A): DPO at scale 1."""
    ratio = log_pi - log_ref
    return F.softplus(ratio.unsqueeze(1) - ratio.unsqueeze(2))


def decision_losses(losses: Tensor, pairs: RankPairs, state: Tensor, action: Tensor) -> Tensor:
    """Return the mean pair loss of each decision, 0 where it has no pair; shape of ``state``.

    Args:
        losses: Loss of every ordered pair (S, A, A).
        pairs: Which pairs count.
        state: State index of each decision, any shape.
        action: Strategy taken in it, the same shape.
    """
    of_state, of_winner = _state_means(losses, pairs), _winner_means(losses, pairs)
    has_pairs = pairs.by_state.any(dim=(1, 2))
    return torch.where(has_pairs[state], of_state[state], of_winner[state, action])


def state_losses(losses: Tensor, pairs: RankPairs, visited: Tensor) -> Tensor:
    """Return the mean pair loss of each state (S,), every visited strategy of a state being a winner in turn."""
    of_winner = torch.where(visited, _winner_means(losses, pairs), 0.0).sum(dim=1) / visited.sum(dim=1).clamp(min=1)
    return torch.where(pairs.by_state.any(dim=(1, 2)), _state_means(losses, pairs), of_winner)


def _state_means(losses: Tensor, pairs: RankPairs) -> Tensor:
    count = pairs.by_state.sum(dim=(1, 2)).clamp(min=1)
    return torch.where(pairs.by_state, losses, 0.0).sum(dim=(1, 2)) / count


def _winner_means(losses: Tensor, pairs: RankPairs) -> Tensor:
    return torch.where(pairs.by_winner, losses, 0.0).sum(dim=2) / pairs.by_winner.sum(dim=2).clamp(min=1)
