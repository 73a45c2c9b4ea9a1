"""Which dialogues each resample holds: one plan per suite, shared by all its metrics.

Draws come from :class:`random.Random` seeded by (run seed, purpose, suite) alone, so that two people with one recipe
get one interval. A drawn dialogue brings all its cases.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from esckit.evaluate.metric import Array
from esckit.ledger import derive_seed


def bootstrap_draws(rng: random.Random, n: int, resamples: int) -> Array:
    """Return how often each resample holds each of ``n`` units, (resamples, n).

    Indices of resample after resample are ``rng.choices(range(n), k=n)``.
    """
    draws = np.zeros((resamples, n))
    units = range(n)
    for row in draws:
        row += np.bincount(rng.choices(units, k=n), minlength=n)
    return draws


def swap_draws(rng: random.Random, n: int, permutations: int) -> Array:
    """Return which of ``n`` units each permutation swaps, (permutations, n) of 0 and 1."""
    width = (n + 7) // 8
    raw = b"".join(rng.getrandbits(n).to_bytes(width, "little") for _ in range(permutations))
    bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8).reshape(permutations, width), axis=1, bitorder="little")
    return bits[:, :n].astype(np.float64)


@dataclass(frozen=True, slots=True)
class Plan:
    """The resampling units of a suite and how often each resample holds them.

    Attributes:
        units: Dialogue id to column.
        draws: (R, D).
    """

    units: dict[str, int]
    draws: Array


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
