"""Asking a model until its answer has the agreed form, or giving up with a typed failure.

This is the only place where roles retry. Nothing is repaired beyond what the role's parser allows
and nothing is put in place of an answer that did not come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from esckit.errors import ModelError, ParseError
from esckit.ledger import Scope
from esckit.protocols import ChatModel
from esckit.types import Message, Reply, Sampling, StopReason
from esckit.words import n_words, whole_sentences

T = TypeVar("T")
OnLength = Literal["fail", "last_sentence"]


@dataclass(frozen=True, slots=True)
class Voice:
    """A model as one role uses it.

    Attributes:
        model: The chat model.
        sampling: Decoding settings.
        max_attempts: Calls in all before the role gives up, at least 1.
        on_length: What to do with a reply cut at the token limit: treat it as invalid, or keep its whole sentences.
        max_words: Longest valid reply in words; None sets no limit.
    """

    model: ChatModel
    sampling: Sampling
    max_attempts: int = 3
    on_length: OnLength = "fail"
    max_words: int | None = None


async def ask(voice: Voice, messages: Sequence[Message], scope: Scope, role: str, parse: Callable[[Reply], T]) -> T:
    """Complete, parse, and ask again with the next attempt's seed while the answer is unusable.

    Args:
        voice: Model and settings of the role.
        messages: The prompt.
        scope: Where seeds come from and usage goes to.
        role: Name under which seeds are drawn and usage is booked (``critic.3`` is booked on ``critic``).
        parse: Turns a reply into the answer, or raises :class:`~esckit.errors.ParseError`.

    Raises:
        ModelError: The last attempt's error, with ``attempts`` in its message; a
            :class:`~esckit.errors.BackendError` is not retried here, since backends retry by themselves.
    """

    async def complete() -> Reply:
        return await voice.model.complete(messages, voice.sampling, seed=scope.seed(role))

    return await until_parsed(complete, scope, role, parse, max_attempts=voice.max_attempts)


async def until_parsed(
    write: Callable[[], Awaitable[Reply]], scope: Scope, role: str, parse: Callable[[Reply], T], *, max_attempts: int
) -> T:
    """Have something written until it can be parsed, booking every reply on the role.

    Args:
        write: Makes one attempt; it draws its own seed.
        scope: Where usage goes to.
        role: Name under which the reply is booked.
        parse: Turns a reply into the answer, or raises :class:`~esckit.errors.ParseError`.
        max_attempts: Attempts in all, at least 1.

    Raises:
        ModelError: As :func:`ask`.
    """
    last: ParseError | None = None
    for _ in range(max_attempts):
        reply = await write()
        scope.book(role, reply)
        try:
            return parse(reply)
        except ParseError as error:
            last = error
    assert last is not None
    last.attempts = max_attempts
    raise last


def need_answer(reply: Reply) -> None:
    """Refuse a reply that stopped, or was cut, inside its reasoning.

    Raises:
        ParseError: Kind ``only_reasoned``.
    """
    if reply.only_reasoned:
        raise ParseError(
            "reasoning without an answer",
            kind="only_reasoned",
            hint="Raise max_tokens in this role's sampling",
            samples=(reply.whole,),
        )


def finished_text(reply: Reply, on_length: OnLength) -> str:
    """Return a reply's stripped text, after the rule for replies cut at the token limit.

    Raises:
        ParseError: If there is no answer behind the reasoning (kind ``only_reasoned``), or the reply was cut and
            ``on_length`` is ``fail`` (kind ``too_long``).
    """
    need_answer(reply)
    text = reply.text.strip()
    if reply.stop_reason is StopReason.LENGTH:
        if on_length == "fail":
            raise ParseError("a reply cut at the token limit", kind="too_long", samples=(text,))
        return whole_sentences(text)
    return text


def within_words(text: str, max_words: int | None) -> str:
    """Return a reply that is not longer than allowed.

    Raises:
        ParseError: If it is (kind ``too_long``).
    """
    n = n_words(text)
    if max_words is not None and n > max_words:
        raise ParseError(f"a reply of {n} words", kind="too_long", expected=f"at most {max_words}", samples=(text,))
    return text


async def gather_all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Await concurrent calls to their end, also when one fails, then return all results or raise the first error.

    Waiting for all keeps attempt numbers, and with them seeds, independent of timing. What stops the run goes before
    what is the failure of one call.
    """
    results = await asyncio.gather(*calls, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, ModelError))
    return [result for result in results if not isinstance(result, BaseException)]
