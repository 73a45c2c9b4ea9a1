"""What a run may spend on models, and the decorator that stops it there.

One :class:`Budget` is shared by all models of a run; :class:`BudgetedModel` books every call on it, under the role that
asked. A resumed run starts with a fresh budget, since a budget may be changed between resumes. The workers of a cluster
have a budget each, which asks the run's own one for calls (:meth:`Budget.lend`) and hands on what was used
(:meth:`Budget.hand_on`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from esckit.errors import BackendError, BudgetError
from esckit.ledger import Scope
from esckit.models.chat import with_reasoning_apart
from esckit.protocols import Capability, ChatModel, Decision, DrawsSeveral, StrategyPolicy
from esckit.types import (
    FREE,
    ChoiceScores,
    Limits,
    Message,
    NextToken,
    Prices,
    Replies,
    Reply,
    Sampling,
    Scenario,
    Turn,
    Usage,
)

T = TypeVar("T", ChoiceScores, Decision, NextToken, Replies, Reply)
"""What a model gives, with its usage."""


@dataclass(slots=True)
class Account:
    """What one role, one unit of work or a whole run has used up.

    Attributes:
        calls: Calls to models.
        from_cache: Answers that came from the response cache and cost nothing.
        unknown_calls: Calls whose tokens the server did not count.
        cached_tokens: Prompt tokens that servers had read before; None where no server said.
        is_cost_known: False once a call had no known cost.
        seconds: The sum of what each call took, waiting for its turn included.
    """

    calls: int = 0
    from_cache: int = 0
    unknown_calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    completion_tokens: int = 0
    cost: float = 0.0
    is_cost_known: bool = True
    seconds: float = 0.0

    def add(self, usage: Usage, cost: float | None) -> None:
        """Add what a call used; a cost of None is unknown."""
        self.unknown_calls += usage.unknown_calls
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        if usage.cached_tokens is not None:
            self.cached_tokens = (self.cached_tokens or 0) + usage.cached_tokens
        self.cost += cost or 0.0
        self.is_cost_known &= cost is not None

    def take_over(self, other: Account) -> None:
        """Add what another account has used up."""
        for name in ("calls", "from_cache", "unknown_calls", "prompt_tokens", "completion_tokens", "cost", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.cached_tokens is not None:
            self.cached_tokens = (self.cached_tokens or 0) + other.cached_tokens
        self.is_cost_known &= other.is_cost_known

    def facts(self) -> dict[str, int | float | None]:
        """Return the amounts as plain data; None is unknown."""
        is_counted = not self.unknown_calls
        return {
            "calls": self.calls,
            "from_cache": self.from_cache,
            "prompt_tokens": self.prompt_tokens if is_counted else None,
            "cached_prompt_tokens": self.cached_tokens if is_counted else None,
            "completion_tokens": self.completion_tokens if is_counted else None,
            "cost": round(self.cost, 6) if self.is_cost_known else None,
        }


class Spent(NamedTuple):
    """What a worker has used up since it told last.

    Attributes:
        whole: In all.
        roles: By role.
    """

    whole: Account
    roles: Mapping[str, Account]


_UNIT: ContextVar[Account | None] = ContextVar("esckit_unit", default=None)


@contextmanager
def counted() -> Iterator[Account]:
    """Count what is asked inside the block, and in the tasks that it starts; answers of the cache are calls here."""
    account = Account()
    token = _UNIT.set(account)
    try:
        yield account
    finally:
        _UNIT.reset(token)


def _nobody() -> None:
    """Tell nobody that more was used up."""


class Budget:
    """Counts calls, tokens, cost and time of a run against its limits, and what each role used of them.

    Calls are counted before they are made, so exactly ``max_calls`` are made. Tokens and cost are known only
    afterwards: no call begins once they have reached their limit, and those in flight then are the most that a run can
    go over it. Answers of the response cache count against no limit.

    Args:
        limits: What may be spent.
        clock: Seconds on a clock that never goes back.
        permit: Waits until one more call of this process may be made; None where this budget is the run's own.

    Attributes:
        on_change: Called whenever more was used up.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        permit: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._permit = permit
        self._began_s = clock()
        self._whole = Account()
        self._roles: dict[str, Account] = {}
        self._n_lent = 0
        self.on_change: Callable[[], None] = _nobody

    def admit(self, role: str) -> None:
        """Count one more call of a role.

        Raises:
            BudgetError: If a limit is reached; the call is not counted and must not be made.
        """
        self._require_left()
        for account in self._accounts(role):
            account.calls += 1
        self.on_change()

    def _require_left(self) -> None:
        whole = self._whole
        amounts = (
            ("calls", whole.calls + self._n_lent, self.limits.max_calls),
            ("tokens", whole.prompt_tokens + whole.completion_tokens, self.limits.max_tokens),
            ("cost", whole.cost, self.limits.max_cost),
            ("hours", self._hours(), self.limits.max_hours),
        )
        for what, spent, limit in amounts:
            if limit is not None and spent >= limit:
                raise BudgetError(
                    f"the budget is used up: {spent:.6g} of {limit:.6g} {what}",
                    hint=f"What is done stays; raise budget.max_{what} and run the same command again to go on.",
                )

    def lend(self, n_wanted: int) -> int:
        """Give calls to a worker, at most as many as are left.

        Returns:
            How many, at least 1. They count as made until :meth:`settle` tells otherwise.

        Raises:
            BudgetError: If a limit is reached.
        """
        self._require_left()
        n = n_wanted if self.n_left is None else min(n_wanted, self.n_left)
        self._n_lent += n
        return n

    def settle(self, spent: Spent, *, n_unmade: int = 0) -> None:
        """Take over what a worker used.

        Args:
            spent: Its calls are no longer lent, but made.
            n_unmade: Calls that were lent to it and will not be made.
        """
        self._whole.take_over(spent.whole)
        for role, account in spent.roles.items():
            self._role(role).take_over(account)
        self._n_lent = max(0, self._n_lent - spent.whole.calls - n_unmade)
        self.on_change()

    def hand_on(self) -> Spent:
        """Return what was used since this was called last."""
        spent = Spent(self._whole, self._roles)
        self._whole, self._roles = Account(), {}
        return spent

    @property
    def n_left(self) -> int | None:
        """Calls that are neither made nor lent; None without a limit."""
        limit = self.limits.max_calls
        return None if limit is None else max(0, limit - self._whole.calls - self._n_lent)

    @asynccontextmanager
    async def call(self, role: str) -> AsyncIterator[None]:
        """Admit a call, and time it.

        Raises:
            BudgetError: As :meth:`admit`.
        """
        if self._permit is not None:
            await self._permit()
        self.admit(role)
        began_s = self._clock()
        try:
            yield
        finally:
            took_s = self._clock() - began_s
            for account in self._accounts(role):
                account.seconds += took_s

    def book(self, role: str, name: str, usage: Usage, prices: Prices | None) -> None:
        """Add what an admitted call used.

        Args:
            role: Who asked.
            name: The model that was called.
            usage: What the call used.
            prices: What the model costs; None if that is not known.

        Raises:
            BudgetError: As :meth:`require_watchable`.
        """
        cost = prices.cost(usage) if prices else None
        for account in self._accounts(role):
            account.add(usage, cost)
        self.on_change()
        self.require_watchable(name, usage, prices)

    def book_cached(self, role: str, usage: Usage, prices: Prices | None) -> None:
        """Count an answer of the response cache; for the unit of work it is a call like every other.

        Args:
            role: Who asked.
            usage: What the answer used when it was made.
            prices: What the model costs; None if that is not known.
        """
        for account in (self._whole, self._role(role)):
            account.from_cache += 1
        self.on_change()
        if (unit := _UNIT.get()) is not None:
            unit.calls += 1
            unit.from_cache += 1
            unit.add(usage, prices.cost(usage) if prices else None)

    def require_watchable(self, name: str, usage: Usage, prices: Prices | None) -> None:
        """Refuse a limit that cannot be watched.

        Args:
            name: The model.
            usage: What a call of it used, as it reports that.
            prices: What it costs; None if that is not known.

        Raises:
            BudgetError: If tokens or cost are limited, and unknown.
        """
        if usage.unknown_calls and self.limits.max_tokens is not None:
            raise _unwatched(name, "max_tokens")
        if self.limits.max_cost is not None and (prices is None or prices.cost(usage) is None):
            raise _unwatched(name, "max_cost")

    async def spend(self, role: str, name: str, call: Callable[[], Awaitable[T]], prices: Prices | None = FREE) -> T:
        """Make a call if the budget allows one more, and book what it used, also where the answer cannot be used.

        Raises:
            BudgetError: If it does not, or a limit cannot be watched.
        """
        async with self.call(role):
            try:
                answer = await call()
            except BackendError as error:
                if error.billed is not None:
                    self.book(role, name, Usage.model_validate(error.billed), prices)
                raise
        self.book(role, name, answer.usage, prices)
        return answer

    def spent(self) -> dict[str, Any]:
        """Return what was spent so far, in all and by role, for the manifest; None is unknown.

        What several processes spent is summed by :func:`esckit.ledger.total`.
        """
        roles = {
            role: account.facts() | {"seconds": round(account.seconds, 3)}
            for role, account in sorted(self._roles.items())
        }
        return {**self._whole.facts(), "hours": round(self._hours(), 4), "roles": roles}

    def _role(self, role: str) -> Account:
        return self._roles.setdefault(role, Account())

    def _accounts(self, role: str) -> tuple[Account, ...]:
        unit = _UNIT.get()
        known = (self._whole, self._role(role))
        return known if unit is None else (*known, unit)

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
        role: Who asks it.
        prices: What this model costs; None if that is not known.
    """

    def __init__(self, inner: ChatModel, budget: Budget, role: str, prices: Prices | None = FREE) -> None:
        self._inner = inner
        self._budget = budget
        self._role = role
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

    async def complete_several(self, messages: Sequence[Message], sampling: Sampling, *, seed: int, n: int) -> Replies:
        """Draw several replies in one call, if the budget allows one more.

        Raises:
            BudgetError: If it does not.
        """
        inner = self._inner
        assert isinstance(inner, DrawsSeveral)
        return await self._spend(lambda: inner.complete_several(messages, sampling, seed=seed, n=n))

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
        return await self._budget.spend(self._role, self.name, call, self._prices)

    async def aclose(self) -> None:
        """Close the wrapped model."""
        await self._inner.aclose()


class BudgetedPolicy:
    """A strategy policy whose decisions are booked on a budget; otherwise the policy it wraps.

    Args:
        inner: The trained policy.
        budget: Shared by all models of the run.
        role: Who asks it.
        name: Of the policy, for messages.
    """

    def __init__(self, inner: StrategyPolicy, budget: Budget, role: str, name: str) -> None:
        self._inner, self._budget, self._role, self._name = inner, budget, role, name

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names in taxonomy order."""
        return self._inner.strategies

    async def decide(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Decision:
        """Decide, if the budget allows one more call.

        Raises:
            BudgetError: If it does not.
        """
        return await self._budget.spend(self._role, self._name, lambda: self._inner.decide(scenario, turns, scope))
