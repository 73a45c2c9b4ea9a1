"""Preference bias B: how unevenly a strategist's errors fall on strategies (Kang et al., ACL 2024).

With w_ij the cases predicted i where gold is j (i ≠ j), strategy preferences p are the Bradley-Terry fixed point of

    p_i ← [Σ_{j≠i} w_ij · p_j/(p_i + p_j)] / [Σ_{j≠i} w_ji · 1/(p_i + p_j)],

started at 1, updated in place in taxonomy order, divided by the geometric mean of the positive entries after each
sweep, finally scaled to Σ p_i = S. p_i > 1: chosen too often. Then B = √(Σ_i (p_i − 1)² / S), in [0, √(S−1)]. Labels
absent from gold and predictions are left out of S, so B is never comparable across taxonomies.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from esckit.evaluate.metric import Array

TOLERANCE = 1e-10
MAX_SWEEPS = 10_000


def connected(wins: Array, occurs: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return whether the errors connect all occurring labels strongly, (R,); only then the fixed point exists.

    Args:
        wins: (R, S, S), predicted × gold; the diagonal is not used.
        occurs: (R, S).
    """
    n = wins.shape[1]
    reach = (wins > 0) | np.eye(n, dtype=bool)
    for _ in range(max(1, int(np.ceil(np.log2(n))))):
        step = reach.astype(np.float32)
        reach = (step @ step) > 0
    unimportant = ~(occurs[:, :, None] & occurs[:, None, :])
    return np.asarray((reach | unimportant).all(axis=(1, 2)) & (occurs.sum(axis=1) >= 2))


def preferences(confusion: Array, *, pseudo_count: float = 0.0, max_sweeps: int = MAX_SWEEPS) -> Array:
    """Return the strategy preferences of every confusion matrix, summing to the number of labels that occur.

    Args:
        confusion: (R, S, S), predicted × gold.
        pseudo_count: Added to every off-diagonal cell of labels that occur.
        max_sweeps: Fewer than 10,000 stop early and take what is there, as the reference implementation does with 20.

    Returns:
        (R, S); NaN for labels that do not occur, and for matrices without a fixed point or not yet at it.
    """
    occurs = (confusion.sum(axis=1) + confusion.sum(axis=2)) > 0
    off = 1 - np.eye(confusion.shape[1])
    wins = (confusion + pseudo_count * (occurs[:, :, None] & occurs[:, None, :])) * off
    found = np.full(confusion.shape[:2], np.nan)
    usable = np.flatnonzero(connected(wins, occurs))
    if len(usable):
        found[usable] = _iterate(wins[usable], occurs[usable], max_sweeps)
    return found


def _iterate(wins: Array, occurs: npt.NDArray[np.bool_], max_sweeps: int) -> Array:
    p = np.ones(occurs.shape)
    running = np.arange(len(p))
    for _ in range(max_sweeps):
        before = p[running]
        after = _sweep(wins[running], occurs[running], before)
        p[running] = after
        running = running[np.abs(np.log(after) - np.log(before)).max(axis=1) >= TOLERANCE]
        if not len(running):
            break
    if max_sweeps == MAX_SWEEPS:
        p[running] = np.nan
    p = np.where(occurs, p, np.nan)
    return np.asarray(p * (occurs.sum(axis=1) / np.nansum(p, axis=1))[:, None])


def _sweep(wins: Array, occurs: npt.NDArray[np.bool_], before: Array) -> Array:
    """Update every preference once, in place and in order; labels that do not occur stay 1 and weigh nothing."""
    p = before.copy()
    for i in range(p.shape[1]):
        both = p[:, [i]] + p
        above = (wins[:, i, :] * p / both).sum(axis=1)
        below = (wins[:, :, i] / both).sum(axis=1)
        p[:, i] = np.where(occurs[:, i], above / np.where(occurs[:, i], below, 1.0), 1.0)
    log_mean = (np.log(p) * occurs).sum(axis=1) / occurs.sum(axis=1)
    return np.where(occurs, p / np.exp(log_mean)[:, None], 1.0)


def bias(confusion: Array, *, pseudo_count: float = 0.0, max_sweeps: int = MAX_SWEEPS) -> Array:
    """Return B of every confusion matrix (R, S, S) as (R,), NaN where errors do not connect all strategies."""
    p = preferences(confusion, pseudo_count=pseudo_count, max_sweeps=max_sweeps)
    size = (~np.isnan(p)).sum(axis=1)
    spread = np.nansum((p - 1) ** 2, axis=1)
    return np.where(size > 0, np.sqrt(spread / np.maximum(size, 1)), np.nan)
