"""What the suites hand over: one record per case, scored or not.

Cases are written to ``examples/<suite>.jsonl`` and every metric can be recomputed from them: nothing here is computed
from another field. Texts of a corpus stand here and nowhere else in a run folder.
"""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from esckit.types import CriticReading, Failure, Generation, ParseKind, Reasoned, Record, Scenario, Usage

MALFORMED: tuple[ParseKind, ...] = ("closed_response", "open_response", "untagged")
"""How a reply was found in a malformed output; an output without any reply is unscored as ``blank``."""


class Case(Reasoned):
    """Base of every case.

    Attributes:
        unscored: Why the case has no value (``backend``, ``blank``, ``unparsed``, ``missing`` …); None if scored.
        statistics: Per-case numbers for readers; metrics never read them.
    """

    id: str
    dialogue_id: str
    unscored: str | None = None
    statistics: dict[str, tuple[float, ...]] = Field(default_factory=dict)


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
