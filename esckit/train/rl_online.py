"""The reward that is played, not predicted: the future of each output, simulated while training (arXiv 2508.12935).

TRL calls rewards from its training loop, which may itself run inside an event loop; so futures are played on a loop in
a thread of their own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from esckit.dialogue.rollout import Cast, Rules, play_future
from esckit.dialogue.transcript import clean_reply
from esckit.ledger import Scope
from esckit.protocols import Supporter
from esckit.train.rl_rewards import Completion
from esckit.types import Context, Future, Generation, Outcome, Turn

T = TypeVar("T")
OnlineValue = Literal["scaled", "raw", "goal"]


class LoopThread:
    """An event loop in a thread of its own; leaving the context ends both."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="esckit-rollouts", daemon=True)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine that runs on the loop."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Interrupted: what is in flight must not go on calling models.
            future.cancel()
            raise

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the loop and wait for the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True, slots=True)
class FirstReply:
    """A supporter whose first turn is given; after it another one speaks."""

    first: Generation
    then: Supporter

    async def reply(self, turns: Sequence[Turn], scope: Scope, *, strategy: str | None = None) -> Generation:
        """Return the given turn in exchange 0, and what the other says from exchange 1 on."""
        if scope.place[-1] == 0:
            return self.first
        return await self.then.reply(turns, scope, strategy=strategy)


@dataclass(frozen=True, slots=True)
class OnlineMeasure:
    """Measures outputs by their futures, one each.

    Attributes:
        contexts: By id.
        cast: Seeker, critic, and the supporter that goes on after the policy's reply.
        rules: How futures are played.
        value: What of a future counts.
        run_seed: Seed of the run.
        loop: Plays them.
    """

    contexts: Mapping[str, Context]
    cast: Cast
    rules: Rules
    value: OnlineValue
    run_seed: int
    loop: LoopThread

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return the value of each output's future, None where it failed."""
        futures = self.loop.run(self._play(completions))
        return [future_value(future, self.rules, self.value) for future in futures]

    async def _play(self, completions: Sequence[Completion]) -> list[Future]:
        return list(await asyncio.gather(*map(self._future, completions)))

    async def _future(self, completion: Completion) -> Future:
        context = self.contexts[completion.context_id]
        said = completion.generation
        reply = clean_reply(said.response, speaking="supporter") or said.response
        first = FirstReply(said.model_copy(update={"response": reply}), self.cast.supporter)
        return await play_future(
            context.model_copy(update={"id": f"{context.id}:g{completion.step}"}),
            completion.index,
            cast=Cast(first, self.cast.seeker, self.cast.critic),
            rules=self.rules,
            run_seed=self.run_seed,
        )


def future_value(future: Future, rules: Rules, value: OnlineValue) -> float | None:
    """Return what a future is worth; None if it failed.

    ``scaled`` is (reward − lo) / (hi − lo) with lo = (−1 + 1/(T+1))/2 and hi = 3/4 (1 if the first exchange is scored),
    so that the weights of the components keep their meaning.
    """
    reward = future.fraction
    if reward is None:
        return None
    if value == "goal":
        return float(future.outcome is Outcome.RESOLVED)
    return float(reward if value == "raw" else scaled(reward, rules))


def scaled(reward: Fraction, rules: Rules) -> Fraction:
    """Return a reward in [0, 1], between the worst and the best that the rules allow."""
    lowest = (Fraction(1, rules.horizon + 1) - 1) / 2
    highest = Fraction(1) if rules.score_first_exchange else Fraction(3, 4)
    return (reward - lowest) / (highest - lowest)
