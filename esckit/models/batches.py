"""Questions that wait at the same time are read together: what computes faster in a batch, asked one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
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
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._reading: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """Return the answer to a question; who gives up takes nobody along.

        Raises:
            ModelError: If that is its answer.
        """
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._reading is None or self._reading.done():
            # Questions that arrive in this turn of the event loop join the batch.
            self._reading = asyncio.create_task(self._read_what_waits())
        return await answer

    async def _read_what_waits(self) -> None:
        while self._waiting:
            batch = [(question, answer) for question, answer in self._waiting if not answer.done()]
            self._waiting = []
            try:
                found = await asyncio.to_thread(self._read, [question for question, _ in batch])
            except Exception as error:  # noqa: BLE001 - a bug is that of everybody who waits
                found = [error for _ in batch]  # type: ignore[misc]
            for (_, answer), one in zip(batch, found, strict=True):
                if answer.done():
                    continue
                if isinstance(one, Exception):
                    answer.set_exception(one)
                else:
                    answer.set_result(one)
