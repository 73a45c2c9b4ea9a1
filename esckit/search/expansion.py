"""One expansion of a search tree with its rollout: everything that a new node needs, or a failure and no node.

The return of a simulation is G = z · (R_0 + R_1 + … + R_l) / (l + 1), where R_0 is the reward of the new node's own
supporter turn, R_1 … R_l those of the rollout, and z = 0 if the seeker disengaged in any of these exchanges, else 1
(AFlow, arXiv 2602.08826). The zero keeps early praise from leaking into paths that lose the seeker. Which node is
expanded is decided in :mod:`esckit.search.mcts`.

In one exchange the supporter carries out a strategy, the seeker answers and the critic rates. It is a function of an
immutable dialogue, with no reset and no copy. The critic reads the dialogue up to and including the supporter's turn,
not the seeker's answer to it, so both are asked at the same time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

from esckit.errors import ModelError
from esckit.ledger import Ledger, Scope, uniform
from esckit.play.rollout import failure_of
from esckit.protocols import Critic, Seeker, StrategyPolicy, Supporter
from esckit.roles.asking import gather_all
from esckit.search.recipe import Mcts
from esckit.types import Failure, FailureStage, Outcome, Record, RubricReading, Scenario, Score, Turn

T = TypeVar("T")


class ScoredExchange(Record):
    """What one exchange adds to a dialogue.

    Attributes:
        turns: The supporter's turn, tagged with its strategy, and the seeker's answer unless the seeker disengaged.
        reward: The reward of the supporter's turn.
        ratings: The critic's ratings behind it, None where it gives none.
        outcome: ``DISENGAGED`` or ``RESOLVED`` if the conversation ends here, else None.
    """

    turns: tuple[Turn, ...]
    reward: float
    ratings: dict[str, float] | None
    outcome: Outcome | None


class CallFailed(Exception):
    """A role gave nothing usable; carries the failure to record."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


async def recorded(stage: FailureStage, scope: Scope, call: Awaitable[T]) -> T:
    """Return what a role answers.

    Args:
        stage: The role, as failures name it.
        scope: Where it is asked: (place, step).
        call: The call of the role.

    Raises:
        CallFailed: If the role raised a model error; it carries the failure to record.
    """
    try:
        return await call
    except ModelError as error:
        place, step = scope.place
        raise CallFailed(failure_of(error, stage, int(step), place=str(place))) from error


@dataclass(frozen=True, slots=True)
class Players:
    """Who plays a search: the strategist, and the three roles that answer to a strategy."""

    seeker: Seeker
    supporter: Supporter
    critic: Critic
    strategist: StrategyPolicy

    async def exchange(
        self, scenario: Scenario, turns: tuple[Turn, ...], strategy: str, scope: Scope
    ) -> ScoredExchange:
        """Play one exchange after a dialogue that ends with a seeker turn.

        Args:
            scenario: Private to the seeker and the critic's identity of the case.
            turns: The dialogue so far.
            strategy: Name of the strategy that the supporter carries out.
            scope: Where seeds come from: (place, step).

        Raises:
            CallFailed: If a role gave nothing usable; the critic's failure comes before the seeker's.
        """
        written = await recorded("supporter", scope, self.supporter.reply(turns, scope, strategy=strategy))
        added: tuple[Turn, ...] = (Turn(speaker="supporter", text=written.response, strategy=strategy),)
        shown = turns + added
        score, answer = await gather_all(
            recorded("critic", scope, self.critic.score(scenario, shown, scope)),
            recorded("seeker", scope, self.seeker.reply(scenario, shown, scope)),
        )
        if answer.outcome is not Outcome.DISENGAGED:
            added += (Turn(speaker="seeker", text=answer.text),)
        return ScoredExchange(turns=added, reward=score.reward, ratings=rubric_ratings(score), outcome=answer.outcome)


class Rollout(Record):
    """What was played beyond a new node; written only if the recipe asks for it (``mcts.keep_rollouts``).

    Attributes:
        tree: Id of the tree.
        node: Id of the node that the rollout started from.
        value: Return of the simulation.
    """

    SCHEMA: ClassVar[str] = "esckit.rollout/1"

    tree: str
    node: str
    value: float
    exchanges: tuple[ScoredExchange, ...]


class Expansion(NamedTuple):
    """A new node's content.

    Attributes:
        exchange: The node's own exchange.
        outcome: How the conversation ended there, None if it goes on.
        prior: Smoothed strategist probabilities; None if terminal.
        value: The return G in [0, 1].
        rollout: The exchanges played after it; they do not become nodes.
    """

    exchange: ScoredExchange
    outcome: Outcome | None
    prior: tuple[float, ...] | None
    value: float
    rollout: tuple[ScoredExchange, ...]


def rubric_ratings(score: Score) -> dict[str, float] | None:
    """Return the ratings behind a score, None where the critic gives none (a reward model)."""
    return score.reading.ratings if isinstance(score.reading, RubricReading) else None


def smoothed(prior: Sequence[float], share: float) -> tuple[float, ...]:
    """Return a prior mixed with the uniform distribution, ``(1 − e)·p + e/n``, so that no zero reaches a logarithm.

    Args:
        prior: Probabilities that sum to 1.
        share: Weight e of the uniform part, in [0, 1].
    """
    return tuple((1.0 - share) * p + share / len(prior) for p in prior)


def simulation_return(rewards: Sequence[float], *, disengaged: bool) -> float:
    """Return G of one simulation, in [0, 1].

    Args:
        rewards: R_0 of the new node's turn, then R_1 … R_l of the rollout.
        disengaged: Whether the seeker left in any of these exchanges.
    """
    return 0.0 if disengaged else sum(rewards) / len(rewards)


@dataclass(frozen=True, slots=True)
class Expander:
    """Plays new exchanges of one tree."""

    scenario: Scenario
    players: Players
    ledger: Ledger
    strategies: tuple[str, ...]
    knobs: Mcts

    async def prior(self, turns: tuple[Turn, ...], place: str, step: int) -> tuple[float, ...]:
        """Return the smoothed prior of a prefix.

        Raises:
            CallFailed: If the strategist gave nothing usable.
        """
        scope = self.ledger.at(place, step)
        decision = await recorded("strategist", scope, self.players.strategist.decide(self.scenario, turns, scope))
        return smoothed(decision.probabilities, self.knobs.prior_smoothing)

    async def expand(self, turns: tuple[Turn, ...], strategy: int, place: str, depth: int) -> Expansion:
        """Play the exchange of a new node, ask for its prior and roll out.

        Args:
            turns: The dialogue of the parent.
            strategy: Index of the strategy to execute.
            place: Id of the new node.
            depth: Depth of the new node.

        Raises:
            CallFailed: If any call gave nothing usable; then there is no node.
        """
        left = self.knobs.max_depth - depth
        own = await self._exchange(turns, strategy, place, 0)
        outcome = own.outcome or (Outcome.MAX_TURNS if left == 0 else None)
        prior: tuple[float, ...] | None = None
        rollout: list[ScoredExchange] = []
        if outcome is None:
            turns = (*turns, *own.turns)
            prior = await self.prior(turns, place, 0)
            rollout = await self._roll_out(turns, prior, place, min(self.knobs.rollout_turns, left))
        played = [own, *rollout]
        value = simulation_return([each.reward for each in played], disengaged=played[-1].outcome is Outcome.DISENGAGED)
        return Expansion(own, outcome, prior, value, tuple(rollout))

    async def _exchange(self, turns: tuple[Turn, ...], strategy: int, place: str, step: int) -> ScoredExchange:
        name = self.strategies[strategy]
        return await self.players.exchange(self.scenario, turns, name, self.ledger.at(place, step))

    async def _roll_out(
        self, turns: tuple[Turn, ...], prior: tuple[float, ...], place: str, horizon: int
    ) -> list[ScoredExchange]:
        """Play on under the strategist's favourite strategies until someone ends it or the horizon is reached."""
        rollout: list[ScoredExchange] = []
        for step in range(1, horizon + 1):
            tied = [index for index, p in enumerate(prior) if p == max(prior)]
            number = uniform(self.ledger.at(place, step).seed("tie")) if len(tied) > 1 else 0.0
            played = await self._exchange(turns, tied[int(number * len(tied))], place, step)
            rollout.append(played)
            if played.outcome is not None or step == horizon:
                break
            turns = (*turns, *played.turns)
            prior = await self.prior(turns, place, step)
        return rollout
