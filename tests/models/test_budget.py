import asyncio

import pytest

from esckit.errors import BackendError, BudgetError
from esckit.models.budget import Budget, BudgetedModel
from esckit.models.script import Script
from esckit.models.scripted import ScriptedModel
from esckit.types import Limits, Message, Prices, Sampling, Usage

HELLO = [Message("user", "one two three")]


def scripted(reply: str = "four five", **rule: object) -> ScriptedModel:
    return ScriptedModel(Script.model_validate({"rules": [{"replies": [reply], **rule}]}), name="scripted/test")


def test_exactly_the_allowed_calls_are_made_also_when_they_are_concurrent() -> None:
    budget = Budget(Limits(max_calls=5))
    model = BudgetedModel(scripted(latency_s=0.001), budget)

    async def ask_often() -> list[object]:
        calls = (model.complete(HELLO, Sampling(), seed=seed) for seed in range(20))
        return list(await asyncio.gather(*calls, return_exceptions=True))

    results = asyncio.run(ask_often())

    assert sum(isinstance(result, BudgetError) for result in results) == 15
    assert budget.spent()["calls"] == 5


def test_no_call_begins_once_the_tokens_are_used_up() -> None:
    budget = Budget(Limits(max_tokens=10))
    model = BudgetedModel(scripted(), budget)

    for _ in range(2):
        asyncio.run(model.complete(HELLO, Sampling(), seed=0))

    with pytest.raises(BudgetError, match="10 of 10 tokens") as caught:
        asyncio.run(model.complete(HELLO, Sampling(), seed=0))
    assert caught.value.exit_code == 3
    assert "max_tokens" in str(caught.value)
    assert budget.spent() | {"hours": 0} == {
        "calls": 2,
        "prompt_tokens": 6,
        "completion_tokens": 4,
        "cost": 0.0,
        "hours": 0,
    }


def test_cost_is_counted_by_the_prices_of_each_model() -> None:
    budget = Budget(Limits(max_cost=0.5))
    dear = BudgetedModel(scripted(), budget, Prices(prompt=100_000.0, completion=50_000.0))
    free = BudgetedModel(scripted(), budget)

    asyncio.run(free.complete(HELLO, Sampling(), seed=0))
    asyncio.run(dear.complete(HELLO, Sampling(), seed=0))
    assert budget.spent()["cost"] == pytest.approx(0.4)
    asyncio.run(dear.complete(HELLO, Sampling(), seed=0))

    with pytest.raises(BudgetError, match="cost"):
        asyncio.run(free.complete(HELLO, Sampling(), seed=0))


def test_hours_are_read_from_the_clock() -> None:
    now_s = [1000.0]
    budget = Budget(Limits(max_hours=2.0), clock=lambda: now_s[0])
    budget.admit()
    now_s[0] += 7199.0
    budget.admit()
    now_s[0] += 1.0

    with pytest.raises(BudgetError, match="2 of 2 hours"):
        budget.admit()
    assert budget.spent()["hours"] == 2.0


def test_readouts_are_booked_and_capabilities_kept() -> None:
    budget = Budget(Limits(max_calls=2))
    inner = scripted()
    model = BudgetedModel(inner, budget)

    asyncio.run(model.score(HELLO, ["four five"]))
    asyncio.run(model.next_token(HELLO, ["a"]))

    assert (model.name, model.capabilities) == (inner.name, inner.capabilities)
    assert budget.spent()["calls"] == 2
    with pytest.raises(BudgetError):
        asyncio.run(model.score(HELLO, ["four five"]))


def test_a_call_that_fails_counts_as_a_call() -> None:
    budget = Budget(Limits())
    model = BudgetedModel(scripted(faults=[{"kind": "backend"}]), budget)

    with pytest.raises(BackendError):
        asyncio.run(model.complete(HELLO, Sampling(), seed=0))
    assert budget.spent()["calls"] == 1


def test_prices_are_per_million_tokens() -> None:
    usage = Usage(calls=1, prompt_tokens=2_000_000, completion_tokens=500_000)
    assert Prices(prompt=2.5, completion=10.0).cost(usage) == 10.0
