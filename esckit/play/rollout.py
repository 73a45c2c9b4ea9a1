"""Playing one future, and labelling futures as good or not (RLFF-ESC, arXiv 2508.12935).

A future is a candidate reply and what the conversation becomes after it. Exchange 0 holds the candidate and the
seeker's answer to it; exchanges 1 … T are played and scored. The future is resolved as soon as the critic's value
exceeds the threshold, and its reward is (last value + 1/(k+1)) / 2. A model failure ends the future with a record in
place of a number. Episodes for evaluation are played in :mod:`esckit.play.episode`.

The paper turns rewards into labels, y = 1 iff reward > δ, but does not report δ; so the rule is always the user's
choice. All comparisons are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from esckit.errors import ModelError
from esckit.ledger import Ledger, Scope
from esckit.protocols import Critic, Seeker, StrategyPolicy, Supporter
from esckit.roles.verdicts import future_reward
from esckit.types import (
    Context,
    CriticReading,
    Exchange,
    Failure,
    FailureStage,
    Future,
    Generation,
    Outcome,
    Scenario,
    Turn,
)


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays: the roles of a simulation. With a strategist, every supporter turn is given a strategy."""

    supporter: Supporter
    seeker: Seeker
    critic: Critic
    strategist: StrategyPolicy | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """How a future is played.

    Attributes:
        horizon: Exchanges after the first, T.
        threshold: The critic's value must be strictly above it for success, in [-1, 1].
        score_first_exchange: Score exchange 0 too (divisor 1) and stop there on success.
    """

    horizon: int = 8
    threshold: Fraction = Fraction(1, 2)
    score_first_exchange: bool = False


@dataclass(slots=True)
class Conversation:
    """A conversation while it is played. What was reached before a failure stays in it.

    Attributes:
        stage: Who is being asked, for the record of a failure.
    """

    scenario: Scenario
    turns: list[Turn]
    stage: FailureStage = "supporter"

    async def ask_supporter(
        self,
        supporter: Supporter,
        strategist: StrategyPolicy | None,
        scope: Scope,
        *,
        stage: FailureStage = "supporter",
    ) -> tuple[Generation, str | None]:
        """Add the supporter's turn; return its generation, and its strategy where a strategist names one.

        Raises:
            ModelError: If one of them gave nothing usable.
        """
        strategy = None
        if strategist is not None:
            self.stage = "strategist"
            strategy = (await strategist.decide(self.scenario, self.turns, scope)).strategy
        self.stage = stage
        generation = await supporter.reply(self.turns, scope, strategy=strategy)
        self.turns.append(Turn(speaker="supporter", text=generation.response, strategy=strategy))
        return generation, strategy

    async def ask_seeker(self, seeker: Seeker, scope: Scope) -> str:
        """Add the seeker's turn and return its text.

        Raises:
            ModelError: If the seeker gave nothing usable.
        """
        self.stage = "seeker"
        answer = await seeker.reply(self.scenario, self.turns, scope)
        self.turns.append(Turn(speaker="seeker", text=answer.text))
        return answer.text


def failure_of(error: ModelError, stage: FailureStage, turn: int) -> Failure:
    """Return the record of a failed call."""
    return Failure(stage=stage, turn=turn, kind=error.kind, attempts=error.attempts, message=str(error))


async def play_future(context: Context, candidate: int, *, cast: Cast, rules: Rules, run_seed: int) -> Future:
    """Return the simulated future of one candidate.

    Args:
        context: The prefix the candidate answers, ending in a seeker turn.
        candidate: Index of the candidate; it enters every seed.
        cast: The roles.
        rules: Horizon and stop rule.
        run_seed: Seed of the run.
    """
    ledger = Ledger(run_seed, context.id)
    talk = Conversation(context.scenario, list(context.turns))
    exchanges: list[Exchange] = []
    failure: Failure | None = None
    value: Fraction | None = None
    resolved, k = False, 0
    try:
        for k in range(rules.horizon + 1):
            scope = ledger.at(candidate, k)
            stage: FailureStage = "supporter" if k else "candidate"
            generation, strategy = await talk.ask_supporter(cast.supporter, cast.strategist, scope, stage=stage)
            exchanges.append(Exchange(k=k, supporter=generation, strategy=strategy))
            seeker = await talk.ask_seeker(cast.seeker, scope)
            exchanges[k] = exchanges[k].model_copy(update={"seeker": seeker})
            if k == 0 and not rules.score_first_exchange:
                continue
            talk.stage = "critic"
            reading = (await cast.critic.score(talk.scenario, talk.turns, scope)).reading
            if not isinstance(reading, CriticReading):
                raise TypeError("a future needs a resolution critic")
            exchanges[k] = exchanges[k].model_copy(update={"reading": reading})
            value = reading.fraction
            if resolved := value > rules.threshold:
                break
    except ModelError as error:
        failure = failure_of(error, talk.stage, k)
    reward = None if failure or value is None else future_reward(value, k)
    return Future(
        id=f"{context.id}:c{candidate}",
        context_id=context.id,
        dialogue_id=context.dialogue_id,
        candidate=candidate,
        run_seed=run_seed,
        outcome=Outcome.FAILED if failure else Outcome.RESOLVED if resolved else Outcome.MAX_TURNS,
        k=k,
        reward_num=None if reward is None else reward.numerator,
        reward_den=None if reward is None else reward.denominator,
        reward=None if reward is None else float(reward),
        exchanges=tuple(exchanges),
        failure=failure,
        usage=dict(sorted(ledger.usage.items())),
        reasoning=ledger.thoughts(kept={exchange.supporter.reasoning for exchange in exchanges}),
    )


@dataclass(frozen=True, slots=True)
class Labelling:
    """Labels of scored futures.

    Attributes:
        labels: True for a good future, in the order given.
        delta: The threshold used; None for the rule ``goal``.
    """

    labels: tuple[bool, ...]
    delta: Fraction | None

    @property
    def positive_share(self) -> float | None:
        """Share of good futures, in [0, 1]; None without any."""
        return sum(self.labels) / len(self.labels) if self.labels else None


def rewards(futures: Iterable[Future]) -> list[Fraction]:
    """Return the exact rewards of scored futures.

    Raises:
        ValueError: If one of them has no reward.
    """
    found = [future.fraction for future in futures]
    if any(reward is None for reward in found):
        raise ValueError("a failed future has no reward")
    return [reward for reward in found if reward is not None]


def label_goal(futures: Sequence[Future]) -> Labelling:
    """Label a future as good if it reached the goal."""
    return Labelling(tuple(future.outcome is Outcome.RESOLVED for future in futures), None)


def label_threshold(futures: Sequence[Future], delta: Fraction) -> Labelling:
    """Label a future as good if its reward is strictly above δ."""
    return Labelling(tuple(reward > delta for reward in rewards(futures)), delta)


def quantile_delta(values: Sequence[Fraction], q: Fraction) -> Fraction:
    """Return δ = sorted rewards[⌈q·N⌉ − 1].

    Args:
        values: At least one reward.
        q: In (0, 1].
    """
    return sorted(values)[math.ceil(q * len(values)) - 1]


def label_quantile(futures: Sequence[Future], q: Fraction) -> Labelling:
    """Label a future as good if its reward is strictly above the q-quantile; ties make fewer than 1 − q good."""
    if not futures:
        return Labelling((), None)
    return label_threshold(futures, quantile_delta(rewards(futures), q))
