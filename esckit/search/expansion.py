r"""Which strategy a simulation tries next (AFlow, arXiv 2602.08826), as pure functions of one node's numbers.

With prior :math:`\pi`, counts N(s,a), mean returns Q(s,a) and N(s) = Σ_a N(s,a)::

    u(s,a) = Q(s,a) + λ · π(a|s) · sqrt( N(s) / (1 + N(s,a)) )
    ρ(s)   = κ / (κ + ln(N(s) + 1))
    μ(a|s) = (1 − ρ(s)) · softmax_a( u(s,·) / τ ) + ρ(s) / |A|

A strategy is *sampled* from μ, never taken by argmax; at a node without visits it is sampled from π, since μ is uniform
there and the prior would not act where it matters most. The paper's softmax has no temperature (τ = 1).

One expansion of a search tree with its rollout, as a transaction: everything that a new node needs, or a failure.

The return of a simulation is G = z · (R_0 + R_1 + … + R_l) / (l + 1), where R_0 is the reward of the new node's own
supporter turn, R_1 … R_l those of the rollout, and z = 0 if the seeker disengaged in any of these exchanges, else 1
(AFlow, arXiv 2602.08826): the zero keeps early praise from leaking into paths that lose the seeker.

The record of one rollout, kept only where the recipe asks for it (``mcts.keep_rollouts``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import ClassVar, NamedTuple

from esckit.ledger import Ledger, uniform
from esckit.protocols import StrategyPolicy
from esckit.roles.environment import Environment, ScoredExchange, recorded
from esckit.types import Outcome, Record, RubricReading, Scenario, Score, Turn


def smoothed(prior: Sequence[float], share: float) -> tuple[float, ...]:
    """Return a prior mixed with the uniform distribution, ``(1 − e)·p + e/n``, so that no zero reaches a logarithm.

    Args:
        prior: Probabilities that sum to 1.
        share: Weight e of the uniform part, in [0, 1].
    """
    floor = share / len(prior)
    return tuple((1.0 - share) * p + floor for p in prior)


def edge_scores(
    prior: Sequence[float], visits: Sequence[int], values: Sequence[float], *, exploration: float
) -> list[float]:
    """Return u(s,·); the square root covers the whole fraction, and unvisited strategies keep Q = 0."""
    total = sum(visits)
    return [
        value + exploration * p * sqrt(total / (1 + count))
        for p, count, value in zip(prior, visits, values, strict=True)
    ]


def uniform_share(n_visits: int, kappa: float) -> float:
    """Return ρ(s) for a node with at least one visit; 0 if ``kappa`` is 0."""
    return kappa / (kappa + log(n_visits + 1))


def selection_distribution(
    prior: Sequence[float],
    visits: Sequence[int],
    values: Sequence[float],
    *,
    exploration: float,
    uniform_kappa: float,
    temperature: float,
) -> list[float]:
    """Return μ(·|s), or the prior itself at a node without visits.

    Args:
        prior: π(·|s) in taxonomy order, sum 1.
        visits: N(s,a) per strategy.
        values: Q(s,a) per strategy in [0, 1]; 0 where unvisited.
        exploration: λ ≥ 0.
        uniform_kappa: κ ≥ 0.
        temperature: τ > 0.
    """
    total = sum(visits)
    if total == 0:
        return list(prior)
    scores = edge_scores(prior, visits, values, exploration=exploration)
    best = max(scores)
    weights = [exp((score - best) / temperature) for score in scores]
    rho = uniform_share(total, uniform_kappa)
    scale = (1.0 - rho) / sum(weights)
    floor = rho / len(weights)
    return [scale * weight + floor for weight in weights]


def without(distribution: Sequence[float], blocked: Collection[int]) -> list[float]:
    """Return a distribution over the strategies that are not blocked, renormalised; at least one must be left."""
    kept = [0.0 if index in blocked else p for index, p in enumerate(distribution)]
    total = sum(kept)
    if total > 0.0:
        return [p / total for p in kept]
    # The rest can underflow at a tiny temperature without a uniform part.
    share = 1.0 / (len(kept) - len(set(blocked)))
    return [0.0 if index in blocked else share for index in range(len(kept))]


def draw(distribution: Sequence[float], uniform: float) -> int:
    """Return the index that a uniform number in [0, 1) falls on in the cumulative sum."""
    cumulative = 0.0
    last = 0
    for index, p in enumerate(distribution):
        if p > 0.0:
            cumulative += p
            last = index
            if uniform < cumulative:
                return index
    return last


def ties(prior: Sequence[float]) -> list[int]:
    """Return the indices of all strategies of the highest probability."""
    best = max(prior)
    return [index for index, p in enumerate(prior) if p == best]


def pick(tied: Sequence[int], uniform: float) -> int:
    """Return one of several equally good strategies by a uniform number in [0, 1]."""
    return tied[min(int(uniform * len(tied)), len(tied) - 1)]


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
        decision = await recorded("strategist", scope, self.strategist.decide(self.scenario, turns, scope))
        return smoothed(decision.probabilities, self.prior_smoothing)

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


class RolloutExchange(Record):
    """One exchange of a rollout, with the reward of its supporter turn."""

    turns: tuple[Turn, ...]
    reward: float
    ratings: dict[str, float] | None
    outcome: Outcome | None


class Rollout(Record):
    """What was played beyond a new node.

    Attributes:
        tree: Id of the tree.
        node: Id of the node that the rollout started from.
        value: Return of the simulation.
    """

    SCHEMA: ClassVar[str] = "esckit.rollout/1"

    tree: str
    node: str
    value: float
    exchanges: tuple[RolloutExchange, ...]


def rollout_record(tree_id: str, node_id: str, expansion: Expansion) -> Rollout:
    """Return the rollout of an expansion as a record."""
    return Rollout(
        tree=tree_id,
        node=node_id,
        value=expansion.value,
        exchanges=tuple(
            RolloutExchange(
                turns=played.turns,
                reward=played.score.reward,
                ratings=rubric_ratings(played.score),
                outcome=played.outcome,
            )
            for played in expansion.rollout
        ),
    )


def rubric_ratings(score: Score) -> dict[str, float] | None:
    """Return the ratings behind a score, None where the critic gives none (a reward model)."""
    return score.reading.ratings if isinstance(score.reading, RubricReading) else None
