"""The chat-completions interface as data: what a request says, what a refusal names, what an answer holds.

Pure functions and shapes; who talks to the server is :mod:`esckit.models.endpoint`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from esckit.complaints import complaint
from esckit.errors import BackendError
from esckit.types import Message, Sampling, StopReason, Usage

MAX_ALTERNATIVES = 20
_FEWER_ALTERNATIVES = {20: 10, 10: 5}
_SEED_MASK = 0x7FFF_FFFF
_NEUTRAL: Mapping[str, object] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
_EXTENSIONS = ("top_k", "repetition_penalty")
_PLAIN_WORDS = ("temperature", "stop", "seed", "model", "messages")
_DROPPABLE = (*_NEUTRAL, "stop", "seed")
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not (?:allowed|permitted|available)"
    r"|additional propert|extra_forbidden",
    re.IGNORECASE,
)


# ---------------------------------------------------------------- requests


def sampling_fields(sampling: Sampling, seed: int) -> dict[str, Any]:
    """Return the request fields of a role's sampling.

    Neutral values are said too, since a server may have other defaults of its own (vLLM takes them from the model).
    Many servers keep seeds in 32 signed bits, so only the low 31 bits of a seed are sent.
    """
    fields: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or 0,
        "repetition_penalty": sampling.repetition_penalty,
        "max_tokens": sampling.max_tokens,
        "seed": seed & _SEED_MASK,
    }
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    return fields


class ServerTaste:
    """What one server takes, learnt from what it refuses.

    Args:
        lacks: Sampling fields known from the start to be refused.

    Attributes:
        n_alternatives: Alternatives per token to ask for; None once log-probabilities are refused.
    """

    def __init__(self, lacks: Iterable[str] = ()) -> None:
        self._lacks = set(lacks)
        self._lacks_neutral = set(self._lacks)
        self._length_field = "max_tokens"
        self.n_alternatives: int | None = MAX_ALTERNATIVES

    def body(
        self, model: str, messages: Sequence[Message], fields: Mapping[str, Any], *, log_probs: bool = False
    ) -> dict[str, Any]:
        """Return a request body with those fields that the server takes."""
        sent: dict[str, Any] = {
            "model": model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
        }
        for field, value in fields.items():
            if field == "max_tokens":
                sent[self._length_field] = value
            elif field not in (self._lacks_neutral if _is_neutral(field, value) else self._lacks):
                sent[field] = value
        if log_probs and self.n_alternatives is not None:
            sent |= {"top_logprobs": self.n_alternatives, "logprobs": True}
        return sent

    def left_out(self, fields: Mapping[str, Any]) -> list[str]:
        """Return the fields of a request that mean something and that the server does not take."""
        return [field for field, value in fields.items() if field in self._lacks and not _is_neutral(field, value)]

    def learn(self, body: Mapping[str, Any], text: str, param: str | None) -> bool:
        """Take in a refusal and return whether the next body for the same request will be another one.

        Args:
            body: The refused body.
            text: The server's reason.
            param: The field that the answer names as its ``param``, if it does.
        """
        named = param.rpartition(".")[2] if param else None
        suspects = (
            [named] if named is not None and named in body else [field for field in body if _is_about(field, text)]
        )
        suspects.sort(key=lambda field: not _is_neutral(field, body[field]))
        return any(self._give_up(field, body[field], text) for field in suspects)

    def _give_up(self, field: str, value: Any, text: str) -> bool:
        unsupported = bool(_UNSUPPORTED.search(text))
        if field == "max_tokens" and unsupported:
            self._length_field = "max_completion_tokens"
        elif field == "top_logprobs":
            fewer = _FEWER_ALTERNATIVES.get(value)
            if self.n_alternatives is not None and (fewer is None or fewer < self.n_alternatives):
                self.n_alternatives = fewer
        elif field == "logprobs":
            self.n_alternatives = None
        elif _is_neutral(field, value):
            self._lacks_neutral.add(field)
        elif field in _EXTENSIONS or (field in _DROPPABLE and unsupported):
            self._lacks.add(field)
            self._lacks_neutral.add(field)
        else:
            return False
        return True


def _is_neutral(field: str, value: object) -> bool:
    return field in _NEUTRAL and _NEUTRAL[field] == value


def _is_about(field: str, reason: str) -> bool:
    """Return whether a refusal names a field; ordinary words count only where they are quoted or introduced."""
    if field in _PLAIN_WORDS:
        return bool(
            re.search(rf"""["'`]{field}["'`]|(?:parameters?|arguments?|fields?|supplied):? {field}\b""", reason)
        )
    return bool(re.search(rf"\b{field}\b", reason))


# ---------------------------------------------------------------- answers


class _Said(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Token(BaseModel):
    token: str
    logprob: float


class _Position(BaseModel):
    top_logprobs: tuple[_Token, ...] = ()


class _LogProbs(BaseModel):
    content: tuple[_Position, ...] | None = None


class _Choice(BaseModel):
    message: _Said
    finish_reason: str | None = None
    logprobs: _LogProbs | None = None


class _Tokens(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Answer(BaseModel):
    """The parts of a chat completion that esckit reads."""

    choices: tuple[_Choice, ...] = Field(min_length=1)
    usage: _Tokens | None = None

    @property
    def cost(self) -> Usage:
        """One call, and its tokens where the server counts them."""
        tokens = self.usage or _Tokens()
        return Usage(calls=1, prompt_tokens=tokens.prompt_tokens or 0, completion_tokens=tokens.completion_tokens or 0)

    @property
    def alternatives(self) -> dict[str, float]:
        """Probability per first token, as far as the server lists them; empty without log-probabilities.

        The token that was drawn counts only if it is listed, or the result would depend on the draw.
        """
        log_probs = self.choices[0].logprobs
        if log_probs is None or not log_probs.content:
            return {}
        listed: dict[str, float] = {}
        for token in log_probs.content[0].top_logprobs:
            listed[token.token] = listed.get(token.token, 0.0) + math.exp(min(token.logprob, 0.0))
        return listed

    def text(self) -> tuple[str, StopReason]:
        """Return what the model wrote, which may be blank, and why it stopped.

        Raises:
            BackendError: If a filter cut the answer, the model refused, or there is no text.
        """
        choice = self.choices[0]
        if choice.finish_reason == "content_filter":
            raise BackendError("an answer that the server's content filter withheld or cut")
        if choice.message.refusal:
            raise BackendError("a refusal in place of an answer", samples=(choice.message.refusal,))
        if choice.finish_reason not in ("stop", "length"):
            raise BackendError(f"an answer with finish_reason {choice.finish_reason!r}", expected="'stop' or 'length'")
        # A model that reasons out of sight can spend all its tokens on that; then it said nothing, and was cut.
        if choice.message.content is None and choice.finish_reason == "stop":
            raise BackendError("an answer without text", expected="choices[0].message.content")
        return choice.message.content or "", StopReason(choice.finish_reason)


def parse_answer(text: str) -> Answer:
    """Return the chat completion in a response body.

    Raises:
        BackendError: If the body is not one.
    """
    try:
        return Answer.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise BackendError(
            f"an answer that is no chat completion ({place}: {complaint(first)})", samples=(text[:200],)
        ) from None


def label_probabilities(
    listed: Mapping[str, float], labels: Sequence[str], temperature: float
) -> tuple[tuple[float, ...], float]:
    """Return the probability per label and their sum, from the listed alternatives of the first token.

    A label gets the sum of all listed tokens that equal it when stripped; one that is not listed gets 0. Servers give
    log-probabilities at temperature 1. At another one, p**(1/T) is normalised over the listed tokens and the unlisted
    rest taken as a single one, an approximation that understates the rest for T > 1 and overstates it for T < 1.
    """
    rest = max(0.0, 1.0 - math.fsum(listed.values()))
    if temperature == 1.0:
        weights, total = dict(listed), 1.0
    else:
        weights = {token: p ** (1.0 / temperature) for token, p in listed.items()}
        total = math.fsum([*weights.values(), rest ** (1.0 / temperature)])
    found = tuple(
        math.fsum(weight for token, weight in weights.items() if token.strip() == label) / total for label in labels
    )
    return found, min(1.0, math.fsum(found))
