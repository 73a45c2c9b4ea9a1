"""A reward model as critic: batched, and an error reaches the turn that caused it alone."""

import asyncio
from collections.abc import Sequence

import pytest

from esckit.errors import BackendError, BudgetError, NotFiniteError
from esckit.ledger import Ledger
from esckit.models.budget import Budget
from esckit.roles.critics import RewardCritic
from esckit.types import Limits, Scenario, Turn, Usage

SCENARIO = Scenario(id="s")


class Scorer:
    """Scores a reply by its length; refuses the word "long"."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def score(self, conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> list[float]:
        self.sizes.append(len(responses))
        if "long" in responses:
            raise BackendError("too many tokens", kind="too_long")
        return [len(response) / 100 for response in responses]


def turns(reply: str) -> tuple[Turn, ...]:
    return (Turn(speaker="seeker", text="Hi."), Turn(speaker="supporter", text=reply))


def rate(scorer: Scorer, *replies: str, limits: Limits = Limits()) -> list[object]:
    async def run() -> list[object]:
        critic = RewardCritic(scorer, "run/1", Budget(limits))
        scope = Ledger(1, "t").at("r", 0)
        return await asyncio.gather(
            *(critic.score(SCENARIO, turns(reply), scope) for reply in replies), return_exceptions=True
        )

    return asyncio.run(run())


def test_turns_that_wait_together_are_scored_together() -> None:
    scorer = Scorer()
    scores = rate(scorer, "a" * 10, "b" * 20, "c" * 30)
    assert [score.reward for score in scores] == [0.1, 0.2, 0.3]
    assert scorer.sizes == [3]
    assert scores[0].reading.readout == "reward_model"
    assert scores[0].reading.ratings is None


def test_a_turn_that_does_not_fit_fails_alone() -> None:
    first, second = rate(Scorer(), "a" * 10, "long")
    assert first.reward == 0.1
    assert isinstance(second, BackendError)
    assert second.kind == "too_long"


def test_a_bug_in_the_scorer_reaches_everyone() -> None:
    class Broken(Scorer):
        def score(self, conversations: object, responses: object) -> list[float]:
            raise ZeroDivisionError

    assert all(isinstance(error, ZeroDivisionError) for error in rate(Broken(), "a", "b"))


def test_a_call_is_booked() -> None:
    async def run() -> Ledger:
        ledger = Ledger(1, "t")
        await RewardCritic(Scorer(), "x", Budget(Limits())).score(SCENARIO, turns("a"), ledger.at("r", 0))
        return ledger

    assert asyncio.run(run()).usage == {"critic": Usage(calls=1)}


def test_a_budget_admits_so_many_turns_and_no_more() -> None:
    first, second, third = rate(Scorer(), "a", "b", "c", limits=Limits(max_calls=2))
    assert (first.reward, second.reward) == (0.01, 0.01)
    assert isinstance(third, BudgetError)


@pytest.mark.parametrize("n", [1, 40])
def test_any_number_of_waves_is_answered(n: int) -> None:
    async def run() -> list[float]:
        critic = RewardCritic(Scorer(), "x", Budget(Limits()))
        scope = Ledger(1, "t").at("r", 0)
        found = []
        for _ in range(3):
            scores = await asyncio.gather(*(critic.score(SCENARIO, turns("ab"), scope) for _ in range(n)))
            found += [score.reward for score in scores]
        return found

    assert asyncio.run(run()) == [0.02] * (3 * n)


def test_a_score_that_is_not_finite_fails_its_turn_alone() -> None:
    class Overflowing(Scorer):
        def score(self, conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> list[float]:
            if "hot" in responses:
                raise NotFiniteError("p of the reward model", float("nan"))
            return super().score(conversations, responses)

    first, second = rate(Overflowing(), "a" * 10, "hot")
    assert first.reward == 0.1
    assert (type(second), second.kind) == (BackendError, "not_finite")
    (alone,) = rate(Overflowing(), "hot")
    assert (type(alone), alone.kind) == (BackendError, "not_finite")
