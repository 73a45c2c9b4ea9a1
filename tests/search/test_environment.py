"""One exchange: who sees what, what runs at once, and which failure is recorded."""

import asyncio
from dataclasses import dataclass, field

import pytest

from esckit.errors import BackendError, BudgetError, EsckitError, ParseError, UnscoredError
from esckit.ledger import Ledger
from esckit.protocols import SeekerTurn
from esckit.roles.asking import gather_all
from esckit.search.expansion import CallFailed, Players, ScoredExchange
from esckit.types import Generation, Outcome, RubricReading, Scenario, Score, Turn
from tests.search.fakes import FakeStrategist, World

SCENARIO = Scenario(id="s")
OPENING = (Turn(speaker="seeker", text="I failed."),)


@dataclass
class Roles:
    answer: SeekerTurn = field(default_factory=lambda: SeekerTurn("It does."))
    errors: dict[str, EsckitError] = field(default_factory=dict)
    seen: dict[str, tuple[Turn, ...]] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)

    async def act(self, role, turns, steps):
        self.seen[role] = tuple(turns)
        for _ in range(steps):
            await asyncio.sleep(0)
        self.ended.append(role)
        if role in self.errors:
            raise self.errors[role]


@dataclass
class Seeker:
    roles: Roles

    async def reply(self, scenario, turns, scope):
        await self.roles.act("seeker", turns, 3)
        return self.roles.answer


@dataclass
class Supporter:
    roles: Roles

    async def reply(self, turns, scope, *, strategy=None):
        await self.roles.act("supporter", turns, 1)
        return Generation(raw="x", reasoning=None, response="That hurts.", format_ok=True, parse_kind="untagged")


@dataclass
class Critic:
    roles: Roles

    async def score(self, scenario, turns, scope):
        await self.roles.act("critic", turns, 1)
        return Score(values={}, reward=0.8, reading=RubricReading(readout="sampled", critic="c", ratings={}))


def exchange(roles: Roles) -> ScoredExchange:
    players = Players(Seeker(roles), Supporter(roles), Critic(roles), FakeStrategist(World()))
    scope = Ledger(7, "t").at("r.EV", 2)
    return asyncio.run(players.exchange(SCENARIO, OPENING, "Emotional Validation", scope))


def test_an_exchange_adds_a_tagged_turn_and_its_answer() -> None:
    roles = Roles()
    found = exchange(roles)
    turn = Turn(speaker="supporter", text="That hurts.", strategy="Emotional Validation")
    assert found.turns == (turn, Turn(speaker="seeker", text="It does."))
    assert (found.reward, found.outcome) == (0.8, None)
    assert roles.seen == {"supporter": OPENING, "critic": (*OPENING, turn), "seeker": (*OPENING, turn)}


@pytest.mark.parametrize(
    ("answer", "n_turns"), [(SeekerTurn("Thanks.", Outcome.RESOLVED), 2), (SeekerTurn("", Outcome.DISENGAGED), 1)]
)
def test_ends_are_reported_and_a_seeker_who_left_says_nothing(answer: SeekerTurn, n_turns: int) -> None:
    found = exchange(Roles(answer=answer))
    assert (found.outcome, len(found.turns)) == (answer.outcome, n_turns)


@pytest.mark.parametrize(
    ("role", "error"),
    [
        ("supporter", ParseError("a blank reply", kind="blank")),
        ("seeker", BackendError("no connection")),
        ("critic", UnscoredError("no rating")),
    ],
)
def test_a_model_error_becomes_a_failure_with_its_place(role: str, error: ParseError) -> None:
    error.attempts = 3
    with pytest.raises(CallFailed) as caught:
        exchange(Roles(errors={role: error}))
    failure = caught.value.failure
    assert (failure.stage, failure.place, failure.turn, failure.attempts) == (role, "r.EV", 2, 3)
    assert (failure.kind, failure.message) == (error.kind, str(error))


def test_both_calls_end_and_the_critic_is_named_first() -> None:
    roles = Roles(errors={"critic": UnscoredError("no rating"), "seeker": ParseError("blank")})
    with pytest.raises(CallFailed) as caught:
        exchange(roles)
    assert caught.value.failure.stage == "critic"
    assert roles.ended == ["supporter", "critic", "seeker"]


def test_other_errors_pass_through() -> None:
    with pytest.raises(BudgetError):
        exchange(Roles(errors={"critic": BudgetError("no calls left")}))


def test_results_keep_the_order_of_the_calls() -> None:
    async def late(value: int) -> int:
        for _ in range(5 - value):
            await asyncio.sleep(0)
        return value

    async def together() -> list[int]:
        return await gather_all(late(1), late(4))

    assert asyncio.run(together()) == [1, 4]
