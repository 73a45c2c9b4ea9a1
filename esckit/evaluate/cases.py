"""The records of an evaluation: one per case, scored or not.

Cases are written to ``examples/<suite>.jsonl`` (self-play to ``episodes.jsonl``), and every metric can be recomputed
from them: no field is computed from another one. A run folder holds texts of a corpus only here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from esckit.types import CriticReading, Failure, Generation, ParseKind, Reasoned, Record, Scenario, Usage

Stage = Literal["Exploration", "Comforting", "Action"]

STAGES: tuple[Stage, ...] = ("Exploration", "Comforting", "Action")
"""The stages of a supportive conversation, by position (AFlow, arXiv 2602.08826)."""

MOSTLY_UNPARSED = "mostly_unparsed"

MALFORMED: tuple[ParseKind, ...] = ("closed_response", "open_response", "untagged")
"""How a reply was found in a malformed output; an output without any reply is unscored as ``blank``."""


def stage_of(index: int, n_turns: int) -> Stage:
    """Return the stage of the 0-based supporter turn ``index`` of ``n_turns`` (T').

    Exploration if 3i < T' − 1, Comforting if 3i < 2(T' − 1), else Action; the only turn of a dialogue is Exploration.
    """
    if n_turns == 1 or 3 * index < n_turns - 1:
        return "Exploration"
    return "Comforting" if 3 * index < 2 * (n_turns - 1) else "Action"


class Case(Reasoned):
    """Base of every case.

    Attributes:
        ANSWERS: The role whose answer the case holds: it failed if the case is unscored.
        READS: The role that reads the answer.
        unscored: Why the case has no value (``backend``, ``blank``, ``unparsed``, ``missing`` …); None if scored.
        statistics: Per-case numbers for readers; metrics never read them.
    """

    ANSWERS: ClassVar[str] = "supporter"
    READS: ClassVar[str] = "judge"

    id: str
    dialogue_id: str
    unscored: str | None = None
    statistics: dict[str, tuple[float, ...]] = Field(default_factory=dict)

    def failures(self) -> Iterator[tuple[str, str]]:
        """Yield which role failed, and how; nothing if everything is scored."""
        if self.unscored is not None:
            yield self.ANSWERS, self.unscored
        for kind in self._unread():
            if kind is not None:
                yield self.READS, kind

    def _unread(self) -> Iterable[str | None]:
        """Return why the reader gave no value, once for each time; None where it did."""
        return ()


class StrategyCase(Case):
    """One next-strategy prediction.

    Attributes:
        gold: Gold label (the first of a merged turn).
        gold_all: All labels of the merged turn; empty where the unit is the utterance.
        predicted: The predicted strategy in the taxonomy, None if unscored.
        probabilities: The strategist's distribution in taxonomy order, None if it gives none.
        turn: 0-based index among the supporter turns of the dialogue.
        n_turns: Supporter turns of the dialogue.
    """

    SCHEMA: ClassVar[str] = "esckit.case.strategy/1"
    ANSWERS: ClassVar[str] = "strategist"

    gold: str
    gold_all: tuple[str, ...] = ()
    predicted: str | None = None
    probabilities: tuple[float, ...] | None = None
    turn: int = Field(default=0, ge=0)
    n_turns: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _answered_or_not(self) -> Self:
        if (self.predicted is None) == (self.unscored is None):
            raise ValueError("a strategy case has either a prediction or a reason")
        return self


class ResponseCase(Case):
    """One generated reply against the gold supporter turn.

    Attributes:
        context_id: The context it answers.
        reply: The reply alone, without reasoning or tags; None if unscored.
        reference: The gold turn.
        strategy: The strategy that the supporter was told, None if none.
        parse_kind: How the reply was found in the output, None where a file gave it.
        format_ok: Whether the output had the agreed form, None where a file gave the reply.
        nll: Summed negative log-likelihood (nats) of the reply under the scorer, None without one.
        nll_unscored: Why an asked scorer gave none.
        n_scorer_tokens: Tokens that ``nll`` is summed over.
    """

    SCHEMA: ClassVar[str] = "esckit.case.response/1"
    READS: ClassVar[str] = "scorer"

    context_id: str
    reply: str | None = None
    reference: str
    strategy: str | None = None
    parse_kind: ParseKind | None = None
    format_ok: bool | None = None
    nll: float | None = None
    nll_unscored: str | None = None
    n_scorer_tokens: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _answered_or_not(self) -> Self:
        if (self.reply is None or not self.reply.strip()) and self.unscored is None:
            raise ValueError("a blank reply is an unscored case")
        return self

    def _unread(self) -> tuple[str | None, ...]:
        return (self.nll_unscored,)


class TurnRatings(Record):
    """The turn judge's four ratings, integers 1-5 (AFlow, arXiv 2602.08826)."""

    empathy: int = Field(ge=1, le=5)
    information: int = Field(ge=1, le=5)
    humanlikeness: int = Field(ge=1, le=5)
    strategic: int = Field(ge=1, le=5)

    @property
    def reward(self) -> float:
        """R = (0.1·E + 0.1·I + 0.1·H + 0.2·S)/2.5, in [0.2, 1]."""
        return (self.empathy + self.information + self.humanlikeness + 2 * self.strategic) / 25


class EpisodeTurn(Record):
    """One exchange of self-play and what critics and the turn judge said after it.

    Attributes:
        t: 1-based turn.
        strategy: The strategy that the supporter was told, None without a strategist.
        seeker: The seeker's answer; None if it failed.
        readings: One reading per critic preset that was still asked.
        ratings: The turn judge's ratings; None without a judge, or where it gave no readable answer.
        ratings_unscored: Why an asked judge gave none.
    """

    t: int = Field(ge=1)
    supporter: Generation
    strategy: str | None = None
    seeker: str | None = None
    readings: dict[str, CriticReading] = Field(default_factory=dict)
    ratings: TurnRatings | None = None
    ratings_unscored: str | None = None


class Episode(Case):
    """One self-played dialogue; ``unscored`` stays None, since every critic has its own outcome.

    Attributes:
        id: The scenario's id, also the dialogue's.
        max_turns: T of the protocol.
        critics: Presets that were asked.
        failure: What ended play before its time; None if it went to its end.
        critic_failures: What ended one critic's reading; play went on for the others.
    """

    SCHEMA: ClassVar[str] = "esckit.episode/1"

    scenario: Scenario
    run_seed: int
    max_turns: int = Field(ge=1)
    critics: tuple[str, ...]
    turns: tuple[EpisodeTurn, ...]
    failure: Failure | None = None
    critic_failures: dict[str, Failure] = Field(default_factory=dict)
    usage: dict[str, Usage] = Field(default_factory=dict)

    def failures(self) -> Iterator[tuple[str, str]]:
        """Yield which role failed, and how.

        A dialogue in which half of a critic's answers or more were unreadable somewhere has a value of little worth.
        """
        for failure in (self.failure, *self.critic_failures.values()):
            if failure is not None:
                yield failure.stage, failure.kind
        if any(reading.is_mostly_unparsed for turn in self.turns for reading in turn.readings.values()):
            yield "critic", MOSTLY_UNPARSED
        yield from super().failures()

    def _unread(self) -> Iterator[str | None]:
        return (turn.ratings_unscored for turn in self.turns)


Verdict = Literal["1", "2", "tie"]

Order = Literal["AB", "BA"]


class Judgement(Record):
    """The judge's answer for one order of the two replies.

    Attributes:
        order: Which system's reply was shown as "1" first; A is the system under test.
        verdicts: Answer per dimension, as given; a dimension without a readable answer is absent.
        unscored: Why there is no answer at all.
    """

    order: Order
    verdicts: dict[str, Verdict] = Field(default_factory=dict)
    unscored: str | None = None


class PairCase(Case):
    """One comparison of two replies to one context.

    Attributes:
        judgements: One per order asked, in the order asked.
        n_words_a: Words of the reply of the system under test.
        n_words_b: Words of the opponent's reply.
    """

    SCHEMA: ClassVar[str] = "esckit.case.pairwise/1"

    context_id: str
    reply_a: str | None = None
    reply_b: str | None = None
    judgements: tuple[Judgement, ...] = ()
    n_words_a: int = 0
    n_words_b: int = 0

    def _unread(self) -> Iterator[str | None]:
        return (judgement.unscored for judgement in self.judgements)


class RewardCase(Case):
    """One scored future and what the reward model says of its candidate.

    Attributes:
        context_id: The context whose candidates are compared with each other.
        p: The model's probability of y = 1; None if unscored.
        y: Label by the model's own rule.
        reward_num: Numerator of the simulated reward.
        reward_den: Its denominator.
        n_words: Words of the candidate's reply.
        p_untrained: Probability under the untrained head, None if not asked.
    """

    SCHEMA: ClassVar[str] = "esckit.case.reward/1"
    ANSWERS: ClassVar[str] = "reward"

    context_id: str
    p: float | None = Field(default=None, ge=0.0, le=1.0)
    y: bool
    reward_num: int
    reward_den: int = Field(ge=1)
    n_words: int = Field(default=0, ge=0)
    p_untrained: float | None = Field(default=None, ge=0.0, le=1.0)

    @property
    def reward(self) -> Fraction:
        """The simulated reward, exactly."""
        return Fraction(self.reward_num, self.reward_den)


class ProbeCase(Case):
    """A reply to one crisis probe or control.

    Attributes:
        kind: ``crisis`` or ``control``.
        category: Group of the probe.
        reply: The reply, None if unscored.
        judge: The judge's yes or no per question; a question without a readable answer is absent.
        judge_unscored: Why an answer is absent.
    """

    SCHEMA: ClassVar[str] = "esckit.case.safety/1"

    kind: Literal["crisis", "control"]
    category: str
    reply: str | None = None
    judge: dict[str, bool] = Field(default_factory=dict)
    judge_unscored: str | None = None

    def _unread(self) -> tuple[str | None, ...]:
        return (self.judge_unscored,)


class SycophancyReading(Record):
    """The judge's yes or no on one reply; None where it gave no readable answer."""

    endorses: bool | None = None
    contradicts: bool | None = None
    acknowledges: bool | None = None


class SycophancyCase(Case):
    """The replies to one sycophancy probe or control.

    Attributes:
        kind: ``false`` if the seeker's claim is false, ``true`` for a control.
        push_back: True if the probe has a second turn that pushes back.
        replies: One, or two with a push-back.
        readings: The judge's reading of each reply.
    """

    SCHEMA: ClassVar[str] = "esckit.case.sycophancy/1"

    kind: Literal["false", "true"]
    category: str
    push_back: bool = False
    replies: tuple[str, ...] = ()
    readings: tuple[SycophancyReading, ...] = ()
    judge_unscored: str | None = None

    def _unread(self) -> tuple[str | None, ...]:
        return (self.judge_unscored,)
