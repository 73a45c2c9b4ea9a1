"""The chat-completions interface as data: where servers are, what each of them takes, and what an answer says.

Servers fill the interface's open fields in their own ways, so esckit reads only what it needs, and leniently: an
invalid usage counts as unknown, and an unfamiliar finish reason is interpreted by its words. Anything else is a typed
failure. Requests are made in :mod:`esckit.models.transport`, errors are read in :mod:`esckit.models.faults`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from esckit.config.sections import EndpointAddress
from esckit.documents import complaint, read_yaml
from esckit.errors import NOT_FINITE, BackendError, ConfigError
from esckit.models.answer_form import PromptToken
from esckit.models.chat import make_reply, one_system, without_system
from esckit.models.faults import shown_name
from esckit.registry import did_you_mean
from esckit.types import Message, Replies, Reply, Sampling, StopReason, Usage

_MOST_TOKENS = 10_000_000

_ROUNDING = 1e-3

_MASS_ROUNDING = 0.02

_LEAST_LOG_P = -1e6

_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")

_THINKING_PARTS = ("thinking", "reasoning", "thought", "summary")

_PART_TEXTS = ("text", "output_text", "thinking", "reasoning", "summary", "content", "value")

# What the words of finish reasons have in common, over all servers; what matches nothing is a normal end.
_CUT = re.compile(r"length|max|limit|exceed|context|budget|incomplete|truncat", re.IGNORECASE)

_NO_ANSWERS = (
    ("refusal", "a refusal in place of an answer", re.compile(r"refus", re.IGNORECASE)),
    (
        "content_filter",
        "an answer that the server's content filter withheld or cut",
        re.compile(r"filter|safety|block|prohibit|sensitive|recitation|moderat|spii", re.IGNORECASE),
    ),
    ("no_text", "a call of a tool in place of an answer", re.compile(r"tool|function", re.IGNORECASE)),
)


class ShippedEndpoint(EndpointAddress):
    """Address of a server that esckit knows.

    Attributes:
        lacks: Sampling fields that the server is known to refuse.
    """

    lacks: tuple[str, ...] = ()


def load_endpoint(name: str) -> ShippedEndpoint:
    """Return a shipped endpoint by name.

    Raises:
        ConfigError: If there is none of this name.
    """
    known = read_yaml(Path(__file__).parent / "endpoints.yaml", "endpoints")
    if "://" in name:
        # Not shown: it may hold a key.
        raise ConfigError(
            "an address as the name of an endpoint", expected="endpoint: {base_url: ADDRESS, api_key_env: VARIABLE}"
        )
    if name not in known:
        raise ConfigError(
            f"unknown endpoint {shown_name(name)!r}",
            expected=f"one of {', '.join(known)}, or base_url and api_key_env",
            hint=did_you_mean(name, known) or None,
        )
    return ShippedEndpoint.model_validate(known[name])


class _Choice(BaseModel):
    index: Any = None
    message: dict[str, Any]
    finish_reason: Any = None
    logprobs: Any = None


class Answer(BaseModel):
    """The parts of a chat completion that esckit reads."""

    choices: tuple[_Choice, ...] = Field(min_length=1)
    usage: Any = None
    prompt_logprobs: Any = None

    @property
    def cost(self) -> Usage:
        """One call, and its tokens where the server counts them; no prompt has none."""
        counts = self.usage if isinstance(self.usage, Mapping) else {}
        prompt, completion = (_count(counts.get(name)) for name in ("prompt_tokens", "completion_tokens"))
        if not prompt or completion is None:
            return Usage(calls=1, unknown_calls=1)
        details = counts.get("prompt_tokens_details")
        cached = _count(details.get("cached_tokens")) if isinstance(details, Mapping) else None
        known = None if cached is None else min(cached, prompt)
        return Usage(calls=1, prompt_tokens=prompt, completion_tokens=completion, cached_tokens=known)

    @property
    def alternatives(self) -> dict[str, float | None]:
        """Probability per first token, as far as the server lists them; empty without log-probabilities.

        The token that was drawn counts only if it is listed, or the result would depend on the draw. None is a token
        that is listed without a number.

        Raises:
            BackendError: ``not_finite`` if a number cannot be a log-probability.
        """
        listed: dict[str, float | None] = {}
        for token, log_p in _listed(self.choices[0].logprobs):
            p = None if log_p is None else _probability(log_p)
            known = listed.get(token, 0.0)
            listed[token] = None if p is None or known is None else known + p
        return listed

    @property
    def prompt(self) -> list[PromptToken]:
        """The tokens of the prompt with their log-probabilities; empty if the server does not return them.

        Raises:
            BackendError: ``not_finite`` if a number cannot be a log-probability.
        """
        listed = self.prompt_logprobs if isinstance(self.prompt_logprobs, list) else []
        found: list[PromptToken] = []
        for one in listed:
            # Of several tokens at one place the first is the one that stands there.
            token, about = next(iter(one.items())) if isinstance(one, Mapping) and one else ("", None)
            log_p = about.get("logprob") if isinstance(about, Mapping) else None
            found.append(PromptToken(token, None if log_p is None else _log_probability(log_p)))
        return found

    def reply(self, max_tokens: int) -> Reply:
        """Return what the model wrote, which may be blank.

        Args:
            max_tokens: How many tokens were asked for.

        Raises:
            BackendError: If a filter cut the answer, the model refused, there is no text or far too much of it.
        """
        return _reply(self.choices[0], self.cost, max_tokens, n_written=self.cost.completion_tokens)

    def replies(self, max_tokens: int, n: int) -> Replies:
        """Return all that the model wrote in one call; the first reply has what the call used.

        Args:
            max_tokens: How many tokens were asked for, of each reply.
            n: How many replies were asked for.

        Raises:
            BackendError: As :meth:`reply`, or if there are fewer or more.
        """
        if len(self.choices) != n:
            raise BackendError(f"{len(self.choices)} replies where {n} were asked for", kind="unreadable")
        in_order = sorted(self.choices, key=lambda choice: choice.index if isinstance(choice.index, int) else 0)
        n_written = self.cost.completion_tokens // n
        used = [self.cost, *[Usage()] * (n - 1)]
        return Replies(
            tuple(_reply(one, cost, max_tokens, n_written=n_written) for one, cost in zip(in_order, used, strict=True))
        )


def _reply(choice: _Choice, used: Usage, max_tokens: int, *, n_written: int) -> Reply:
    """Return one choice as a reply that used so much; ``n_written`` tells if it was cut where the server does not."""
    text, thoughts, refusal = _message_parts(choice.message)
    if refusal:
        raise BackendError("a refusal in place of an answer", kind="refusal", samples=(refusal,))
    stop_reason = _stop_reason(choice.finish_reason, is_full=n_written >= max_tokens)
    # A model that reasons out of sight can spend all its tokens on that; then it wrote no answer and was cut.
    if text is None and not thoughts and stop_reason is StopReason.STOP:
        raise BackendError("an answer without text", kind="no_text", expected="choices[0].message.content")
    return make_reply(text or "", stop_reason, used, max_tokens=max_tokens, reasoning=thoughts or None)


def _stop_reason(given: Any, *, is_full: bool) -> StopReason:
    """Return why the model stopped; without a word for it, it was cut if it wrote all tokens that it might."""
    word = given if isinstance(given, str) else ""
    for kind, found, known in _NO_ANSWERS:
        if known.search(word):
            raise BackendError(f"{found} (finish_reason {word!r})", kind=kind)
    if not word:
        return StopReason.LENGTH if is_full else StopReason.STOP
    return StopReason.LENGTH if _CUT.search(word) else StopReason.STOP


def parse_answer(text: str) -> Answer:
    """Return the chat completion in a response body.

    Raises:
        BackendError: ``unreadable`` if the body is not one.
    """
    try:
        return Answer.model_validate_json(text.removeprefix("\ufeff"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise BackendError(
            f"an answer that is not a chat completion ({place}: {complaint(first)})",
            kind="unreadable",
            samples=(text[:200],),
        ) from None


def _count(value: object) -> int | None:
    """Return a number of tokens, None for what cannot be one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_TOKENS:
        return None
    return int(value) if value == int(value) else None


def _message_parts(message: Mapping[str, Any]) -> tuple[str | None, str, str]:
    """Return what a message says, what the model thought before it, and how it refused, "" if it did not.

    Raises:
        BackendError: ``unreadable`` if the content is neither text nor parts.
    """
    content = message.get("content")
    if not isinstance(content, str | list | None):
        raise BackendError(f"an answer whose content is a {type(content).__name__}", kind="unreadable")
    thoughts = [thought for name in _REASONING_FIELDS if (thought := _text_of(message.get(name)).strip())]
    refusals = [_text_of(message.get("refusal"))]
    texts = [content] if isinstance(content, str) else []
    for part in content if isinstance(content, list) else ():
        kind = _kind_of(part)
        if kind == "refusal":
            refusals.append(_text_of(part.get("refusal")))
        elif any(word in kind for word in _THINKING_PARTS):
            thoughts.append(_text_of(part))
        elif "text" in kind:
            texts.append(_text_of(part))
    # Some servers fill both fields of reasoning with the same text.
    return "".join(texts) if texts else None, "\n".join(dict.fromkeys(thoughts)), "".join(refusals).strip()


def _kind_of(part: Any) -> str:
    """Return the type of a content part in lower case; Gemini marks thoughts by a flag of their own."""
    if not isinstance(part, Mapping):
        return "text"
    kind = part.get("type")
    return "thought" if part.get("thought") is True else kind.lower() if isinstance(kind, str) else "text"


def _text_of(part: Any) -> str:
    """Return the text of a content part, which may hold parts itself."""
    if isinstance(part, str):
        return part
    if isinstance(part, list):
        return "".join(map(_text_of, part))
    if isinstance(part, Mapping):
        return next((_text_of(part[name]) for name in _PART_TEXTS if part.get(name)), "")
    return ""


def _listed(log_probs: Any) -> Iterator[tuple[str, Any]]:
    """Yield the alternatives of the first token: tokens and their log-probability according to the server."""
    if not isinstance(log_probs, Mapping):
        return
    content = log_probs.get("content")
    first = content[0] if isinstance(content, list) and content else None
    # The older form holds one list per kind of fact, and the alternatives of a position as a mapping.
    older = log_probs.get("top_logprobs")
    older_first = older[0] if isinstance(older, list) and older else None
    alternatives = first.get("top_logprobs") if isinstance(first, Mapping) else older_first
    if isinstance(alternatives, Mapping):
        yield from alternatives.items()
    for one in alternatives if isinstance(alternatives, list) else ():
        if isinstance(one, Mapping) and isinstance(one.get("token"), str):
            yield one["token"], one.get("logprob")


def _probability(log_p: object) -> float:
    """Return the probability of a log-probability."""
    return math.exp(_log_probability(log_p))


def _log_probability(log_p: object) -> float:
    """Return a number that a server gives as a log-probability, if it can be one."""
    if isinstance(log_p, int | float) and not isinstance(log_p, bool) and -math.inf < log_p <= _ROUNDING:
        # Bounded on both sides: JSON has integers that fit no float.
        return float(max(min(log_p, 0.0), _LEAST_LOG_P))
    raise BackendError(f"a log-probability of {log_p!r}", kind=NOT_FINITE, expected="a finite number of at most 0")


def label_probabilities(
    listed: Mapping[str, float | None], labels: Sequence[str], temperature: float
) -> tuple[tuple[float, ...], float]:
    """Return the probability per label and their sum, from the listed alternatives of the first token.

    A label gets the sum of all listed tokens that equal it when stripped; one that is not listed gets 0. Servers give
    log-probabilities at temperature 1. At another one, p**(1/T) is normalised over the listed tokens and the unlisted
    rest taken as a single one, an approximation that understates the rest for T > 1 and overstates it for T < 1.

    Raises:
        BackendError: ``not_finite`` if a label is listed without a number, or all tokens together exceed probability 1.
    """
    known = {token: p for token, p in listed.items() if p is not None}
    unknown = {token.strip() for token in listed if token not in known}
    if missing := unknown.intersection(labels):
        raise BackendError(f"no log-probability for {min(missing)!r}", kind=NOT_FINITE, expected="a finite number")
    mass = math.fsum(known.values())
    if mass > 1.0 + _MASS_ROUNDING:
        raise BackendError(f"listed tokens with a probability of {mass:.3g} together", kind=NOT_FINITE)
    if temperature == 1.0:
        weights, total = known, max(1.0, mass)
    else:
        rest = max(0.0, 1.0 - mass)
        peak = max([*known.values(), rest])
        weights = {token: (p / peak) ** (1.0 / temperature) for token, p in known.items()}
        total = math.fsum([*weights.values(), (rest / peak) ** (1.0 / temperature)])
    found = tuple(
        math.fsum(weight for token, weight in weights.items() if token.strip() == label) / total for label in labels
    )
    return found, min(1.0, math.fsum(found))


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

    Neutral values are sent too, since a server may have other defaults (vLLM takes them from the model).
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
    """The request fields that one server accepts, learnt from what it refuses.

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
        """Return a request body with those fields that the server accepts."""
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
        """Return the fields of a request that are not neutral and that the server does not accept."""
        return [field for field, value in fields.items() if field in self._lacks and not _is_neutral(field, value)]

    @property
    def merges_system(self) -> bool:
        """Whether system messages go into the first user message."""
        return self._layout == len(_LAYOUTS) - 1

    def learn(self, body: Mapping[str, Any], messages: Sequence[Message], text: str, param: str | None) -> bool:
        """Learn from a refusal; return whether the next body for the same request will be different.

        Args:
            body: The refused body.
            messages: The messages that it was made from.
            text: The server's reason.
            param: The field that the answer names as its ``param``, if it does.
        """
        named = (param or "").rpartition(".")[2]
        suspects = [named] if named in body else [field for field in body if _is_about(field, text)]
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
        """Ask for the largest smaller number that a refusal names; if it names none, for fewer, at last for none."""
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
