"""Intervals, tests and resampling plans: pure functions of numbers.

Wilson, percentile and jackknife intervals; McNemar's, permutation and sign-flip tests; Holm's adjustment. A plan says
which dialogues each resample holds, and one plan serves all metrics of a suite. Its draws come from
:class:`random.Random`, seeded by run seed, purpose and suite alone: the same recipe gives the same intervals. A drawn
dialogue brings all its cases.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from esckit.ledger import derive_seed
from esckit.metrics.metric import Array

Counts: TypeAlias = npt.NDArray[np.uint8]
"""How often each resample holds each unit, a byte each: no draw holds one unit 256 times (P < 1e-500)."""

_BLOCK = 8_000_000
"""Numbers of a byte that become floats at a time, which take 64 MB."""

EXACT_UNITS = 12
"""Up to so many units, permutations are enumerated instead of drawn."""


SKIPPED_SHARE = 0.01
"""Above this share of undefined resamples there is no interval."""


_SLACK = 1e-9

_DUST = 1e-12
"""Share of an interval's greater end below which the other one is what summing in floating point leaves of 0."""


class Bounds(NamedTuple):
    """An interval."""

    low: float
    high: float

    @classmethod
    def of(cls, low: float, high: float) -> Bounds:
        """Return an interval in which an end within rounding error of 0 is 0."""
        dust = _DUST * max(abs(low), abs(high))
        return cls(*(0.0 if abs(end) <= dust else end for end in (low, high)))


def wilson(successes: float, n: float, *, level: float = 0.95) -> Bounds:
    """Return Wilson's interval for a share of ``n`` ≥ 1 independent cases; both counts are whole numbers."""
    from scipy.stats import binomtest

    found = binomtest(round(successes), round(n)).proportion_ci(level, method="wilson")
    return Bounds(float(found.low), float(found.high))


def percentile_interval(values: Array, *, level: float = 0.95) -> Bounds | None:
    """Return the percentile interval of resampled values.

    With sorted values b of B resamples: low = b[⌊α/2·B⌋], high = b[⌈(1−α/2)·B⌉ − 1]. Undefined (NaN) resamples are
    skipped; above one per cent of them there is no interval.
    """
    kept = np.sort(values[~np.isnan(values)])
    if not len(kept) or len(values) - len(kept) > SKIPPED_SHARE * len(values):
        return None
    exact = Fraction(str(level))
    low = math.floor((1 - exact) / 2 * len(kept))
    high = math.ceil((1 + exact) / 2 * len(kept)) - 1
    return Bounds.of(float(kept[low]), float(kept[high]))


def is_degenerate(bounds: Bounds) -> bool:
    """Return whether an interval has no width: its resamples were all alike, which says nothing about chance."""
    return bounds.high - bounds.low <= _SLACK * max(1.0, abs(bounds.high))


def jackknife_error(left_out: Array) -> float:
    """Return the delete-one standard error: SE² = ((n−1)/n)·Σ(x₋ᵢ − mean)²."""
    n = len(left_out)
    return math.sqrt((n - 1) / n * float(((left_out - left_out.mean()) ** 2).sum()))


def jackknife_interval(value: float, left_out: Array, *, level: float = 0.95) -> Bounds:
    """Return the normal interval around ``value`` with the jackknife's standard error."""
    half = NormalDist().inv_cdf((1 + level) / 2) * jackknife_error(left_out)
    return Bounds.of(value - half, value + half)


def two_sided_binomial(first: int, second: int) -> float:
    """Return the exact two-sided binomial p at ½ of two counts, ties left out; 1 without any.

    For the discordant counts b, c of two systems this is McNemar's exact test:
    p = min(1, 2·Σ_{i≤min(b,c)} C(b+c, i)/2^(b+c)).
    """
    from scipy.stats import binomtest

    n = first + second
    return float(binomtest(min(first, second), n, 0.5).pvalue) if n else 1.0


def all_swaps(n: int) -> Counts:
    """Return every choice of units to swap, (2**n, n) of 0 and 1."""
    codes = np.arange(2**n)[:, None]
    return ((codes >> np.arange(n)) & 1).astype(np.uint8)


def as_floats(counts: Counts) -> Iterator[Array]:
    """Yield the rows as floats, as many at a time as fit the memory."""
    rows = max(1, _BLOCK // max(1, counts.shape[1]))
    for start in range(0, len(counts), rows):
        yield counts[start : start + rows].astype(np.float64)


def permutation_p(observed: float, permuted: Array, *, exact: bool) -> float | None:
    """Return the share of permuted statistics that are at least as extreme as the observed one.

    Args:
        observed: The statistic T.
        permuted: (R,) statistics T*; NaN where undefined.
        exact: True if ``permuted`` holds all permutations; otherwise one is added to both counts.

    Returns:
        The two-sided p, or None if more than one per cent of the permutations are undefined.
    """
    kept = permuted[~np.isnan(permuted)]
    if not len(kept) or len(permuted) - len(kept) > SKIPPED_SHARE * len(permuted):
        return None
    # Sums in another order differ in their last bits; such a tie is a tie.
    extreme = int((np.abs(kept) >= abs(observed) - _SLACK * max(1.0, abs(observed))).sum())
    return extreme / len(kept) if exact else (1 + extreme) / (1 + len(kept))


def sign_flip_p(differences: Sequence[float], swaps: Counts | None = None) -> float:
    """Return the two-sided p of a mean difference of zero, by flipping signs.

    Args:
        differences: One per unit, at least one.
        swaps: (R, n) of 0 and 1 for drawn permutations; None enumerates all.
    """
    exact = swaps is None
    chosen = all_swaps(len(differences)) if swaps is None else swaps
    values = np.asarray(differences, dtype=np.float64)
    flipped = np.concatenate([(1 - 2 * block) @ values / len(values) for block in as_floats(chosen)])
    p = permutation_p(float(values.mean()), flipped, exact=exact)
    if p is None:
        raise ValueError("differences hold NaN")
    return p


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def bootstrap_draws(rng: random.Random, n: int, resamples: int) -> Counts:
    """Return how often each resample holds each of ``n`` units, (resamples, n).

    Indices of resample after resample are ``rng.choices(range(n), k=n)``.
    """
    draws = np.zeros((resamples, n), dtype=np.uint8)
    units = range(n)
    for row in draws:
        row[:] = np.bincount(rng.choices(units, k=n), minlength=n)
    return draws


def swap_draws(rng: random.Random, n: int, permutations: int) -> Counts:
    """Return which of ``n`` units each permutation swaps, (permutations, n) of 0 and 1."""
    width = (n + 7) // 8
    raw = b"".join(rng.getrandbits(n).to_bytes(width, "little") for _ in range(permutations))
    bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8).reshape(permutations, width), axis=1, bitorder="little")
    return bits[:, :n]


@dataclass(frozen=True, slots=True)
class Plan:
    """The resampling units of a suite and how often each resample holds them.

    Attributes:
        units: Dialogue id to column.
        draws: (R, D).
    """

    units: dict[str, int]
    draws: Counts


def _units(dialogue_ids: Iterable[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(dict.fromkeys(dialogue_ids))}


def bootstrap_plan(run_seed: int, suite: str, dialogue_ids: Iterable[str], *, resamples: int) -> Plan:
    """Return the bootstrap plan of a suite; units are the distinct dialogues in the order given."""
    units = _units(dialogue_ids)
    rng = random.Random(derive_seed(run_seed, "bootstrap", suite))
    return Plan(units, bootstrap_draws(rng, len(units), resamples))


def permutation_plan(run_seed: int, suite: str, dialogue_ids: Iterable[str], *, resamples: int) -> Plan:
    """Return the permutation plan of a suite: 1 where a permutation swaps the two systems of a dialogue."""
    units = _units(dialogue_ids)
    rng = random.Random(derive_seed(run_seed, "permutation", suite))
    return Plan(units, swap_draws(rng, len(units), resamples))
