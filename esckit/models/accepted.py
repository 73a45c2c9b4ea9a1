"""What one server takes: the body of a chat request, and what is learnt from a refusal. Talks to nobody."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from esckit.models.chat import one_system, without_system
from esckit.types import Message, Sampling

MAX_ALTERNATIVES = 20
_FEWER_ALTERNATIVES = (10, 5, 3, 1)
_SEED_MASK = 0x7FFF_FFFF
_NEUTRAL: Mapping[str, object] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
_EXTENSIONS = ("top_k", "repetition_penalty")
_PLAIN_WORDS = ("temperature", "stop", "seed", "model", "messages")
_DROPPABLE = (*_NEUTRAL, "stop", "seed")
_LOG_PROBS = ("top_logprobs", "logprobs")
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected"
    r"|not (?:allowed|permitted|available|enabled|implemented)|additional propert|extra_forbidden",
    re.IGNORECASE,
)
_ABOUT_LOG_PROBS = re.compile(r"log[\s_-]?prob", re.IGNORECASE)
_ABOUT_ROLES = re.compile(
    r"\broles?\b|\balternat|\bdeveloper\W+(?:message|prompt|instruction)|\bfirst (?:message|turn)|template"
    r"|\bsystem\b(?!\W+(?:is\W+)?(?:busy|error|fail|load|over))",
    re.IGNORECASE,
)
# A count in a sentence; not a part of a model's name or of a decimal number.
_COUNT = re.compile(r"(?<![\w.\-/])\d{1,3}(?![\w\-/]|\.\d)")

# How messages may be laid out: as they are, with one system message at the head and alternating roles, without one.
_LAYOUTS: tuple[Callable[[Sequence[Message]], list[Message]], ...] = (
    list,
    one_system,
    lambda messages: without_system(one_system(messages)),
)


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


class AcceptedFields:
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
        self._layout = 0
        self.n_alternatives: int | None = MAX_ALTERNATIVES

    def body(
        self, model: str, messages: Sequence[Message], fields: Mapping[str, Any], *, log_probs: bool = False
    ) -> dict[str, Any]:
        """Return a request body with those fields that the server takes."""
        sent: dict[str, Any] = {"model": model, "messages": _laid_out(messages, self._layout)}
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

    @property
    def merges_system(self) -> bool:
        """Whether system messages go into the first user message."""
        return self._layout == len(_LAYOUTS) - 1

    def learn(self, body: Mapping[str, Any], messages: Sequence[Message], text: str, param: str | None) -> bool:
        """Take in a refusal and return whether the next body for the same request will be another one.

        Args:
            body: The refused body.
            messages: What it was made of.
            text: The server's reason.
            param: The field that the answer names as its ``param``, if it does.
        """
        named = param.rpartition(".")[2] if param else None
        suspects = (
            [named] if named is not None and named in body else [field for field in body if _is_about(field, text)]
        )
        suspects.sort(key=lambda field: not _is_neutral(field, body[field]))
        if any(self._give_up(field, body[field], text) for field in suspects):
            return True
        if "top_logprobs" in body and (_ABOUT_LOG_PROBS.search(text) or named in _LOG_PROBS):
            return self._ask_for_fewer(int(body["top_logprobs"]), text)
        return _ABOUT_ROLES.search(f"{text} {param}") is not None and self._lay_out_anew(body["messages"], messages)

    def _give_up(self, field: str, value: Any, text: str) -> bool:
        unsupported = bool(_UNSUPPORTED.search(text))
        if field == "max_tokens" and unsupported:
            self._length_field = "max_completion_tokens"
        elif _is_neutral(field, value):
            self._lacks_neutral.add(field)
        elif field in _EXTENSIONS or (field in _DROPPABLE and unsupported):
            self._lacks.add(field)
            self._lacks_neutral.add(field)
        else:
            return False
        return True

    def _ask_for_fewer(self, n_asked: int, text: str) -> bool:
        """Ask for the largest smaller number that a refusal names; without one for fewer, or for none at all."""
        if self.n_alternatives != n_asked:
            # Another call has learnt it meanwhile.
            return True
        named = [n for count in _COUNT.findall(text) if 0 < (n := int(count)) < n_asked]
        fewer = [n for n in _FEWER_ALTERNATIVES if n < n_asked and not _UNSUPPORTED.search(text)]
        self.n_alternatives = max(named or fewer[:1], default=None)
        return True

    def _lay_out_anew(self, refused: Sequence[Mapping[str, str]], messages: Sequence[Message]) -> bool:
        """Take the next layout in which these messages look different from those that were refused."""
        for layout in range(max(1, self._layout), len(_LAYOUTS)):
            if _laid_out(messages, layout) != refused:
                self._layout = layout
                return True
        return False


def _laid_out(messages: Sequence[Message], layout: int) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in _LAYOUTS[layout](messages)]


def _is_neutral(field: str, value: object) -> bool:
    return field in _NEUTRAL and _NEUTRAL[field] == value


def _is_about(field: str, reason: str) -> bool:
    """Return whether a refusal names a field; ordinary words count only where they are quoted or introduced."""
    if field in _PLAIN_WORDS:
        quoted, introduced = rf"""["'`]{field}["'`]""", rf"(?:parameters?|arguments?|fields?|supplied):? {field}\b"
        return bool(re.search(rf"{quoted}|{introduced}|\b{field} (?:is|are) (?:not|un)", reason))
    return bool(re.search(rf"\b{field}\b", reason))
