"""Questions that wait at the same time are read together: what computes faster in a batch, asked one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from typing import Generic, TypeVar

from esckit.errors import ModelError

Q = TypeVar("Q")
A = TypeVar("A")


class Batches(Generic[Q, A]):
    """Collects what is asked while a batch is read, and reads it as the next one, off the event loop.

    Args:
        read: Answers several questions at once, in their order; an error stands in the place of an answer. It is
            called in a thread, never twice at a time.
    """

    def __init__(self, read: Callable[[list[Q]], Sequence[A | ModelError]]) -> None:
        self._read = read
        self._waiting: dict[int, Q] = {}
        self._answers: dict[int, A | ModelError] = {}
        self._places = count()
        self._lock = asyncio.Lock()

    async def ask(self, question: Q) -> A:
        """Return the answer to a question.

        Raises:
            ModelError: If that is its answer.
        """
        place = next(self._places)
        self._waiting[place] = question
        try:
            # Questions that arrive in this turn of the event loop join the batch.
            await asyncio.sleep(0)
            async with self._lock:
                if place in self._waiting:
                    batch = dict(self._waiting)
                    answers = await asyncio.to_thread(self._read, list(batch.values()))
                    # Of what was given up meanwhile nobody takes the answer.
                    self._answers |= {at: one for at, one in zip(batch, answers, strict=True) if at in self._waiting}
                    self._waiting = {at: one for at, one in self._waiting.items() if at not in batch}
        finally:
            self._waiting.pop(place, None)
        answer = self._answers.pop(place)
        if isinstance(answer, ModelError):
            raise answer
        return answer
