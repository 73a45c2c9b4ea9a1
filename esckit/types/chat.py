"""Talking to chat models: what is asked, what comes back, what it costs and what may be spent."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from esckit.types.record import Record

Role = Literal["system", "user", "assistant"]

_Price = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
_Amount = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


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


class Usage(Record):
    """What was asked of a model: calls, tokens in and out, and turns left out because they did not fit."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dropped_turns: int = 0

    def __add__(self, other: Usage) -> Usage:
        """Return the sum."""
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            dropped_turns=self.dropped_turns + other.dropped_turns,
        )


class Prices(Record):
    """Cost of a model per million tokens, in any one currency."""

    prompt: _Price
    completion: _Price

    def cost(self, usage: Usage) -> float:
        """Return the cost of some usage."""
        return (usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion) / 1_000_000


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
    """What a model wrote."""

    text: str
    stop_reason: StopReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """Log-probability (natural log) of one fixed answer, end-of-turn token included, and its number of tokens."""

    log_p: float
    n_tokens: int


@dataclass(frozen=True, slots=True)
class ChoiceScores:
    """Scores of several fixed answers to one prompt, in the order asked for."""

    choices: tuple[ChoiceScore, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class NextToken:
    """Next-token probability of each label, in the order asked for; ``label_mass`` is their sum, in [0, 1]."""

    probabilities: tuple[float, ...]
    label_mass: float
    usage: Usage
