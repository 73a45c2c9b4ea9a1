"""The chat-completions interface that ``esckit serve`` offers, as data: requests read, answers and errors written.

``user`` is the seeker and ``assistant`` the supporter. How the supporter is asked (its prompt, its sampling) is the
run's, since it is what was measured: a request's own system messages and sampling fields are left out, and the answer
names them in ``esckit.ignored``. What would change the form of an answer (tools, several choices) is refused. The same
request gets the same reply; ``seed`` draws another one. Not here: connections and queues (:mod:`esckit.chat.server`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from esckit.chat.crisis import Notice
from esckit.chat.partner import Partner
from esckit.chat.talk import Entry, Talk
from esckit.documents import complaint, dotted
from esckit.errors import BudgetError, EsckitError, OutageError
from esckit.records import digest
from esckit.text import without_surrogates
from esckit.types import Generation, Scenario, StopReason

_MOST_MESSAGES = 2000

_IGNORED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "reasoning_effort",
)

_HARMLESS = ("user", "metadata", "store", "safety_identifier")

_NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "tools": [],
    "tool_choice": "none",
    "logprobs": False,
    "response_format": {"type": "text"},
    "modalities": ["text"],
}


class ApiError(Exception):
    """A request that cannot be answered, in the interface's own form.

    Attributes:
        status: Of HTTP.
        kind: ``invalid_request_error``, ``server_error`` …
        code: A word for programs; None without one.
        param: The field of the request that is wrong; None if it is not about one.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param = status, kind, code, param

    def body(self) -> dict[str, Any]:
        """Return it as the body of an answer."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def as_api_error(error: EsckitError) -> ApiError:
    """Return an error of ours as one of the interface."""
    if isinstance(error, OutageError):
        return ApiError(error.headline, status=503, kind="server_error", code="outage")
    if isinstance(error, BudgetError):
        return ApiError(error.headline, status=403, kind="server_error", code="budget")
    return ApiError(error.headline, status=500, kind="server_error")


# ---------------------------------------------------------------- requests


class _Part(BaseModel):
    type: str
    text: str | None = None


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    def text(self, place: str) -> str:
        """Return what it says.

        Raises:
            ApiError: If it holds anything but text.
        """
        if isinstance(self.content, str):
            return without_surrogates(self.content).strip()
        if any(part.type != "text" or part.text is None for part in self.content):
            raise ApiError("only text is read here", param=f"{place}.content", code="unsupported_content")
        return without_surrogates("".join(part.text or "" for part in self.content)).strip()


class _Own(BaseModel):
    model_config = ConfigDict(extra="forbid")

    strategy: str | None = None


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Request(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    messages: list[_Message] = Field(min_length=1, max_length=_MOST_MESSAGES)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    seed: int | None = None
    esckit: _Own | None = None


class Asked(NamedTuple):
    """What a request asks for.

    Attributes:
        talk: Ends with what the user said.
        strategy: The one that the request names (``esckit.strategy``); None leaves it to the strategist.
        is_streamed: Whether the answer is to come as events.
        wants_usage: Whether a stream is to end with what the reply used.
        ignored: Fields and messages that were left out.
    """

    talk: Talk
    strategy: str | None
    is_streamed: bool
    wants_usage: bool
    ignored: tuple[str, ...]


def read_request(body: bytes, model: str, partner: Partner, notices: Sequence[str] = ()) -> Asked:
    """Read the body of a request.

    Args:
        body: JSON.
        model: The only model that is offered.
        partner: Who answers.
        notices: Texts that answers may begin with; they are no part of what the supporter said.

    Raises:
        ApiError: If it is not a request that can be answered.
    """
    asked = _parsed(body)
    if asked.model != model:
        message = f"there is no model {asked.model!r} here; there is {model!r}"
        raise ApiError(message, status=404, code="model_not_found", param="model")
    extra: Mapping[str, Any] = asked.model_extra or {}
    for name, value in extra.items():
        if value is not None and name not in (*_IGNORED, *_HARMLESS) and value != _NEUTRAL.get(name):
            raise ApiError(f"{name} is not offered here", param=name, code="unsupported_parameter")
    ignored = sorted(name for name in extra if name in _IGNORED and extra[name] is not None)
    talk, left_out = _talk_of(asked, partner, notices)
    strategy = asked.esckit.strategy if asked.esckit else None
    try:
        named = None if strategy is None else partner.strategy_named(strategy)
    except EsckitError as error:
        raise ApiError(str(error), param="esckit.strategy", code="unknown_strategy") from error
    wants_usage = asked.stream_options is not None and asked.stream_options.include_usage
    return Asked(talk, named, bool(asked.stream), wants_usage, (*ignored, *left_out))


def _parsed(body: bytes) -> _Request:
    try:
        return _Request.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = dotted(first["loc"])
        message = f"{place}: {complaint(first)}" if place else "the body is not a JSON object"
        raise ApiError(message, param=place or None) from None


def _talk_of(asked: _Request, partner: Partner, notices: Sequence[str]) -> tuple[Talk, list[str]]:
    """Return the conversation of a request, and what of it was left out."""
    said = _said(asked.messages, notices)
    left_out = ["system messages"] if len(said) < len(asked.messages) else []
    if not said or said[-1][0] != "user" or not said[-1][1]:
        raise ApiError("the last message must be the user's, and not blank", param="messages")
    if said[0][0] == "assistant":
        left_out.append("messages before the user's first")
    talk = Talk(Scenario(id=f"serve-{digest([said, asked.seed])}"))
    for role, text in said:
        if role == "user":
            talk = talk.heard(text) if text else talk
        elif talk.last is not None and text:
            before = talk.last.supporter
            talk = talk.with_last(_replied(talk.last, f"{before.response}\n{text}" if before else text))
    return talk, left_out


def _said(messages: Sequence[_Message], notices: Sequence[str]) -> list[tuple[str, str]]:
    """Return what user and assistant said, without notices that answers began with."""
    found = [(message.role, message.text(f"messages[{index}]")) for index, message in enumerate(messages)]
    return [
        (role, _without(text, notices) if role == "assistant" else text)
        for role, text in found
        if role in ("user", "assistant")
    ]


def _replied(entry: Entry, reply: str, strategy: str | None = None) -> Entry:
    given = Generation(raw=reply, reasoning=None, response=reply, format_ok=True, parse_kind="untagged")
    return entry.model_copy(update={"supporter": given, "strategy": strategy})


def _without(reply: str, notices: Iterable[str]) -> str:
    for notice in notices:
        reply = reply.removeprefix(notice).lstrip()
    return reply


class _Saved(BaseModel):
    """What a page asks to be written as a dialogue: the strategies are those of the assistant's messages, in order."""

    model_config = ConfigDict(extra="forbid")

    messages: list[_Message] = Field(min_length=1, max_length=_MOST_MESSAGES)
    strategies: list[str | None] = Field(default=[], max_length=_MOST_MESSAGES)


def read_dialogue(body: bytes, partner: Partner, notices: Sequence[str] = ()) -> Talk:
    """Return the conversation that a page wants to save.

    Raises:
        ApiError: If it is none.
    """
    try:
        saved = _Saved.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ApiError(f"{dotted(first['loc'])}: {complaint(first)}") from None
    said = _said(saved.messages, notices)
    known = partner.taxonomy.names if partner.taxonomy else ()
    strategies = iter(saved.strategies)
    talk = Talk(Scenario(id=f"chat-{digest(said)}"), taxonomy=partner.taxonomy.name if partner.taxonomy else None)
    for role, text in said:
        if role == "user":
            talk = talk.heard(text) if text else talk
        else:
            strategy = next(strategies, None)
            if talk.last is not None and text:
                talk = talk.with_last(_replied(talk.last, text, strategy if strategy in known else None))
    if talk.last is None:
        raise ApiError("nothing was said yet", param="messages")
    return talk


# ---------------------------------------------------------------- answers


class Answer(NamedTuple):
    """What is known of an answer while its reply is written.

    Attributes:
        id: Of the answer.
        model: The model that is offered.
        created: When it was begun, in seconds since 1970.
    """

    id: str
    model: str
    created: int

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def completion(self, entry: Entry, content: str, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the whole answer."""
        message = {"role": "assistant", "content": content, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason(entry), "logprobs": None}
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage_of(entry),
            "esckit": dict(own),
        }

    def chunk(self, delta: Mapping[str, Any], *, finish: str | None = None, **more: Any) -> dict[str, Any]:
        """Return one event of a stream."""
        choice = {"index": 0, "delta": dict(delta), "finish_reason": finish, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **more}

    def usage_chunk(self, entry: Entry) -> dict[str, Any]:
        """Return the last event of a stream that ends with what the reply used."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_of(entry)}


def models_body(model: str) -> dict[str, Any]:
    """Return the list of models: there is one."""
    return {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": "esckit"}]}


def finish_reason(entry: Entry) -> str:
    """Return why a reply ended, in the interface's word."""
    return "length" if entry.end is StopReason.LENGTH else "stop"


def usage_of(entry: Entry) -> dict[str, int] | None:
    """Return the tokens of the supporter's calls, all attempts together; None if they are not known."""
    used = entry.usage.get("supporter")
    if used is None or used.unknown_calls:
        return None
    total = used.prompt_tokens + used.completion_tokens
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": total,
    }


def own_fields(entry: Entry, partner: Partner, notice: Notice | None, ignored: Sequence[str]) -> dict[str, Any]:
    """Return what an answer says beside the interface: strategy, reasoning, notice, and what was left out."""
    names = partner.taxonomy.names if partner.taxonomy else ()
    numbers = {"probabilities": entry.probabilities, "values": entry.values}
    return {
        "strategy": entry.strategy,
        "strategy_is_forced": entry.is_forced,
        **{name: dict(zip(names, of, strict=True)) if of is not None else None for name, of in numbers.items()},
        "reasoning": entry.supporter.reasoning if entry.supporter else None,
        "notice": notice.facts() if notice else None,
        "ignored": list(ignored),
    }


def failure_error(entry: Entry) -> ApiError:
    """Return the error for a reply that did not come."""
    failure = entry.failure
    assert failure is not None
    if failure.kind == "too_long":
        return ApiError(failure.message, code="context_length_exceeded", param="messages")
    return ApiError(
        f"the {failure.stage} failed: {failure.message}", status=500, kind="server_error", code=failure.kind
    )
