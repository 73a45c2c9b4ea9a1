"""Where the units of a run are played: in this process, or by the workers of a Ray cluster.

A command says in one function who plays (its *cast*): it loads models into a pool and returns :class:`UnitPlayers`.
The executor that the recipe names calls this function wherever units are played, here or on another machine; so the
function is at the top level of its module and is handed plain data only. Everything else, above all what is written,
stays in the process of the command (:mod:`esckit.play.runner`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar

from esckit.models.budget import counted
from esckit.roles.asking import gather_or_cancel
from esckit.roles.pool import ModelPool
from esckit.types import Record

Unit = TypeVar("Unit")
Result = TypeVar("Result")

Play: TypeAlias = Callable[[Any], Awaitable[Record | tuple[Record, ...]]]
"""Plays a unit and returns its record, or several in the order in which they are written, its own last."""


@dataclass(frozen=True, slots=True)
class UnitPlayers:
    """Who plays the units of a run.

    Attributes:
        play: What plays a unit, by the file that its record stands in.
        inputs: What a run is known by that only loaded models tell: plain JSON data.
    """

    play: Mapping[str, Play]
    inputs: Mapping[str, Any] = field(default_factory=dict)


Cast: TypeAlias = Callable[..., Awaitable[UnitPlayers]]
"""``cast(pool, recipe, *given)`` loads models into a pool and returns who plays; at the top level of its module."""


class Played(NamedTuple):
    """A unit that was played.

    Attributes:
        records: Its records, its own last.
        seconds: How long it took.
        asked: Calls, tokens and cost, answers of the response cache included; None is unknown.
    """

    records: tuple[Record, ...]
    seconds: float
    asked: dict[str, int | float | None]


async def played(play: Play, unit: Any) -> Played:
    """Play one unit."""
    began_s = time.perf_counter()
    with counted() as account:
        records = await play(unit)
    asked = {name: amount for name, amount in account.facts().items() if name != "cached_prompt_tokens"}
    return Played(records if isinstance(records, tuple) else (records,), time.perf_counter() - began_s, asked)


async def spread(
    units: Iterable[Unit],
    play: Callable[[Unit], Awaitable[Result]],
    take: Callable[[Result], None],
    *,
    limit: int,
) -> None:
    """Play units, at most ``limit`` at a time; a finished unit frees its place at once.

    Raises:
        Exception: The first error of ``play`` or ``take``; units in flight are cancelled.
    """
    waiting = iter(units)

    async def keep_playing() -> None:
        for unit in waiting:
            take(await play(unit))

    await gather_or_cancel(keep_playing() for _ in range(limit))


class LocalExecutor:
    """Plays units in this process.

    Args:
        pool: The run's models.
        players: Built on the pool.
        limit: Units in flight, at least 1.
    """

    def __init__(self, pool: ModelPool, players: UnitPlayers, limit: int) -> None:
        self._pool, self._players, self._limit = pool, players, limit
        self.facts, self.determinism = pool.facts, pool.determinism
        self.spent, self.on_spent = pool.spent, pool.on_spent

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What the players say of themselves."""
        return self._players.inputs

    async def run(self, file: str, units: Iterable[Any], take: Callable[[Played], None], *, batch: int = 1) -> None:
        """Play all units of a file; see :class:`~esckit.protocols.Executor`."""
        play = self._players.play[file]
        await spread(units, lambda unit: played(play, unit), take, limit=max(self._limit, batch))
