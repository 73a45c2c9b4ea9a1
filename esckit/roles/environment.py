"""One exchange: the supporter carries out a strategy, the seeker answers, the critic rates (AFlow, arXiv 2602.08826).

The environment is a function of an immutable dialogue, so search, rollout and evaluation share it with no reset and no
copy. The critic reads the dialogue up to and including the supporter's turn, not the seeker's answer to it, so both are
asked at the same time. How deep a conversation may go is its caller's business.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from esckit.errors import ModelError
from esckit.ledger import Scope
from esckit.protocols import Critic, Seeker, Supporter
from esckit.roles.asking import gather_all
from esckit.types import Failure, FailureStage, Outcome, Scenario, Score, Turn

T = TypeVar("T")


class ScoredExchange(NamedTuple):
    """What one exchange adds to a dialogue.

    Attributes:
        turns: The supporter's turn, tagged with its strategy, and the seeker's answer unless the seeker disengaged.
        score: The critic's score of the supporter's turn.
        outcome: ``DISENGAGED`` or ``RESOLVED`` if the conversation ends here, else None.
    """

    turns: tuple[Turn, ...]
    score: Score
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
        raise CallFailed(
            Failure(
                stage=stage,
                turn=int(step),
                kind=error.kind,
                attempts=error.attempts,
                message=str(error),
                place=str(place),
            )
        ) from error


@dataclass(frozen=True, slots=True)
class Environment:
    """The three roles that answer to a strategy."""

    seeker: Seeker
    supporter: Supporter
    critic: Critic

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
        turn = Turn(speaker="supporter", text=written.response, strategy=strategy)
        shown = (*turns, turn)
        score, answer = await gather_all(
            recorded("critic", scope, self.critic.score(scenario, shown, scope)),
            recorded("seeker", scope, self.seeker.reply(scenario, shown, scope)),
        )
        if answer.outcome is Outcome.DISENGAGED:
            return ScoredExchange((turn,), score, Outcome.DISENGAGED)
        return ScoredExchange((turn, Turn(speaker="seeker", text=answer.text)), score, answer.outcome)
