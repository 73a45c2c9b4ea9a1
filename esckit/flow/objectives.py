"""The losses of AFlow (arXiv 2602.08826) as pure tensor functions: flow objectives, ranking, KL.

**Flow** (:func:`subtb`, :func:`tb`, :func:`db`). A path s_0, a_0, …, s_T has K = T + 1 nodes with log-flows and T
actions with log-probabilities. Prefixes of a dialogue form a tree: every state has one parent, so the backward policy
is 1 (``log_pb = 0``) and F(s_0) is the partition function. With φ_t = log F(s_t) − Σ_{i<t} log π(a_i|s_i) the residual
of the subpath from m to n is φ_n − φ_m. All objectives share ``(log_pf (B, T), log_flow (B, T+1), mask (B, T)) ->
(B,)``: one loss per path, no reduction. ``mask`` marks the real actions, which stand first; a path without any gives 0.
Entries outside the mask influence neither value nor gradient, whatever they hold.

**Ranking** ("process supervision"). The learned values V(s,·) must order strategies as the search did. A pair table is
a boolean (S, A, A): entry [s, a, b] says that strategy ``a`` should beat strategy ``b`` at state s. Few states have two
visited children, so pairs may also come from the recorded prior.

**KL**. How far the policy has moved from the policy that made the data, in two forms.

Not here: where flows come from, and how paths are weighted (:mod:`esckit.flow.trainer`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from esckit.errors import ConfigError
from esckit.flow.recipe import Negatives
from esckit.registry import load_function, own_code

# ---------------------------------------------------------------- flow


Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Returns the loss of each path (B,) from log_pf (B, T), log_flow (B, T+1) and mask (B, T)."""


def subtb(log_pf: Tensor, log_flow: Tensor, mask: Tensor, *, subtb_lambda: float = 1.0) -> Tensor:
    r"""Return the subpath loss Σ_{m<n} λ^{n−m}(φ_n − φ_m)² / Σ_{m<n} λ^{n−m} of each path (B,).

    With λ = 1 this is twice the unbiased variance of φ, ``2/(K−1) · Σ_t (φ_t − mean φ)²``, because
    Σ_{m<n}(φ_n − φ_m)² = K Σ_t (φ_t − mean φ)²; the centred form keeps float32 exact enough.
    """
    phi = potentials(log_pf, log_flow, mask)
    if subtb_lambda != 1.0:
        return _per_path(*subtb_terms(phi, mask, subtb_lambda=subtb_lambda))
    nodes = _nodes(mask)
    n_nodes = nodes.sum(dim=1)
    centred = torch.where(nodes, phi - (phi.sum(dim=1) / n_nodes).unsqueeze(1), 0.0)
    return 2.0 * centred.square().sum(dim=1) / (n_nodes - 1).clamp(min=1)


def tb(log_pf: Tensor, log_flow: Tensor, mask: Tensor) -> Tensor:
    """Return the trajectory balance loss (φ_{K−1} − φ_0)² of each path (B,), with log Z = log F(s_0)."""
    return _per_path(*tb_terms(potentials(log_pf, log_flow, mask), mask))


def db(log_pf: Tensor, log_flow: Tensor, mask: Tensor) -> Tensor:
    """Return the detailed balance loss of each path (B,): the mean of (φ_{t+1} − φ_t)²."""
    return _per_path(*db_terms(potentials(log_pf, log_flow, mask), mask))


def potentials(log_pf: Tensor, log_flow: Tensor, mask: Tensor) -> Tensor:
    """Return φ (B, T+1), constant after a path's last node."""
    log_pf = torch.where(mask, log_pf, 0.0)
    nodes = _nodes(mask)
    log_flow = torch.where(nodes, log_flow, 0.0)
    spent = F.pad(log_pf.cumsum(dim=1), (1, 0))
    return torch.where(nodes, log_flow - spent, 0.0)


def _nodes(mask: Tensor) -> Tensor:
    """Return which nodes are real (B, T+1); a path without any action still has its first node."""
    return F.pad(mask, (1, 0), value=True)


def without_terminal(log_pf: Tensor, log_flow: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Drop the last action and the last flow of every path, so that the leaf leaves the sum."""
    return log_pf[:, :-1], log_flow[:, :-1], mask[:, 1:]


PathTerms = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Returns, of φ (B, T+1) and mask (B, T), what each action's subpaths that end after it weigh: the summed weighted
squares of their residuals (B, T), and the summed weights (B, T)."""


def subtb_terms(phi: Tensor, mask: Tensor, *, subtb_lambda: float) -> tuple[Tensor, Tensor]:
    r"""Return Σ_m λ^{n−m}(φ_n − φ_m)² and Σ_m λ^{n−m} for every n ≥ 1, each (B, T).

    W, c and S are total weight, weighted mean and weighted squared deviation of φ_0 … φ_{n−1} under weights
    λ^{n−m}. A new point of weight 1 updates them by the usual rule, and one more factor λ on all weights scales W and
    S and leaves c. Deviations from the weighted mean cancel, so the sum over m is S + W (φ_n − c)²: O(K) in all.
    """
    weight = 0.0
    centre = spread = torch.zeros_like(phi[:, 0])
    sums: list[Tensor] = []
    weights: list[float] = []
    for n in range(1, phi.shape[1]):
        deviation = phi[:, n - 1] - centre
        centre = centre + deviation / (weight + 1.0)
        spread = subtb_lambda * (spread + deviation.square() * (weight / (weight + 1.0)))
        weight = subtb_lambda * (weight + 1.0)
        sums.append(spread + weight * (phi[:, n] - centre).square())
        weights.append(weight)
    if not sums:
        return phi[:, 1:], phi[:, 1:]
    total = torch.stack(sums, dim=1)
    return torch.where(mask, total, 0.0), mask * phi.new_tensor(weights)


def tb_terms(phi: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return (φ_n − φ_0)² and 1 where n is a path's last node, 0 elsewhere, each (B, T): trajectory balance."""
    last = mask & ~F.pad(mask[:, 1:], (0, min(1, mask.shape[1])))
    return torch.where(last, (phi[:, 1:] - phi[:, :1]).square(), 0.0), last.to(phi.dtype)


def db_terms(phi: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return (φ_n − φ_{n−1})² and 1 for every n ≥ 1, each (B, T): detailed balance, single steps only."""
    return torch.where(mask, (phi[:, 1:] - phi[:, :-1]).square(), 0.0), mask.to(phi.dtype)


def _per_path(sums: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean square of each path (B,), 0 where it has no subpath."""
    total = weights.sum(dim=1)
    return sums.sum(dim=1) / torch.where(total > 0, total, 1.0)


def objective(name: str, *, subtb_lambda: float) -> Objective:
    """Return the objective of a name, or a user's own (``module:attr``); λ enters only ``subtb``.

    Raises:
        ConfigError: If the user's own does not exist or is no function.
    """
    if ":" in name:
        return _own_objective(name)
    found: dict[str, Objective] = {"subtb": partial(subtb, subtb_lambda=subtb_lambda), "tb": tb, "db": db}
    return found[name]


def _own_objective(target: str) -> Objective:
    own = load_function(target, field="objective.name", expected="one of (log_pf, log_flow, mask)")

    def losses(log_pf: Tensor, log_flow: Tensor, mask: Tensor) -> Tensor:
        with own_code(f"the objective {target!r}"):
            found = own(log_pf, log_flow, mask)
        if not isinstance(found, Tensor) or found.shape != mask.shape[:1]:
            shape = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"the objective {target!r} gave {shape}", expected=f"a tensor ({mask.shape[0]},), a loss for each path"
            )
        return found

    return losses


def path_terms(name: str, *, subtb_lambda: float) -> PathTerms:
    """Return the residual terms of an objective, for weightings that count every distinct subpath once."""
    subtb_own = partial(subtb_terms, subtb_lambda=subtb_lambda)
    found: dict[str, PathTerms] = {"subtb": subtb_own, "tb": tb_terms, "db": db_terms}
    return found[name]


def policy_value(log_pi: Tensor, log_value: Tensor) -> Tensor:
    """Return log Σ_a π(a|s) V(s,a), shape (…,), from two (…, A); no gradient reaches π."""
    return torch.logsumexp(log_pi.detach() + log_value, dim=-1)


# ---------------------------------------------------------------- ranking

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


# ---------------------------------------------------------------- KL


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
