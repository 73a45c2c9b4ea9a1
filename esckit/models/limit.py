"""How many requests a server gets at once: as many as it answers well, never more than the recipe allows.

The limit rises additively and falls multiplicatively (AIMD, as in TCP):

- It starts at 32, or at the recipe's ``concurrency`` if that is less.
- It grows after every wave, by half, or by a quarter once it was halved, while requests wait for a place and latency
  holds. A wave is as many requests as the limit allows, at least 32.
- It is halved at the first request that the server refuses (429) or leaves without an answer (time-out). What was sent
  before a halving counts for no other one: 64 refusals of 64 requests in flight are one halving.
- While refusals go on, it is halved again whenever more than a quarter of a wave was refused. A smaller share halves no
  more, or a server that refuses a tenth of all requests whatever their number would be asked one by one.

Latency holds if the answers of the last wave took at most twice as long as in the fastest wave so far; requests for
equally many tokens are compared with each other only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

_START = 32
_WAVE = 32
_GROWTH = 1.5
_RECOVERY = 1.25
_MOST_REFUSED = 1 / 4
_MOST_SLOWER = 2.0
# Fewer answers tell no mean that others could be compared with.
_LEAST_ANSWERS = 16


@dataclass(slots=True)
class _Wave:
    """The requests that ended since the last wave.

    Attributes:
        size: How many a wave has.
        n_ended: How many there are.
        n_refused: How many of them were refused.
        seconds: How long the others took, by the kind of request.
    """

    size: int
    n_ended: int = 0
    n_refused: int = 0
    seconds: dict[Hashable, list[float]] = field(default_factory=dict)


class AdaptiveLimit:
    """Places for requests; a block that holds one begins as soon as one is free (``async with limit:``).

    Args:
        most: Most places, at least 1.

    Attributes:
        n_halvings: How often the limit was halved.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(min(_START, most))
        self._start = self._lowest = self._highest = int(self._limit)
        self.n_halvings = 0
        self._n_held = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._wave = _Wave(_WAVE)
        self._is_calm = True
        self._fastest_s: dict[Hashable, float] = {}

    async def __aenter__(self) -> None:
        """Wait for a place and take it."""
        if not self._waiting and self._n_held < int(self._limit):
            self._n_held += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self._give_back()
            elif place in self._waiting:  # nobody has passed it over yet
                self._waiting.remove(place)
            raise

    async def __aexit__(self, *raised: object) -> None:
        """Give the place back."""
        self._give_back()

    def note(self, kind: Hashable, seconds: float, *, n_halvings: int, is_refused: bool) -> None:
        """Take account of a request that has ended.

        Args:
            kind: What requests of about the same length have in common.
            seconds: How long it took.
            n_halvings: The attribute of this name when it was sent.
            is_refused: Whether the server had too much to do for it.
        """
        if n_halvings != self.n_halvings:
            return
        wave = self._wave
        wave.n_ended += 1
        if is_refused:
            wave.n_refused += 1
            if self._is_calm:
                self._halve()
                return
        else:
            wave.seconds.setdefault(kind, []).append(seconds)
        if wave.n_ended == wave.size:
            self._end_wave()

    def facts(self) -> dict[str, int]:
        """Return what the limit was and is, for the manifest."""
        return {
            "start": self._start,
            "lowest": self._lowest,
            "highest": self._highest,
            "last": int(self._limit),
            "halvings": self.n_halvings,
        }

    def _halve(self) -> None:
        self._limit = max(1.0, self._limit / 2)
        self._lowest = min(self._lowest, int(self._limit))
        self.n_halvings += 1
        self._is_calm = False
        self._wave = self._new_wave()

    def _end_wave(self) -> None:
        wave, self._wave = self._wave, self._new_wave()
        if wave.n_refused > _MOST_REFUSED * wave.n_ended:
            self._halve()
            return
        self._is_calm = not wave.n_refused
        taken_s = fastest_s = 0.0
        for kind, seconds in wave.seconds.items():
            if len(seconds) >= _LEAST_ANSWERS:
                taken_s += sum(seconds)
                mean_s = sum(seconds) / len(seconds)
                self._fastest_s[kind] = min(mean_s, self._fastest_s.get(kind, mean_s))
                fastest_s += len(seconds) * self._fastest_s[kind]
        if self._waiting and taken_s <= _MOST_SLOWER * fastest_s:
            self._limit = min(self._most, self._limit * (_RECOVERY if self.n_halvings else _GROWTH))
            self._highest = max(self._highest, int(self._limit))
            self._admit()

    def _new_wave(self) -> _Wave:
        return _Wave(max(int(self._limit), _WAVE))

    def _give_back(self) -> None:
        self._n_held -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._n_held < int(self._limit):
            place = self._waiting.popleft()
            if not place.done():
                self._n_held += 1
                place.set_result(None)
