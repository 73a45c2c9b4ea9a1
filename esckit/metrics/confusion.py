"""Values of confusion matrices: accuracy, F1, entropy, KL divergence and the preference bias B.

Preference bias B says how unevenly a strategist's errors fall on strategies (Kang et al., ACL 2024).

With w_ij the cases predicted i where gold is j (i ≠ j), strategy preferences p are the Bradley-Terry fixed point of

    p_i ← [Σ_{j≠i} w_ij · p_j/(p_i + p_j)] / [Σ_{j≠i} w_ji · 1/(p_i + p_j)],

started at 1, updated in place in taxonomy order, divided by the geometric mean of the positive entries after each
sweep, finally scaled to Σ p_i = S. p_i > 1: chosen too often. Then B = √(Σ_i (p_i − 1)² / S), in [0, √(S−1)]. Labels
absent from gold and predictions are left out of S, so B is never comparable across taxonomies.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from esckit.metrics.metric import Array, divide

_TOLERANCE = 1e-10

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
        running = running[np.abs(np.log(after) - np.log(before)).max(axis=1) >= _TOLERANCE]
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
    """Return B of every confusion matrix (R, S, S) as (R,), NaN where the confusions do not link all strategies."""
    p = preferences(confusion, pseudo_count=pseudo_count, max_sweeps=max_sweeps)
    size = (~np.isnan(p)).sum(axis=1)
    spread = np.nansum((p - 1) ** 2, axis=1)
    return np.where(size > 0, np.sqrt(spread / np.maximum(size, 1)), np.nan)


# ---------------------------------------------------------------- values of confusion matrices, (R, S, S) to (R,)


def accuracy(confusion: Array) -> Array:
    """Return Σ C_ii / N."""
    return divide(np.trace(confusion, axis1=1, axis2=2), confusion.sum(axis=(1, 2)))


def f1_by_class(confusion: Array) -> Array:
    """Return F1_i = 2C_ii/(pred_i + gold_i), (R, S); NaN for labels in neither gold nor predictions."""
    right = np.diagonal(confusion, axis1=1, axis2=2)
    return divide(2 * right, confusion.sum(axis=2) + confusion.sum(axis=1))


def _two_in_gold(confusion: Array) -> Array:
    """Return 1 where gold has at least two labels, else NaN."""
    return np.where((confusion.sum(axis=1) > 0).sum(axis=1) >= 2, 1.0, np.nan)


def macro_f1(confusion: Array) -> Array:
    """Return the mean F1 over labels present in gold or predictions; needs two labels in gold."""
    scores = f1_by_class(confusion)
    present = ~np.isnan(scores)
    return divide(np.nansum(scores, axis=1), present.sum(axis=1)) * _two_in_gold(confusion)


def weighted_f1(confusion: Array) -> Array:
    """Return Σ gold_i·F1_i / N; needs two labels in gold."""
    gold = confusion.sum(axis=1)
    total = np.nansum(gold * f1_by_class(confusion), axis=1)
    return divide(total, gold.sum(axis=1)) * _two_in_gold(confusion)


def entropy_of(counts: Array) -> Array:
    """Return −Σ p ln p in nats of every row of counts (R, S); NaN for an empty row."""
    shares = divide(counts, counts.sum(axis=1, keepdims=True) * np.ones_like(counts))
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    # Adding 0 turns the −0.0 of a single strategy into 0.0.
    return np.asarray(-(shares * logs).sum(axis=1) + 0.0)


def kl_gold(confusion: Array) -> Array:
    """Return Σ p_i ln(p_i/g_i) of predicted against gold shares; NaN if a predicted label has no gold."""
    predicted, gold = confusion.sum(axis=2), confusion.sum(axis=1)
    n = np.maximum(confusion.sum(axis=(1, 2)), 1.0)[:, None]
    used = predicted > 0
    quotient = np.divide(predicted, gold, out=np.ones_like(predicted), where=used & (gold > 0))
    value = (predicted / n * np.log(quotient)).sum(axis=1)
    return np.where((used & (gold == 0)).any(axis=1) | (confusion.sum(axis=(1, 2)) == 0), np.nan, np.abs(value))


def majority_share(confusion: Array) -> Array:
    """Return the accuracy of always answering the most frequent gold label."""
    gold = confusion.sum(axis=1)
    return divide(gold.max(axis=1), gold.sum(axis=1))


def frequency_share(confusion: Array) -> Array:
    """Return the expected accuracy of guessing by gold frequencies, Σ g_i²."""
    gold = confusion.sum(axis=1)
    return divide((gold**2).sum(axis=1), gold.sum(axis=1) ** 2)
