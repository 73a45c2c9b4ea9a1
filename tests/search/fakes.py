"""A scripted world for search: roles whose answers are functions of the dialogue and of their seeds alone."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from esckit.errors import ParseError, UnscoredError
from esckit.ledger import Scope, derive_seed, uniform
from esckit.protocols import Decision, SeekerTurn
from esckit.search.expansion import Players
from esckit.search.mcts import Grown, grow_tree
from esckit.search.recipe import Mcts
from esckit.search.tree import Provenance, Task
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import Generation, Outcome, RubricReading, Scenario, Score, Turn, Usage

AFLOW = load_taxonomy("aflow")
CALL = Usage(calls=1, prompt_tokens=10, completion_tokens=5)
Strategies = tuple[str, ...]


def flat_prior(strategies: Strategies, seed: int) -> tuple[float, ...]:
    return (1 / 8,) * 8


def random_prior(strategies: Strategies, seed: int) -> tuple[float, ...]:
    weights = [uniform(derive_seed(seed, index)) for index in range(8)]
    return tuple(weight / sum(weights) for weight in weights)


def random_reward(strategies: Strategies, seed: int) -> float:
    return 0.5 + 0.45 * uniform(seed)


def stays(strategies: Strategies, seed: int) -> Outcome | None:
    return None


@dataclass
class World:
    """Supporter, seeker, critic and strategist in one; each rule sees the strategies so far and the call's seed.

    Attributes:
        nonsense: (role, strategies) to whether a call of this role gives nothing usable.
        jitter: Whether calls wait for a number of loop turns that depends on their seed.
    """

    reward: Callable[[Strategies, int], float] = random_reward
    prior: Callable[[Strategies, int], tuple[float, ...]] = random_prior
    outcome: Callable[[Strategies, int], Outcome | None] = stays
    nonsense: Callable[[str, Strategies], bool] = lambda role, strategies: False
    jitter: bool = False
    calls: list[tuple[str, tuple[str | int, ...], Strategies]] = field(default_factory=list)

    async def hear(self, role: str, turns: Sequence[Turn], scope: Scope) -> tuple[Strategies, int]:
        seed = scope.seed(role)
        scope.spend(role, CALL)
        strategies = tuple(turn.strategy for turn in turns if turn.strategy)
        self.calls.append((role, scope.place, strategies))
        if self.jitter:
            for _ in range(seed % 7):
                await asyncio.sleep(0)
        if self.nonsense(role, strategies):
            raise UnscoredError("nonsense") if role == "critic" else ParseError("nonsense")
        return strategies, seed

    @property
    def players(self) -> Players:
        return Players(FakeSeeker(self), FakeSupporter(self), FakeCritic(self), FakeStrategist(self))


@dataclass
class FakeSeeker:
    world: World

    async def reply(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> SeekerTurn:
        strategies, seed = await self.world.hear("seeker", turns, scope)
        outcome = self.world.outcome(strategies, seed)
        return SeekerTurn("" if outcome is Outcome.DISENGAGED else f"I hear {seed}.", outcome)


@dataclass
class FakeSupporter:
    world: World

    async def reply(self, turns: Sequence[Turn], scope: Scope, *, strategy: str | None = None) -> Generation:
        assert turns[-1].speaker == "seeker"
        _, seed = await self.world.hear("supporter", turns, scope)
        text = f"I say {seed}."
        return Generation(raw=text, reasoning=None, response=text, format_ok=True, parse_kind="untagged")


@dataclass
class FakeCritic:
    world: World

    async def score(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Score:
        assert turns[-1].speaker == "supporter"
        strategies, seed = await self.world.hear("critic", turns, scope)
        reading = RubricReading(readout="sampled", critic="fake", ratings={"strategy": 3.0})
        return Score(values={}, reward=self.world.reward(strategies, seed), reading=reading)


@dataclass
class FakeStrategist:
    world: World
    strategies: tuple[str, ...] = AFLOW.names

    async def decide(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Decision:
        assert turns[-1].speaker == "seeker"
        strategies, seed = await self.world.hear("strategist", turns, scope)
        return Decision("a search reads the prior only", self.world.prior(strategies, seed))


def settings(**changes: object) -> Mcts:
    return Mcts(**changes)


def provenance(run_seed: int = 7) -> Provenance:
    return Provenance(run_seed, AFLOW, 0, "fake", "sampled", {"critic": "fake"})


def task(number: int = 0) -> Task:
    scenario = Scenario(id=f"s-{number}", situation="An exam.", problem_type="academic pressure")
    return Task(f"s-{number}#0", scenario, (Turn(speaker="seeker", text="I failed."),), "train")


async def grow(world: World, number: int = 0, **changes: object) -> Grown:
    return await grow_tree(task(number), world.players, settings(**changes), provenance())


def grown(world: World, number: int = 0, **changes: object) -> Grown:
    return asyncio.run(grow(world, number, **changes))
