"""How a conversation is played: a future of a candidate reply, or an episode of self-play (arXiv 2508.12935).

A future is a candidate reply and what the conversation becomes after it. Exchange 0 holds the candidate and the
seeker's answer to it; exchanges 1 … T are played and scored. The future is resolved as soon as the critic's value
exceeds the threshold, and its reward is (last value + 1/(k+1)) / 2. A model failure ends the future with a record in
place of a number.

An episode (PPDPP's protocol) is played under several critics at once. The seeker opens with the situation. In every
turn the supporter replies, the seeker answers and each critic that is not satisfied yet reads the whole conversation.
No critic's answer reaches the seeker, the supporter or any seed, so each critic's outcome is that of a run with this
critic alone. Play ends when every critic has seen its first success, or has failed, or after ``max_turns``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from esckit.errors import ModelError
from esckit.ledger import Ledger, Scope
from esckit.protocols import Critic, Seeker, SeekerTurn, StrategyPolicy, Supporter
from esckit.roles.asking import gather_all
from esckit.roles.verdicts import future_reward
from esckit.types import (
    Context,
    CriticReading,
    EpisodeTurn,
    Exchange,
    Failure,
    FailureStage,
    Future,
    Generation,
    Outcome,
    Scenario,
    Thought,
    Turn,
    TurnRatings,
    Usage,
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

    async def ask_seeker(self, seeker: Seeker, scope: Scope) -> SeekerTurn:
        """Add the seeker's turn and return it.

        Raises:
            ModelError: If the seeker gave nothing usable.
        """
        self.stage = "seeker"
        answer = await seeker.reply(self.scenario, self.turns, scope)
        self.turns.append(Turn(speaker="seeker", text=answer.text))
        return answer


def failure_of(error: ModelError, stage: FailureStage, turn: int, *, place: str | None = None) -> Failure:
    """Return the record of a failed call."""
    return Failure(stage=stage, turn=turn, kind=error.kind, attempts=error.attempts, message=str(error), place=place)


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
            seeker = (await talk.ask_seeker(cast.seeker, scope)).text
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


SUCCESS = Fraction(1, 2)
"""A critic is satisfied once its value lies strictly above this."""


_RATER = "turn_judge"

_OUR_NAMES = {"naturalness": "humanlikeness", "strategy": "strategic"}
"""Names of our ratings where the rubric's criteria are called otherwise."""


@dataclass(frozen=True, slots=True)
class EpisodeCast:
    """Who plays and who listens.

    Attributes:
        critics: By preset name.
        strategist: Names the strategy of every supporter turn; None leaves the supporter to itself.
        turn_judge: Rates every supporter turn; nothing depends on it.
    """

    supporter: Supporter
    seeker: Seeker
    critics: Mapping[str, Critic]
    strategist: StrategyPolicy | None = None
    turn_judge: Critic | None = None


class Played(NamedTuple):
    """A conversation that was played to its end.

    Attributes:
        failure: What ended play before its time.
        critic_failures: What ended one critic's reading; play went on for the others.
        usage: Calls and tokens per role.
        reasoning: What the models thought; that of the supporter stands on its turns.
    """

    turns: tuple[EpisodeTurn, ...]
    failure: Failure | None
    critic_failures: dict[str, Failure]
    usage: dict[str, Usage]
    reasoning: tuple[Thought, ...]


async def play_episode(scenario: Scenario, *, cast: EpisodeCast, max_turns: int, run_seed: int) -> Played:
    """Return the conversation that starts from a scenario.

    Args:
        scenario: The seeker's situation; its id is the unit of all seeds.
        cast: The roles.
        max_turns: Exchanges at most, T.
        run_seed: Seed of the run.
    """
    ledger, rated = Ledger(run_seed, scenario.id), Ledger(run_seed, scenario.id)
    turns: list[EpisodeTurn] = []
    failure: Failure | None = None
    critic_failures: dict[str, Failure] = {}
    talk = Conversation(scenario, [Turn(speaker="seeker", text=scenario.situation)])
    waiting = dict(cast.critics)
    for t in range(1, max_turns + 1):
        scope = ledger.at(t)
        try:
            generation, strategy = await talk.ask_supporter(cast.supporter, cast.strategist, scope)
            turns.append(EpisodeTurn(t=t, supporter=generation, strategy=strategy))
            seeker = (await talk.ask_seeker(cast.seeker, scope)).text
        except ModelError as error:
            failure = failure_of(error, talk.stage, t)
            break
        # The seed of a critic depends on its name, so that others do not move it.
        *answers, rating = await gather_all(
            *(_read(critic, talk, t, ledger.at(t, name)) for name, critic in waiting.items()),
            _rate(cast.turn_judge, talk, rated.at(t, _RATER)),
        )
        found = dict(zip(waiting, answers, strict=True))
        readings = {name: answer for name, answer in found.items() if isinstance(answer, CriticReading)}
        critic_failures |= {name: answer for name, answer in found.items() if name not in readings}
        turns[-1] = turns[-1].model_copy(update={"seeker": seeker, "readings": readings, **rating})
        waiting = {name: waiting[name] for name, reading in readings.items() if reading.fraction <= SUCCESS}
        if not waiting:
            break
    # The rubric critic books on "critic"; here it is the turn judge who spoke.
    spent = ledger.usage | ({_RATER: rated.usage["critic"]} if "critic" in rated.usage else {})
    kept = {turn.supporter.reasoning for turn in turns}
    return Played(
        turns=tuple(turns),
        failure=failure,
        critic_failures={name: critic_failures[name] for name in cast.critics if name in critic_failures},
        usage=dict(sorted(spent.items())),
        reasoning=(*ledger.thoughts(kept=kept), *rated.thoughts()),
    )


async def _read(critic: Critic, talk: Conversation, t: int, scope: Scope) -> CriticReading | Failure:
    """Ask one critic about the whole conversation."""
    try:
        score = await critic.score(talk.scenario, tuple(talk.turns), scope)
    except ModelError as error:
        return failure_of(error, "critic", t)
    if not isinstance(score.reading, CriticReading):
        raise TypeError("self-play needs resolution critics")
    return score.reading


async def _rate(judge: Critic | None, talk: Conversation, scope: Scope) -> dict[str, TurnRatings | str]:
    """Return the turn judge's fields of a turn: it rates the supporter, whose turn the seeker's answer follows."""
    if judge is None:
        return {}
    try:
        score = await judge.score(talk.scenario, tuple(talk.turns[:-1]), scope)
    except ModelError as error:
        return {"ratings_unscored": error.kind}
    return {"ratings": TurnRatings(**{_OUR_NAMES.get(name, name): int(it) for name, it in score.values.items()})}
