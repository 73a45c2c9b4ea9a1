"""Self-play of a seeker and a supporter under several critics at once (PPDPP's protocol, as in arXiv 2508.12935).

The seeker opens with the situation. In every turn the supporter replies, the seeker answers and each critic that is not
satisfied yet reads the whole conversation. No critic's answer reaches the seeker, the supporter or any seed, so each
critic's outcome is that of a run with this critic alone. Play ends when every critic has seen its first success, or has
failed, or after ``max_turns``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from esckit.errors import ModelError
from esckit.ledger import Ledger
from esckit.play.rollout import Conversation, failure_of
from esckit.protocols import Critic, Seeker, StrategyPolicy, Supporter
from esckit.roles.asking import gather_all
from esckit.types import CriticReading, Failure, Generation, Scenario, Thought, Turn, Usage

SUCCESS = Fraction(1, 2)
"""A critic is satisfied once its value lies strictly above this."""


_RATER = "turn_judge"


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


@dataclass(slots=True)
class PlayedTurn:
    """One exchange and what was said about it.

    Attributes:
        t: 1-based.
        readings: By critic that was asked and answered.
        ratings: The turn judge's, None where there is none.
        ratings_unscored: Why an asked turn judge gave none.
    """

    t: int
    supporter: Generation
    strategy: str | None
    seeker: str | None = None
    readings: dict[str, CriticReading] = field(default_factory=dict)
    ratings: dict[str, int] | None = None
    ratings_unscored: str | None = None


@dataclass(slots=True)
class Played:
    """A conversation that was played to its end.

    Attributes:
        failure: What ended play before its time.
        critic_failures: What ended one critic's reading; play went on for the others.
        usage: Calls and tokens per role.
        reasoning: What the models thought; that of the supporter stands on its turns.
    """

    turns: list[PlayedTurn] = field(default_factory=list)
    failure: Failure | None = None
    critic_failures: dict[str, Failure] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)
    reasoning: tuple[Thought, ...] = ()


async def play_episode(scenario: Scenario, *, cast: EpisodeCast, max_turns: int, run_seed: int) -> Played:
    """Return the conversation that starts from a scenario.

    Args:
        scenario: The seeker's situation; its id is the unit of all seeds.
        cast: The roles.
        max_turns: Exchanges at most, T.
        run_seed: Seed of the run.
    """
    ledger, rated = Ledger(run_seed, scenario.id), Ledger(run_seed, scenario.id)
    played = Played()
    talk = Conversation(scenario, [Turn(speaker="seeker", text=scenario.situation)])
    waiting = dict(cast.critics)
    for t in range(1, max_turns + 1):
        scope = ledger.at(t)
        try:
            turn = PlayedTurn(t, *await talk.ask_supporter(cast.supporter, cast.strategist, scope))
            played.turns.append(turn)
            turn.seeker = await talk.ask_seeker(cast.seeker, scope)
        except ModelError as error:
            played.failure = failure_of(error, talk.stage, t)
            break
        await gather_all(
            *(_read(name, critic, talk, turn, ledger, played) for name, critic in waiting.items()),
            *([_rate(cast.turn_judge, talk, turn, rated)] if cast.turn_judge else []),
        )
        waiting = {
            name: critic
            for name, critic in waiting.items()
            if name not in played.critic_failures and turn.readings[name].fraction <= SUCCESS
        }
        if not waiting:
            break
    # The rubric critic books on "critic"; here it is the turn judge who spoke.
    spent = ledger.usage | ({_RATER: rated.usage["critic"]} if "critic" in rated.usage else {})
    played.usage = dict(sorted(spent.items()))
    kept = {turn.supporter.reasoning for turn in played.turns}
    played.reasoning = (*ledger.thoughts(kept=kept), *rated.thoughts())
    return played


async def _read(
    name: str, critic: Critic, talk: Conversation, turn: PlayedTurn, ledger: Ledger, played: Played
) -> None:
    """Ask one critic about the whole conversation; its seeds depend on its name, so that others do not move them."""
    try:
        score = await critic.score(talk.scenario, tuple(talk.turns), ledger.at(turn.t, name))
    except ModelError as error:
        played.critic_failures[name] = failure_of(error, "critic", turn.t)
        return
    if not isinstance(score.reading, CriticReading):
        raise TypeError("self-play needs resolution critics")
    turn.readings[name] = score.reading


async def _rate(judge: Critic, talk: Conversation, turn: PlayedTurn, ledger: Ledger) -> None:
    """Ask the turn judge about the supporter's turn, which the seeker's answer follows."""
    try:
        score = await judge.score(talk.scenario, tuple(talk.turns[:-1]), ledger.at(turn.t, _RATER))
    except ModelError as error:
        turn.ratings_unscored = error.kind
        return
    turn.ratings = {name: int(rating) for name, rating in score.values.items()}
