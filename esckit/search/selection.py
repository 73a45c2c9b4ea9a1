r"""Which strategy a simulation tries next (AFlow, arXiv 2602.08826), as pure functions of one node's numbers.

With prior :math:`\pi`, counts N(s,a), mean returns Q(s,a) and N(s) = Σ_a N(s,a)::

    u(s,a) = Q(s,a) + λ · π(a|s) · sqrt( N(s) / (1 + N(s,a)) )
    ρ(s)   = κ / (κ + ln(N(s) + 1))
    μ(a|s) = (1 − ρ(s)) · softmax_a( u(s,·) / τ ) + ρ(s) / |A|

A strategy is *sampled* from μ, never taken by argmax; at a node without visits it is sampled from π, since μ is uniform
there and the prior would not act where it matters most. The paper's softmax has no temperature (τ = 1).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import exp, log, sqrt


def smoothed(prior: Sequence[float], share: float) -> tuple[float, ...]:
    """Return a prior mixed with the uniform distribution, ``(1 − e)·p + e/n``, so that no zero reaches a logarithm.

    Args:
        prior: Probabilities that sum to 1.
        share: Weight e of the uniform part, in [0, 1].
    """
    floor = share / len(prior)
    return tuple((1.0 - share) * p + floor for p in prior)


def edge_scores(
    prior: Sequence[float], visits: Sequence[int], values: Sequence[float], *, exploration: float
) -> list[float]:
    """Return u(s,·); the square root covers the whole fraction, and unvisited strategies keep Q = 0."""
    total = sum(visits)
    return [
        value + exploration * p * sqrt(total / (1 + count))
        for p, count, value in zip(prior, visits, values, strict=True)
    ]


def uniform_share(n_visits: int, kappa: float) -> float:
    """Return ρ(s) for a node with at least one visit; 0 if ``kappa`` is 0."""
    return kappa / (kappa + log(n_visits + 1))


def selection_distribution(
    prior: Sequence[float],
    visits: Sequence[int],
    values: Sequence[float],
    *,
    exploration: float,
    uniform_kappa: float,
    temperature: float,
) -> list[float]:
    """Return μ(·|s), or the prior itself at a node without visits.

    Args:
        prior: π(·|s) in taxonomy order, sum 1.
        visits: N(s,a) per strategy.
        values: Q(s,a) per strategy in [0, 1]; 0 where unvisited.
        exploration: λ ≥ 0.
        uniform_kappa: κ ≥ 0.
        temperature: τ > 0.
    """
    total = sum(visits)
    if total == 0:
        return list(prior)
    scores = edge_scores(prior, visits, values, exploration=exploration)
    best = max(scores)
    weights = [exp((score - best) / temperature) for score in scores]
    rho = uniform_share(total, uniform_kappa)
    scale = (1.0 - rho) / sum(weights)
    floor = rho / len(weights)
    return [scale * weight + floor for weight in weights]


def without(distribution: Sequence[float], blocked: Collection[int]) -> list[float]:
    """Return a distribution over the strategies that are not blocked, renormalised; at least one must be left."""
    kept = [0.0 if index in blocked else p for index, p in enumerate(distribution)]
    total = sum(kept)
    if total > 0.0:
        return [p / total for p in kept]
    # The rest can underflow at a tiny temperature without a uniform part.
    share = 1.0 / (len(kept) - len(set(blocked)))
    return [0.0 if index in blocked else share for index in range(len(kept))]


def draw(distribution: Sequence[float], uniform: float) -> int:
    """Return the index that a uniform number in [0, 1) falls on in the cumulative sum."""
    cumulative = 0.0
    last = 0
    for index, p in enumerate(distribution):
        if p > 0.0:
            cumulative += p
            last = index
            if uniform < cumulative:
                return index
    return last


def ties(prior: Sequence[float]) -> list[int]:
    """Return the indices of all strategies of the highest probability."""
    best = max(prior)
    return [index for index, p in enumerate(prior) if p == best]


def pick(tied: Sequence[int], uniform: float) -> int:
    """Return one of several equally good strategies by a uniform number in [0, 1]."""
    return tied[min(int(uniform * len(tied)), len(tied) - 1)]
