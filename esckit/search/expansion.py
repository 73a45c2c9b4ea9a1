"""One expansion of a search tree with its rollout, as a transaction: everything that a new node needs, or a failure.

The return of a simulation is G = z · (R_0 + R_1 + … + R_l) / (l + 1), where R_0 is the reward of the new node's own
supporter turn, R_1 … R_l those of the rollout, and z = 0 if the seeker disengaged in any of these exchanges, else 1
(AFlow, arXiv 2602.08826): the zero keeps early praise from leaking into paths that lose the seeker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from esckit.dialogue.environment import Environment, ScoredExchange, recorded
from esckit.ledger import Ledger, uniform
from esckit.protocols import StrategyPolicy
from esckit.search.selection import pick, smoothed, ties
from esckit.types import Outcome, Scenario, Turn


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


def simulation_return(rewards: Sequence[float], *, disengaged: bool) -> float:
    """Return G of one simulation, in [0, 1].

    Args:
        rewards: R_0 of the new node's turn, then R_1 … R_l of the rollout.
        disengaged: Whether the seeker left in any of these exchanges.
    """
    return 0.0 if disengaged else sum(rewards) / len(rewards)


@dataclass(frozen=True, slots=True)
class Expander:
    """Plays new exchanges of one tree.

    Attributes:
        max_depth: Depth at which a conversation ends.
        rollout_turns: Longest rollout L.
        prior_smoothing: Weight of the uniform part in every prior.
    """

    scenario: Scenario
    environment: Environment
    strategist: StrategyPolicy
    ledger: Ledger
    strategies: tuple[str, ...]
    max_depth: int
    rollout_turns: int
    prior_smoothing: float

    async def prior(self, turns: tuple[Turn, ...], place: str, step: int) -> tuple[float, ...]:
        """Return the smoothed prior of a prefix.

        Raises:
            CallFailed: If the strategist gave nothing usable.
        """
        scope = self.ledger.at(place, step)
        with recorded("strategist", scope):
            raw = await self.strategist.prior(self.scenario, turns, scope)
        return smoothed(raw, self.prior_smoothing)

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
        own = await self.environment.exchange(self.scenario, turns, self.strategies[strategy], self.ledger.at(place, 0))
        outcome = own.outcome or (Outcome.MAX_TURNS if depth == self.max_depth else None)
        if outcome is not None:
            value = simulation_return([own.score.reward], disengaged=outcome is Outcome.DISENGAGED)
            return Expansion(own, outcome, None, value, ())
        turns = (*turns, *own.turns)
        prior = await self.prior(turns, place, 0)
        rollout = await self._roll_out(turns, prior, place, min(self.rollout_turns, self.max_depth - depth))
        value = simulation_return(
            [own.score.reward, *(played.score.reward for played in rollout)],
            disengaged=bool(rollout) and rollout[-1].outcome is Outcome.DISENGAGED,
        )
        return Expansion(own, None, prior, value, rollout)

    async def _roll_out(
        self, turns: tuple[Turn, ...], prior: tuple[float, ...], place: str, horizon: int
    ) -> tuple[ScoredExchange, ...]:
        """Play on under the strategist's favourite strategies until someone ends it or the horizon is reached."""
        rollout: list[ScoredExchange] = []
        for step in range(1, horizon + 1):
            strategy = self._favourite(prior, place, step)
            played = await self.environment.exchange(
                self.scenario, turns, self.strategies[strategy], self.ledger.at(place, step)
            )
            rollout.append(played)
            if played.outcome is not None or step == horizon:
                break
            turns = (*turns, *played.turns)
            prior = await self.prior(turns, place, step)
        return tuple(rollout)

    def _favourite(self, prior: tuple[float, ...], place: str, step: int) -> int:
        tied = ties(prior)
        if len(tied) == 1:
            return tied[0]
        return pick(tied, uniform(self.ledger.at(place, step).seed("tie")))
