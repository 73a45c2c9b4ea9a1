"""Questions that wait at the same time are read together: what computes faster in a batch, asked one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from esckit.errors import ModelError, NotFiniteError

Q = TypeVar("Q")
A = TypeVar("A")


def first_alone(questions: Sequence[object]) -> tuple[list[int], list[int]]:
    """Split questions so that each is read alone, for :class:`Batches`."""
    places = [*range(len(questions))]
    return places[:1], places[1:]


class Batches(Generic[Q, A]):
    """Collects what is asked while a batch is read, and reads it as the next one, off the event loop.

    If a batch fails as calls of models do, its questions are read one by one, so that one of them fails alone.

    Args:
        read: Answers several questions at once, in their order; an error may stand in the place of an answer. It is
            called in a thread, never twice at a time.
        split: Returns which of the questions that wait are read next, and which wait on; None reads all.
    """

    def __init__(
        self,
        read: Callable[[list[Q]], Sequence[A | ModelError]],
        split: Callable[[list[Q]], tuple[list[int], list[int]]] | None = None,
    ) -> None:
        self._read, self._split = read, split
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
            self._reading = asyncio.create_task(self._read_what_waits())
        return await answer

    async def _read_what_waits(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # others ask in the same turn of the event loop
            batch = self._next()
            try:
                found = await asyncio.to_thread(self._answers, [question for question, _ in batch])
            except Exception as error:  # noqa: BLE001 - a bug is that of everybody who waits
                found = [error for _ in batch]  # type: ignore[misc]
            for (_, answer), one in zip(batch, found, strict=True):
                if answer.done():
                    continue
                if isinstance(one, Exception):
                    answer.set_exception(one)
                else:
                    answer.set_result(one)

    def _next(self) -> list[tuple[Q, asyncio.Future[A]]]:
        waiting = [(question, answer) for question, answer in self._waiting if not answer.done()]
        now, later = list(range(len(waiting))), list[int]()
        if self._split is not None:
            now, later = self._split([question for question, _ in waiting])
        self._waiting = [waiting[at] for at in later]
        return [waiting[at] for at in now]

    def _answers(self, questions: list[Q]) -> list[A | ModelError]:
        try:
            return [*self._read(questions)] if questions else []
        except (ModelError, NotFiniteError) as error:
            if len(questions) > 1:
                return [answer for question in questions for answer in self._answers([question])]
            # A number that is not finite fails the one question and must not end the whole run.
            return [error.as_failure() if isinstance(error, NotFiniteError) else error]
