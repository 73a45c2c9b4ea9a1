"""A trained reward model as a critic: the probability that a supporter turn leads to a good future.

This is how RLFF-ESC's reward model (arXiv 2508.12935) can rate the supporter turns of AFlow's search. Turns that wait
at the same time are scored in one batch; no seed is drawn and nothing is parsed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from esckit.errors import ModelError, NotFiniteError
from esckit.ledger import Scope
from esckit.types import RubricReading, Scenario, Score, Turn, Usage


class ResponseScorer(Protocol):
    """Scores replies to conversations, one number in [0, 1] each."""

    def score(self, conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> list[float]:
        """Return the scores in order."""
        ...


class RewardCritic:
    """Rates the last supporter turn by a reward model.

    Args:
        scorer: The reward model.
        identity: What readings show: the run and the digest of the model.
    """

    def __init__(self, scorer: ResponseScorer, identity: str) -> None:
        self._scorer = scorer
        self._identity = identity
        self._waiting: list[tuple[Sequence[Turn], str, asyncio.Future[float]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def score(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Score:
        """Return p(good future) of the last turn given those before it.

        Raises:
            BackendError: If the turn does not fit into the model, or its number is not finite.
        """
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append((tuple(turns[:-1]), turns[-1].text, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
            # Its error reaches those who wait; it must not be reported a second time.
            self._worker.add_done_callback(lambda task: task.cancelled() or task.exception())
        p = await answer
        scope.spend("critic", Usage(calls=1))
        reading = RubricReading(readout="reward_model", critic=self._identity, ratings=None)
        return Score(values={"reward_model": p}, reward=p, reading=reading)

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                scores = await asyncio.to_thread(
                    self._scorer.score, [turns for turns, _, _ in batch], [text for _, text, _ in batch]
                )
            except (ModelError, NotFiniteError) as error:
                await self._one_by_one(batch, _failure(error))
                continue
            except BaseException as error:
                for _, _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                raise
            for (_, _, answer), score in zip(batch, scores, strict=True):
                if not answer.done():
                    answer.set_result(score)

    async def _one_by_one(
        self, batch: Sequence[tuple[Sequence[Turn], str, asyncio.Future[float]]], error: ModelError
    ) -> None:
        """Give the error to the turn that caused it alone."""
        for turns, text, answer in batch:
            if answer.done():
                continue
            if len(batch) == 1:
                answer.set_exception(error)
                continue
            try:
                answer.set_result((await asyncio.to_thread(self._scorer.score, [turns], [text]))[0])
            except (ModelError, NotFiniteError) as own:
                answer.set_exception(_failure(own))


def _failure(error: ModelError | NotFiniteError) -> ModelError:
    """Return what fails the one turn; a number that is not finite must not end the whole run."""
    return error.as_failure() if isinstance(error, NotFiniteError) else error
