import asyncio
from collections.abc import Sequence

import pytest

from esckit.errors import BackendError, BudgetError
from esckit.models.budget import Budget, BudgetedModel
from esckit.models.scripted import Script, ScriptedModel
from esckit.types import Limits, Message, Prices, Reply, Sampling, StopReason, Usage
from tests.fakes import FakeModel

HELLO = [Message("user", "one two three")]


def scripted(reply: str = "four five", **rule: object) -> ScriptedModel:
    return ScriptedModel(Script.model_validate({"rules": [{"replies": [reply], **rule}]}), name="scripted/test")


def test_exactly_the_allowed_calls_are_made_when_concurrent() -> None:
    budget = Budget(Limits(max_calls=5))
    model = BudgetedModel(scripted(latency_s=0.001), budget, "critic")

    async def ask_often() -> list[object]:
        calls = (model.complete(HELLO, Sampling(), seed=seed) for seed in range(20))
        return list(await asyncio.gather(*calls, return_exceptions=True))

    results = asyncio.run(ask_often())

    assert sum(isinstance(result, BudgetError) for result in results) == 15
    assert budget.spent()["calls"] == 5


def test_no_call_begins_once_the_tokens_are_used_up() -> None:
    budget = Budget(Limits(max_tokens=10))
    model = BudgetedModel(scripted(), budget, "critic")

    for _ in range(2):
        asyncio.run(model.complete(HELLO, Sampling(), seed=0))

    with pytest.raises(BudgetError, match="10 of 10 tokens") as caught:
        asyncio.run(model.complete(HELLO, Sampling(), seed=0))
    assert caught.value.exit_code == 3
    assert "max_tokens" in str(caught.value)
    amounts = {"calls": 2, "from_cache": 0, "prompt_tokens": 6, "cached_prompt_tokens": None, "completion_tokens": 4}
    amounts |= {"cost": 0.0}
    spent = budget.spent()
    assert spent["roles"].pop("critic") | {"seconds": 0} == {**amounts, "seconds": 0}
    assert spent | {"hours": 0} == {**amounts, "hours": 0, "roles": {}}


def test_cost_is_counted_by_the_prices_of_each_model() -> None:
    budget = Budget(Limits(max_cost=0.5))
    dear = BudgetedModel(scripted(), budget, "critic", Prices(prompt=100_000.0, completion=50_000.0))
    free = BudgetedModel(scripted(), budget, "critic")

    asyncio.run(free.complete(HELLO, Sampling(), seed=0))
    asyncio.run(dear.complete(HELLO, Sampling(), seed=0))
    assert budget.spent()["cost"] == pytest.approx(0.4)
    asyncio.run(dear.complete(HELLO, Sampling(), seed=0))

    with pytest.raises(BudgetError, match="cost"):
        asyncio.run(free.complete(HELLO, Sampling(), seed=0))


def test_hours_are_read_from_the_clock() -> None:
    now_s = [1000.0]
    budget = Budget(Limits(max_hours=2.0), clock=lambda: now_s[0])
    budget.admit("critic")
    now_s[0] += 7199.0
    budget.admit("critic")
    now_s[0] += 1.0

    with pytest.raises(BudgetError, match="2 of 2 hours"):
        budget.admit("critic")
    assert budget.spent()["hours"] == 2.0


def test_readouts_are_booked_and_capabilities_kept() -> None:
    budget = Budget(Limits(max_calls=2))
    inner = scripted()
    model = BudgetedModel(inner, budget, "critic")

    asyncio.run(model.score(HELLO, ["four five"]))
    asyncio.run(model.next_token(HELLO, ["a"]))

    assert (model.name, model.capabilities) == (inner.name, inner.capabilities)
    assert budget.spent()["calls"] == 2
    with pytest.raises(BudgetError):
        asyncio.run(model.score(HELLO, ["four five"]))


def test_a_call_that_fails_counts_as_a_call() -> None:
    budget = Budget(Limits())
    model = BudgetedModel(scripted(faults=[{"kind": "backend"}]), budget, "critic")

    with pytest.raises(BackendError):
        asyncio.run(model.complete(HELLO, Sampling(), seed=0))
    assert budget.spent()["calls"] == 1


def without_usage(calls: int = 1) -> FakeModel:
    return FakeModel(usage=Usage(calls=calls, unknown_calls=calls))


@pytest.mark.parametrize("limits", [Limits(max_tokens=10), Limits(max_cost=0.1)])
def test_a_limit_that_cannot_be_watched_stops_the_first_call(limits: Limits) -> None:
    model = BudgetedModel(without_usage(), Budget(limits), "critic", Prices(prompt=1.0, completion=1.0))
    with pytest.raises(BudgetError, match="cannot be watched: fake does not report"):
        asyncio.run(model.complete(HELLO, Sampling(), seed=0))


def test_a_cost_limit_is_refused_where_no_price_is_known() -> None:
    with pytest.raises(BudgetError, match=r"budget\.max_cost cannot be watched"):
        asyncio.run(
            BudgetedModel(scripted(), Budget(Limits(max_cost=1.0)), "critic", None).complete(HELLO, Sampling(), seed=0)
        )


def test_unknown_tokens_and_costs_are_none_and_not_zero() -> None:
    budget = Budget(Limits(max_calls=3))
    asyncio.run(BudgetedModel(scripted(), budget, "critic").complete(HELLO, Sampling(), seed=0))
    assert budget.spent()["cost"] == 0.0
    asyncio.run(BudgetedModel(without_usage(), budget, "critic", None).complete(HELLO, Sampling(), seed=0))
    spent = budget.spent()
    assert (spent["calls"], spent["prompt_tokens"], spent["completion_tokens"], spent["cost"]) == (2, None, None, None)


def test_what_costs_nothing_costs_nothing_without_a_count() -> None:
    budget = Budget(Limits(max_cost=1.0))
    asyncio.run(BudgetedModel(without_usage(), budget, "critic").complete(HELLO, Sampling(), seed=0))
    assert budget.spent()["cost"] == 0.0


def test_records_hold_unknown_calls_only_where_there_are_some() -> None:
    known, unknown = Usage(calls=1, prompt_tokens=3), Usage(calls=1, unknown_calls=1)
    assert "unknown_calls" not in known.model_dump_json()
    both = known + unknown
    assert Usage.model_validate_json(both.model_dump_json()) == both
    assert both.facts() == {
        "calls": 2,
        "prompt_tokens": None,
        "completion_tokens": None,
        "dropped_turns": 0,
        "unknown_calls": 1,
    }


class Refuser(FakeModel):
    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        error = BackendError("a refusal in place of an answer", kind="refusal")
        error.billed = {"calls": 1, "prompt_tokens": 30, "completion_tokens": 4}
        raise error


def test_an_answer_that_cannot_be_used_is_paid_for() -> None:
    budget = Budget(Limits(max_tokens=34))
    model = BudgetedModel(Refuser(), budget, "critic")
    with pytest.raises(BackendError):
        asyncio.run(model.complete(HELLO, Sampling(), seed=0))
    assert budget.spent()["prompt_tokens"] == 30
    with pytest.raises(BudgetError):
        asyncio.run(model.complete(HELLO, Sampling(), seed=0))


def test_prices_are_per_million_tokens() -> None:
    usage = Usage(calls=1, prompt_tokens=2_000_000, completion_tokens=500_000)
    assert Prices(prompt=2.5, completion=10.0).cost(usage) == 10.0


def test_reasoning_of_a_model_of_a_users_own_is_told_apart_too() -> None:
    class Own(FakeModel):
        async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
            return Reply("<think>a</think>b", StopReason.STOP, Usage(calls=1))

    reply = asyncio.run(BudgetedModel(Own(), Budget(Limits()), "critic").complete(HELLO, Sampling(), seed=0))
    assert (reply.text, reply.reasoning, reply.usage.reasoned) == ("b", "a", 1)
