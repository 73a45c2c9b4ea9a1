"""Talking to chat models: what is asked, what comes back, what it costs and what may be spent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, SerializerFunctionWrapHandler, model_serializer

from esckit.errors import NOT_FINITE, BackendError
from esckit.types.record import Record

Role = Literal["system", "user", "assistant"]

_ROUNDING = 1e-3
"""How far a probability may be above 1 and a log-probability above 0: what low precision makes of a sure thing."""

_Price = Annotated[float, Field(ge=0.0, le=1e9)]
_Amount = Annotated[float, Field(gt=0.0)]


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: Role
    content: str


class Sampling(Record):
    """Decoding settings of one role. ``temperature`` 0 is greedy; ``top_k`` None or 0 means no cut."""

    temperature: float = Field(default=1.0, ge=0.0, le=10.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=0)
    max_tokens: int = Field(default=128, ge=1)
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    stop: tuple[str, ...] = ()


class StopReason(StrEnum):
    """Why a model stopped writing."""

    STOP = "stop"
    LENGTH = "length"


_RARE = ("unknown_calls", "reasoned", "only_reasoned")


class Usage(Record):
    """What was asked of a model: calls, tokens in and out, and turns left out because they did not fit.

    Attributes:
        unknown_calls: Calls whose tokens the server did not count; while there are any, the tokens are a lower bound.
            Records hold this field and the next two only where they are not 0.
        reasoned: Replies with reasoning before, or in place of, an answer.
        only_reasoned: Those of them that ended inside the reasoning and have no answer.
    """

    calls: NonNegativeInt = 0
    prompt_tokens: NonNegativeInt = 0
    completion_tokens: NonNegativeInt = 0
    dropped_turns: NonNegativeInt = 0
    unknown_calls: NonNegativeInt = 0
    reasoned: NonNegativeInt = 0
    only_reasoned: NonNegativeInt = 0

    def __add__(self, other: Usage) -> Usage:
        """Return the sum."""
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            dropped_turns=self.dropped_turns + other.dropped_turns,
            unknown_calls=self.unknown_calls + other.unknown_calls,
            reasoned=self.reasoned + other.reasoned,
            only_reasoned=self.only_reasoned + other.only_reasoned,
        )

    def facts(self) -> dict[str, int | None]:
        """Return the counts for a summary: tokens are None where the server did not count them all."""
        known = self.model_dump()
        return known | dict.fromkeys(("prompt_tokens", "completion_tokens")) if self.unknown_calls else known

    @model_serializer(mode="wrap")
    def _without_rare_zeros(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        return {name: n for name, n in fields.items() if n or name not in _RARE}


class Prices(Record):
    """Cost of a model per million tokens, in any one currency."""

    prompt: _Price
    completion: _Price

    def cost(self, usage: Usage) -> float | None:
        """Return the cost of some usage; None where the tokens are unknown and not free."""
        if usage.unknown_calls and (self.prompt or self.completion):
            return None
        return (usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion) / 1_000_000


FREE = Prices(prompt=0.0, completion=0.0)


class Limits(Record):
    """What a run may use up, the ``budget`` of a recipe; None means no limit.

    Attributes:
        max_calls: Calls to models.
        max_tokens: Prompt and completion tokens together.
        max_cost: In the currency of the models' prices.
        max_hours: Wall-clock hours of one go.
    """

    max_calls: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    max_cost: _Amount | None = None
    max_hours: _Amount | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model wrote; backends make it with :func:`esckit.models.reasoning.make_reply`.

    Attributes:
        text: The answer, without any reasoning; blank if the model wrote none.
        reasoning: What the model thought before it answered, None if it did not; never an utterance or a verdict.
        raw: Reasoning and answer together with the marks between them; None if that is the text.
    """

    text: str
    stop_reason: StopReason
    usage: Usage
    reasoning: str | None = None
    raw: str | None = None

    @property
    def whole(self) -> str:
        """Reasoning and answer as the model wrote them."""
        return self.text if self.raw is None else self.raw

    @property
    def only_reasoned(self) -> bool:
        """Whether the model stopped, or was cut, inside its reasoning: there is no answer."""
        return self.reasoning is not None and not self.text.strip()


class Thought(Record):
    """The reasoning of one reply.

    Attributes:
        role: Who thought, with the number of the sample where several are asked for (``critic.3``).
        place: Where in the unit of work, as seeds name it: ``0/1`` is candidate 0, exchange 1 of a future.
        text: The reasoning; never shown to another role.
    """

    role: str
    place: str
    text: str


class Reasoned(Record):
    """Base of records of a unit of work in which models may have reasoned.

    Attributes:
        reasoning: By place and role, in the order of the attempts; records hold the field only where it is not empty.
    """

    reasoning: tuple[Thought, ...] = ()

    @model_serializer(mode="wrap")
    def _without_empty_reasoning(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        return fields if self.reasoning else {name: value for name, value in fields.items() if name != "reasoning"}


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """Log-probability (natural log) of one fixed answer, end-of-turn token included, and its number of tokens.

    Raises:
        BackendError: ``not_finite`` if it is no finite number of at most 0.
    """

    log_p: float
    n_tokens: int

    def __post_init__(self) -> None:
        """Refuse what is no log-probability, whichever model gave it."""
        if not -math.inf < self.log_p <= _ROUNDING:
            raise BackendError(f"a log-probability of {self.log_p}", kind=NOT_FINITE, expected="a finite number")


@dataclass(frozen=True, slots=True)
class ChoiceScores:
    """Scores of several fixed answers to one prompt, in the order asked for."""

    choices: tuple[ChoiceScore, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class NextToken:
    """Next-token probability of each label, in the order asked for; ``label_mass`` is their sum, in [0, 1].

    Raises:
        BackendError: ``not_finite`` if one of them is no probability.
    """

    probabilities: tuple[float, ...]
    label_mass: float
    usage: Usage

    def __post_init__(self) -> None:
        """Refuse what is no probability, whichever model gave it."""
        for p in (*self.probabilities, self.label_mass):
            if not 0.0 <= p <= 1.0 + _ROUNDING:
                raise BackendError(f"a probability of {p}", kind=NOT_FINITE, expected="a number from 0 to 1")
