"""Distinct-n: different n-grams over all n-grams of all replies together.

Resampling with replacement repeats texts and pushes Distinct down, so its interval is a delete-one-dialogue jackknife;
permutations only swap texts between two systems. Replaying needs to know which n-grams a selection of dialogues holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from esckit.evaluate.metric import Array, Indices, Stats, divide

_BLOCK = 8_000_000


@dataclass(frozen=True, slots=True)
class DistinctShare:
    """An estimator over n-gram counts; a case's statistics are (n-grams, their different ones, the counts)."""

    scale: float = 100.0

    def finish(self, stats: Sequence[Stats]) -> float | None:
        """Return scale · different n-grams / all n-grams, None without any n-gram."""
        different: set[tuple[str, ...]] = set()
        total = 0
        for n_all, _, counts in stats:
            different.update(counts)
            total += n_all
        return self.scale * len(different) / total if total else None

    def replay(self, stats: Sequence[Stats], owner: Indices, draws: Array) -> Array:
        """Return the value of every selection of dialogues, NaN without any n-gram."""
        holders, totals = _by_unit(stats, owner, draws.shape[1])
        present = (draws > 0).astype(np.float32)
        # Most n-grams occur in one dialogue only: these are there exactly when it is, so they add up.
        alone = np.zeros(draws.shape[1], dtype=np.float32)
        shared = []
        for units in holders:
            if len(units) == 1:
                alone[units[0]] += 1
            else:
                shared.append(units)
        different = present @ alone + _shared_counts(shared, present)
        return self.scale * divide(different.astype(np.float64), draws @ totals)


def _by_unit(stats: Sequence[Stats], owner: Indices, n_units: int) -> tuple[list[list[int]], Array]:
    """Return the units that hold each n-gram, and the number of n-grams of each unit."""
    holders: dict[tuple[str, ...], dict[int, None]] = {}
    totals = np.zeros(n_units)
    for (n_all, _, counts), unit in zip(stats, owner.tolist(), strict=True):
        totals[unit] += n_all
        for ngram in counts:
            holders.setdefault(ngram, {})[unit] = None
    return [list(units) for units in holders.values()], totals


def _shared_counts(shared: Sequence[Sequence[int]], present: npt.NDArray[np.float32]) -> Array:
    """Return how many of the n-grams that several units hold are in each selection, (R,)."""
    if not shared:
        return np.zeros(len(present))
    from scipy.sparse import csr_matrix

    columns = np.repeat(np.arange(len(shared)), [len(units) for units in shared])
    rows = np.fromiter((unit for units in shared for unit in units), dtype=np.intp)
    # (V, D) times (D, R): sparse on the left is the order that scipy multiplies fast.
    holds = csr_matrix((np.ones(len(rows), dtype=np.float32), (columns, rows)), shape=(len(shared), present.shape[1]))
    width = max(1, _BLOCK // len(shared))
    blocks = [
        (holds @ np.ascontiguousarray(present[start : start + width].T) > 0).sum(axis=0)
        for start in range(0, len(present), width)
    ]
    return np.concatenate(blocks)


def distinct_stats(counts: Counter[tuple[str, ...]]) -> Stats:
    """Return a case's statistics: n-grams, different ones within the case, and the counts themselves."""
    return (counts.total(), len(counts), counts)
