"""Playing one future: a candidate reply, and what the conversation becomes after it (RLFF-ESC, arXiv 2508.12935).

Exchange 0 holds the candidate and the seeker's answer to it; exchanges 1 … T are played and scored. The future is
resolved as soon as the critic's value exceeds the threshold, and its reward is (last value + 1/(k+1)) / 2. A model
failure ends the future with a record in place of a number.

Label rules: which simulated futures count as good (RLFF-ESC, arXiv 2508.12935). All comparisons are exact.

The paper turns rewards into labels, y = 1 iff reward > δ, and does not report δ; so a rule is always the user's choice.
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
from esckit.types import Context, CriticReading, Exchange, Failure, FailureStage, Future, Outcome, Scenario, Turn


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays: the roles of a simulation. With a strategist, every supporter turn is told a strategy."""

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
class _Play:
    """The state of one future while it is played."""

    scenario: Scenario
    turns: list[Turn]
    exchanges: list[Exchange]
    stage: FailureStage = "candidate"


async def play_future(
    context: Context,
    candidate: int,
    *,
    cast: Cast,
    rules: Rules,
    run_seed: int,
) -> Future:
    """Return the simulated future of one candidate.

    Args:
        context: The prefix the candidate answers, ending in a seeker turn.
        candidate: Index of the candidate; it enters every seed.
        cast: The roles.
        rules: Horizon and stop rule.
        run_seed: Seed of the run.
    """
    ledger = Ledger(run_seed, context.id)
    play = _Play(context.scenario, list(context.turns), [])
    failure: Failure | None = None
    resolved = False
    k = 0
    try:
        for k in range(rules.horizon + 1):
            scored = k > 0 or rules.score_first_exchange
            reading = await _exchange(play, k, cast, ledger.at(candidate, k), scored=scored)
            if reading is not None and reading.fraction > rules.threshold:
                resolved = True
                break
    except ModelError as error:
        failure = Failure(stage=play.stage, turn=k, kind=error.kind, attempts=error.attempts, message=str(error))
    value = None if failure else _last_value(play.exchanges)
    reward = None if value is None else future_reward(value, k)
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
        exchanges=tuple(play.exchanges),
        failure=failure,
        usage=dict(sorted(ledger.usage.items())),
        reasoning=ledger.thoughts(kept={exchange.supporter.reasoning for exchange in play.exchanges}),
    )


async def _exchange(play: _Play, k: int, cast: Cast, scope: Scope, *, scored: bool) -> CriticReading | None:
    """Play exchange k onto the state; what is reached before a failure stays on it."""
    strategy = None
    if cast.strategist is not None:
        play.stage = "strategist"
        strategy = (await cast.strategist.decide(play.scenario, play.turns, scope)).strategy
    play.stage = "candidate" if k == 0 else "supporter"
    generation = await cast.supporter.reply(play.turns, scope, strategy=strategy)
    play.turns.append(Turn(speaker="supporter", text=generation.response, strategy=strategy))
    exchange = Exchange(k=k, supporter=generation, strategy=strategy)
    play.exchanges.append(exchange)
    play.stage = "seeker"
    answer = await cast.seeker.reply(play.scenario, play.turns, scope)
    play.turns.append(Turn(speaker="seeker", text=answer.text))
    play.exchanges[-1] = exchange = exchange.model_copy(update={"seeker": answer.text})
    if not scored:
        return None
    play.stage = "critic"
    score = await cast.critic.score(play.scenario, play.turns, scope)
    if not isinstance(score.reading, CriticReading):
        raise TypeError("a future needs a resolution critic")
    play.exchanges[-1] = exchange.model_copy(update={"reading": score.reading})
    return score.reading


def _last_value(exchanges: Sequence[Exchange]) -> Fraction:
    """Return the last critic value of a future that was played to its end."""
    reading = exchanges[-1].reading
    assert reading is not None
    return reading.fraction


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
