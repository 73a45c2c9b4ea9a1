"""What a run may spend on models, and the decorator that stops it there.

One :class:`Budget` is shared by all models of a run; :class:`BudgetedModel` books every call on it. The limits hold for
one process: a resumed run starts with a fresh budget, since a budget may be changed between resumes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from esckit.errors import BackendError, BudgetError
from esckit.ledger import Scope
from esckit.models.chat import with_reasoning_apart
from esckit.protocols import Capability, ChatModel, Decision, StrategyPolicy
from esckit.types import FREE, ChoiceScores, Limits, Message, NextToken, Prices, Reply, Sampling, Scenario, Turn, Usage

T = TypeVar("T", ChoiceScores, Decision, NextToken, Reply)
"""What a model gives, with its usage."""


class Budget:
    """Counts calls, tokens, cost and time of a run against its limits.

    Calls are counted before they are made, so exactly ``max_calls`` are made. Tokens and cost are known only
    afterwards: no call begins once they have reached their limit, and those in flight then are the most that a run can
    go over it.

    Args:
        limits: What may be spent.
        clock: Seconds on a clock that never goes back.
    """

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._began_s = clock()
        self._n_calls = 0
        self._usage = Usage()
        self._cost = 0.0
        self._is_cost_known = True

    def admit(self) -> None:
        """Count one more call.

        Raises:
            BudgetError: If a limit is reached; the call is not counted and must not be made.
        """
        amounts = (
            ("calls", self._n_calls, self.limits.max_calls),
            ("tokens", self._usage.prompt_tokens + self._usage.completion_tokens, self.limits.max_tokens),
            ("cost", self._cost, self.limits.max_cost),
            ("hours", self._hours(), self.limits.max_hours),
        )
        for what, spent, limit in amounts:
            if limit is not None and spent >= limit:
                raise BudgetError(
                    f"the budget is used up: {spent:.6g} of {limit:.6g} {what}",
                    hint=f"What is done stays; raise budget.max_{what} and run the same command again to go on.",
                )
        self._n_calls += 1

    def book(self, name: str, usage: Usage, prices: Prices | None) -> None:
        """Add what an admitted call used.

        Args:
            name: The model that was called.
            usage: What the call used.
            prices: What the model costs; None if that is not known.

        Raises:
            BudgetError: If there is a limit that cannot be watched, since the tokens or the prices are unknown.
        """
        self._usage += usage
        cost = prices.cost(usage) if prices else None
        self._cost += cost or 0.0
        self._is_cost_known &= cost is not None
        if usage.unknown_calls and self.limits.max_tokens is not None:
            raise _unwatched(name, "max_tokens")
        if cost is None and self.limits.max_cost is not None:
            raise _unwatched(name, "max_cost")

    async def spend(self, name: str, call: Callable[[], Awaitable[T]], prices: Prices | None = FREE) -> T:
        """Make a call if the budget allows one more, and book what it used, also where the answer cannot be used.

        Raises:
            BudgetError: If it does not, or a limit cannot be watched.
        """
        self.admit()
        try:
            answer = await call()
        except BackendError as error:
            if error.billed is not None:
                self.book(name, Usage.model_validate(error.billed), prices)
            raise
        self.book(name, answer.usage, prices)
        return answer

    def spent(self) -> dict[str, int | float | None]:
        """Return what was spent so far, for the manifest; None is unknown."""
        tokens = self._usage.facts()
        return {
            "calls": self._n_calls,
            "prompt_tokens": tokens["prompt_tokens"],
            "completion_tokens": tokens["completion_tokens"],
            "cost": round(self._cost, 6) if self._is_cost_known else None,
            "hours": round(self._hours(), 4),
        }

    def _hours(self) -> float:
        return (self._clock() - self._began_s) / 3600


def _unwatched(name: str, limit: str) -> BudgetError:
    return BudgetError(
        f"budget.{limit} cannot be watched: {name} does not report what a call used",
        expected="a usage with prompt_tokens and completion_tokens in every answer",
        hint=f"Remove budget.{limit}, limit budget.max_calls or budget.max_hours instead, and run the command again.",
    )


class BudgetedModel:
    """A chat model whose calls are booked on a budget; otherwise the model it wraps.

    Args:
        inner: The model that answers.
        budget: Shared by all models of the run.
        prices: What this model costs; None if that is not known.
    """

    def __init__(self, inner: ChatModel, budget: Budget, prices: Prices | None = FREE) -> None:
        self._inner = inner
        self._budget = budget
        self._prices = prices

    @property
    def name(self) -> str:
        """The wrapped model's name."""
        return self._inner.name

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The wrapped model's capabilities."""
        return self._inner.capabilities

    async def check(self) -> None:
        """Check the wrapped model; not booked."""
        await self._inner.check()

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        """Complete, if the budget allows one more call.

        Raises:
            BudgetError: If it does not.
        """
        reply = await self._spend(lambda: self._inner.complete(messages, sampling, seed=seed))
        return with_reasoning_apart(reply, sampling.max_tokens)

    async def score(
        self, messages: Sequence[Message], choices: Sequence[str], *, temperature: float = 1.0
    ) -> ChoiceScores:
        """Score fixed answers, if the budget allows one more call.

        Raises:
            BudgetError: If it does not.
        """
        return await self._spend(lambda: self._inner.score(messages, choices, temperature=temperature))

    async def next_token(
        self, messages: Sequence[Message], labels: Sequence[str], *, temperature: float = 1.0
    ) -> NextToken:
        """Read the next token, if the budget allows one more call.

        Raises:
            BudgetError: If it does not.
        """
        return await self._spend(lambda: self._inner.next_token(messages, labels, temperature=temperature))

    async def _spend(self, call: Callable[[], Awaitable[T]]) -> T:
        return await self._budget.spend(self.name, call, self._prices)

    async def aclose(self) -> None:
        """Close the wrapped model."""
        await self._inner.aclose()


class BudgetedPolicy:
    """A strategy policy whose decisions are booked on a budget; otherwise the policy it wraps.

    Args:
        inner: The trained policy.
        budget: Shared by all models of the run.
        name: Of the policy, for messages.
    """

    def __init__(self, inner: StrategyPolicy, budget: Budget, name: str) -> None:
        self._inner, self._budget, self._name = inner, budget, name

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names in taxonomy order."""
        return self._inner.strategies

    async def decide(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Decision:
        """Decide, if the budget allows one more call.

        Raises:
            BudgetError: If it does not.
        """
        return await self._budget.spend(self._name, lambda: self._inner.decide(scenario, turns, scope))
