"""What one unit of work (a future, a tree, an evaluated dialogue) draws and spends.

Every random draw of simulation, search and evaluation is seeded by stable ids only: run seed, unit id, place, role and
attempt. Nothing else enters: not time, worker, batch position or ``hash()``. So the same seed gives the same record,
whatever the scheduling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from esckit.types import Reply, StopReason, Thought, Usage

_SEED_SPACE = 2**63

_BELOW_ONE = 1.0 - 2.0**-53


def derive_seed(*parts: str | int) -> int:
    r"""Return the 63-bit seed of a draw.

    ``int.from_bytes(sha256("\x1f".join(["esckit.seed.1", *parts])).digest()[:8], "big") >> 1``
    """
    text = "\x1f".join(["esckit.seed.1", *(str(part) for part in parts)])
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 1


def uniform(seed: int) -> float:
    """Return the uniform number in [0, 1) that belongs to a seed."""
    # The largest seeds would round to 1.0, and an index drawn with that is out of range.
    return min(seed / _SEED_SPACE, _BELOW_ONE)


def usage_facts(usages: Iterable[Mapping[str, Usage]]) -> dict[str, Any]:
    """Return the calls and tokens of several units together, by role, for a summary."""
    total: dict[str, Usage] = {}
    for usage in usages:
        add_usage(total, usage)
    return {role: used.facts() for role, used in sorted(total.items())}


_BEFORE = {"from_cache": 0}
"""Amounts that earlier versions did not have, where what they would have been is known."""


def total(spent: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sum of what several attempts or processes spent, each as ``Budget.spent`` gives it.

    Args:
        spent: At least one; the names are those of the last. A role that one of them lacks was not asked there.

    Returns:
        Sums by name, and by role below ``roles``; None where a part is unknown.
    """
    return {name: _sum([each.get(name, _BEFORE.get(name)) for each in spent]) for name in spent[-1]}


def _sum(parts: Sequence[Any]) -> Any:
    if any(part is None for part in parts):
        return None
    if not isinstance(parts[-1], Mapping):
        return round(sum(parts), 6)
    roles = sorted({role for part in parts for role in part})
    return {role: total([part[role] for part in parts if role in part]) for role in roles}


def add_usage(total: dict[str, Usage], usage: Mapping[str, Usage]) -> None:
    """Add the calls and tokens of a unit to a sum by role."""
    for role, used in usage.items():
        total[role] = total.get(role, Usage()) + used


class Ledger:
    """Counts attempts and usage of one unit of work.

    Args:
        run_seed: Seed of the run.
        unit_id: Stable id of the unit: a context id, a tree id, a dialogue id.

    Attributes:
        ends: Why the last reply of each role ended.
    """

    def __init__(self, run_seed: int, unit_id: str) -> None:
        self.run_seed = run_seed
        self.unit_id = unit_id
        self.usage: dict[str, Usage] = {}
        self.attempts: Counter[tuple[str | int, ...]] = Counter()
        self.reasoning: list[Thought] = []
        self.ends: dict[str, StopReason] = {}

    def at(self, *place: str | int) -> Scope:
        """Return the view of one place in the unit: (candidate, turn) of a future, (node path, step) of a tree."""
        return Scope(self, place)

    def thoughts(self, *, kept: Collection[str | None] = ()) -> tuple[Thought, ...]:
        """Return the reasoning of all replies by place and role, whatever order they came in.

        Args:
            kept: Texts that the record holds elsewhere.
        """
        # One role is asked at one place again only after its answer: a stable sort keeps the attempts in order.
        found = sorted(self.reasoning, key=lambda thought: (thought.place, thought.role))
        return tuple(thought for thought in found if thought.text not in kept)


@dataclass(frozen=True, slots=True)
class Scope:
    """One place in a unit of work; what a role is handed to draw its seeds from and to book its usage on."""

    ledger: Ledger
    place: tuple[str | int, ...]

    def seed(self, role: str) -> int:
        """Return the seed of the next attempt of a role here (attempts count from 0)."""
        attempt = self.ledger.attempts[(*self.place, role)]
        self.ledger.attempts[(*self.place, role)] += 1
        return derive_seed(self.ledger.run_seed, self.ledger.unit_id, *self.place, role, attempt)

    def book(self, role: str, reply: Reply) -> None:
        """Add what a reply cost and what the model thought before it; ``critic.3`` is booked on ``critic``."""
        self.spend(role.partition(".")[0], reply.usage)
        self.ledger.ends[role] = reply.stop_reason
        if reply.reasoning:
            place = "/".join(map(str, self.place))
            self.ledger.reasoning.append(Thought(role=role, place=place, text=reply.reasoning))

    def spend(self, role: str, usage: Usage) -> None:
        """Add what a call of a role cost."""
        self.ledger.usage[role] = self.ledger.usage.get(role, Usage()) + usage
