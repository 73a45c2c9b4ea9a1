"""What roles say and critics read, and the simulated futures that are made of it."""

from __future__ import annotations

from enum import StrEnum
from fractions import Fraction
from typing import ClassVar, Literal

from pydantic import Field

from esckit.types.chat import Reasoned, Usage
from esckit.types.record import Record

ParseKind = Literal["ok", "closed_response", "open_response", "untagged", "blank"]
FailureStage = Literal["candidate", "supporter", "seeker", "critic", "strategist"]


class Generation(Record):
    """A supporter's output, taken apart.

    Attributes:
        raw: The text as the model wrote it.
        reasoning: The text inside ``<think>``, None if there is none; never shown to another role.
        response: The reply itself.
        format_ok: True if the output has exactly the agreed form.
        parse_kind: How the reply was found.
    """

    raw: str
    reasoning: str | None
    response: str
    format_ok: bool
    parse_kind: ParseKind


class Failure(Record):
    """A model failure, recorded in place of what it prevented."""

    stage: FailureStage
    turn: int
    kind: str
    attempts: int
    message: str
    place: str | None = None


class CriticReading(Record):
    """One reading of the resolution critic.

    Attributes:
        readout: ``sampled`` or ``expected``.
        critic: Preset and prompt digest, ``rlff7/<digest>``.
        counts: Parsed answers per level in preset order; None for ``expected``.
        weights: Probability per level in preset order; None for ``sampled``.
        name_mass: Probability that the critic answers one of the level names; None for ``sampled``.
        num: Numerator of the value as an exact fraction.
        den: Denominator of the value.
        value: The same as a float in [-1, 1], for reading only.
        compat_zero: True if nothing was parsed and the PPDPP rule put 0 in place.
    """

    readout: Literal["sampled", "expected"]
    critic: str
    counts: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None
    name_mass: float | None = None
    n_parsed: int = 0
    n_unparsed: int = 0
    unparsed: tuple[str, ...] = ()
    num: int
    den: int
    value: float
    attempts: int = 1
    compat_zero: bool = False

    @property
    def fraction(self) -> Fraction:
        """The value, exactly."""
        return Fraction(self.num, self.den)

    @property
    def is_mostly_unparsed(self) -> bool:
        """Whether half of the answers or more were unreadable; a zero that the recipe asked for is not meant."""
        return not self.compat_zero and 0 < self.n_unparsed >= self.n_parsed


class RubricReading(Record):
    """One reading of the AFlow rubric: ratings 1-5 per criterion (real-valued with ``expected``)."""

    readout: Literal["sampled", "expected", "reward_model"]
    critic: str
    ratings: dict[str, float] | None
    label_mass: float | None = None


class Score(Record):
    """A critic's numbers per criterion, and the one number after weighting."""

    values: dict[str, float]
    reward: float
    reading: CriticReading | RubricReading


class Outcome(StrEnum):
    """How an episode, a future or a path ended."""

    RESOLVED = "RESOLVED"
    DISENGAGED = "DISENGAGED"
    MAX_TURNS = "MAX_TURNS"
    FAILED = "FAILED"


class Exchange(Record):
    """One supporter turn, the seeker's answer to it, and the critic's reading after it.

    Attributes:
        k: 0 for the exchange that holds the candidate, then 1, 2, …
        strategy: The strategy that the supporter was told, None without a strategist.
        seeker: The seeker's answer; None if it failed.
        reading: None where the critic was not asked, or failed.
    """

    k: int
    supporter: Generation
    strategy: str | None = None
    seeker: str | None = None
    reading: CriticReading | None = None


class Future(Reasoned):
    """The simulated continuation of one candidate.

    Attributes:
        exchanges: The whole future; exchange 0 holds the candidate.
        k: Exchanges played after the first and scored.
        reward_num: Numerator of the reward as an exact fraction; None if the future failed.
        reward_den: Denominator of the reward.
        reward: The same as a float, for reading only.
        usage: Calls and tokens per role.
    """

    SCHEMA: ClassVar[str] = "esckit.future/1"

    id: str
    context_id: str
    dialogue_id: str
    candidate: int
    run_seed: int
    outcome: Outcome
    k: int
    reward_num: int | None = None
    reward_den: int | None = None
    reward: float | None = None
    exchanges: tuple[Exchange, ...] = ()
    failure: Failure | None = None
    usage: dict[str, Usage] = Field(default_factory=dict)

    @property
    def fraction(self) -> Fraction | None:
        """The reward, exactly; None if the future failed."""
        if self.reward_num is None or self.reward_den is None:
            return None
        return Fraction(self.reward_num, self.reward_den)
