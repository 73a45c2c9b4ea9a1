"""How every role asks its model: what it is shown, how often it is asked, and what a usable reply is.

Asking: :func:`ask` calls a model until its answer has the agreed form, or gives up with a typed failure. This is the
only place where roles retry. Nothing is repaired beyond what the role's parser allows, and nothing replaces an answer
that did not come.

Showing: a dialogue is chat messages for roles that take part and labelled lines for roles that judge. In the lines of
RLFF-ESC's prompts the speakers are called "Patient" and "Therapist", as in its protocol and PPDPP's, so that results
can be compared; these words claim nothing clinical. If a conversation does not fit into the model's context
(:class:`Window`), whole oldest turns are left out, but never the last one.

Reading: :func:`read_output` takes a supporter's output ``<think>A</think> <response>B</response>`` (RLFF-ESC, arXiv
2508.12935) apart and cleans its reply. A published policy can end with only half of its outputs well-formed, so
simulation, evaluation and training all read one by this function; only the reply ever enters a dialogue, a critic or a
reward model. In AFlow
(arXiv 2602.08826) a role label, a strategy tag or a control token makes a reply invalid (:func:`clean_utterance`).
"""

from __future__ import annotations

import asyncio
import re
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from esckit.config.sections import RoleOptions
from esckit.errors import ModelError, ParseError
from esckit.ledger import Scope
from esckit.models.chat import merge_messages
from esckit.prompts.prompt import Prompt
from esckit.protocols import ChatModel
from esckit.strategies.taxonomy import Taxonomy
from esckit.text import as_turn, lines_of, n_words, starts_with_label, whole_sentences, without_label
from esckit.types import (
    Generation,
    Message,
    ParseKind,
    Reply,
    Scenario,
    Speaker,
    StopReason,
    Turn,
    Usage,
)

T = TypeVar("T")

OnLength = Literal["fail", "last_sentence"]

PromptOver = Callable[[Sequence[Turn]], list[Message]]
"""Returns a role's prompt over some turns of a conversation."""


@dataclass(frozen=True, slots=True)
class Window:
    """A limit in tokens of the rendered prompt.

    Attributes:
        max_tokens: The limit; None for none.
        count_tokens: Counts the tokens of a rendered prompt; needed where there is a limit.
    """

    max_tokens: int | None = None
    count_tokens: Callable[[Sequence[Message]], int] | None = None

    def fit(self, messages: PromptOver, turns: Sequence[Turn], scope: Scope, role: str) -> list[Message]:
        """Return the prompt over as many of the latest turns as fit; dropped turns are counted on the ledger."""
        rendered = messages(turns)
        if self.max_tokens is None or self.count_tokens is None:
            return rendered
        if self.count_tokens(rendered) <= self.max_tokens:
            return rendered
        # The fewer turns, the shorter the prompt; trying them one by one would read the conversation once per turn.
        limit, count = self.max_tokens, self.count_tokens
        dropped = bisect_left(range(len(turns) - 1), True, 1, key=lambda n: count(messages(turns[n:])) <= limit)
        dropped = max(0, min(dropped, len(turns) - 1))
        if dropped:
            scope.spend(role.partition(".")[0], Usage(dropped_turns=dropped))
        return messages(turns[dropped:])


@dataclass(frozen=True, slots=True)
class Voice:
    """A model as one role uses it.

    Attributes:
        model: The chat model.
        options: How the role uses it, as the recipe says.
        max_attempts: Calls in all before the role gives up, at least 1.
        window: How much of a conversation the model is shown.
    """

    model: ChatModel
    options: RoleOptions = field(default_factory=RoleOptions)
    max_attempts: int = 3
    window: Window = field(default_factory=Window)

    def scores_answers(self, temperature: float) -> bool:
        """Return whether the model tells the probability of given answers at a temperature."""
        offered = self.model.capabilities
        return "score" in offered or ("score_at_1" in offered and temperature == 1.0)


async def ask(
    voice: Voice, messages: PromptOver, turns: Sequence[Turn], scope: Scope, role: str, parse: Callable[[Reply], T]
) -> T:
    """Complete, parse, and ask again with the next attempt's seed while the answer is unusable.

    Args:
        voice: Model and settings of the role.
        messages: Returns the prompt over some turns.
        turns: The conversation; the oldest ones are left out where the prompt would be too long.
        scope: Where seeds come from and usage goes to.
        role: Name under which seeds are drawn and usage is booked (``critic.3`` is booked on ``critic``).
        parse: Turns a reply into the answer, or raises :class:`~esckit.errors.ParseError`.

    Raises:
        ModelError: The last attempt's error, with ``attempts`` in its message; a
            :class:`~esckit.errors.BackendError` is not retried here, since backends retry by themselves.
    """
    prompt = voice.window.fit(messages, turns, scope, role)

    async def complete() -> Reply:
        return await voice.model.complete(prompt, voice.options.sampling, seed=scope.seed(role))

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


async def gather_all(*calls: Awaitable[Any]) -> list[Any]:
    """Await concurrent calls to their end, also when one fails, then return all results or raise the first error.

    Waiting for all keeps attempt numbers, and with them seeds, independent of timing. An error that stops the run is
    raised before one that fails a single call.
    """
    results = await asyncio.gather(*calls, return_exceptions=True)
    if errors := [result for result in results if isinstance(result, BaseException)]:
        raise min(errors, key=lambda error: isinstance(error, ModelError))
    return results


async def gather_or_cancel(calls: Iterable[Awaitable[None]]) -> None:
    """Await concurrent calls; the first that fails cancels the others, and its error is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


LABELS: dict[Speaker, str] = {"seeker": "Patient", "supporter": "Therapist"}


def as_chat(turns: Sequence[Turn], *, speaking: Speaker) -> list[Message]:
    """Return turns as chat messages: one's own as assistant, the other side's as user; neighbours merged."""
    return merge_messages(Message("assistant" if turn.speaker == speaking else "user", turn.text) for turn in turns)


def as_lines(turns: Iterable[Turn]) -> str:
    """Return turns as labelled lines, ``Patient: …``; no turn holds a line that reads as another one."""
    return "\n".join(f"{LABELS[turn.speaker]}: {as_turn(turn.text)}" for turn in turns)


def clean_reply(text: str, *, speaking: Speaker) -> str:
    """Return a reply without labels of its own role and without what it says in the other side's name.

    The first line that starts with another label ends it.
    """
    text = text.strip()
    kept: list[str] = []
    lines = lines_of(text)
    for line in lines:
        words = without_label(line, speaking)
        if words == line and starts_with_label(line):
            break
        kept.append(words)
    return text if kept == lines else "\n".join(kept).strip()


_TAGS = ("<think>", "</think>", "<response>", "</response>")

_AGREED = re.compile(r"<think>(.*)</think>\s*<response>(.*)</response>", re.DOTALL)

_ANY_TAG = re.compile("|".join(_TAGS))


def asks_for_tags(prompt: Prompt) -> bool:
    """Return whether a prompt asks for the agreed form; to any other prompt plain text is the right answer."""
    return any("<response>" in message.content for message in prompt.messages)


def split_output(text: str) -> Generation:
    """Return reasoning and reply of an output; tags are case-sensitive.

    ``parse_kind`` is ``ok`` if the whole text has the agreed form. Otherwise closed think blocks are removed and the
    reply is the first closed response block that is not blank (``closed_response``), else what follows an unclosed
    ``<response>`` (``open_response``), else what lies outside stray think tags (``untagged``), else nothing
    (``blank``).
    """
    agreed = _AGREED.fullmatch(text.strip()) if all(text.count(tag) == 1 for tag in _TAGS) else None
    if agreed and all(part.strip() for part in agreed.groups()):
        return Generation(
            raw=text, reasoning=agreed[1].strip(), response=agreed[2].strip(), format_ok=True, parse_kind="ok"
        )
    thoughts, outside = _blocks(text, "<think>", "</think>")
    kind, response = _salvage(outside)
    return Generation(
        raw=text,
        reasoning=(thoughts[0].strip() or None) if thoughts else None,
        response=response,
        format_ok=False,
        parse_kind=kind,
    )


def read_output(text: str) -> Generation:
    """Return reasoning and reply of an output, the reply cleaned as a supporter's (:func:`clean_reply`).

    An output whose reply is all said in the seeker's name is blank.
    """
    found = split_output(text)
    response = clean_reply(found.response, speaking="supporter")
    if response or not found.response:
        return found.model_copy(update={"response": response})
    return found.model_copy(update={"response": "", "format_ok": False, "parse_kind": "blank"})


def clean_output(output: Generation) -> str:
    """Return an output as it was written, stripped, but with the reply that :func:`read_output` finds in it.

    What others were shown, and what was rewarded, is that reply: nothing else may be learnt as the answer.
    """
    raw, said = output.raw.strip(), split_output(output.raw).response
    reply = clean_reply(said, speaking="supporter")
    if reply == said:
        return raw
    before, found, after = raw.rpartition(said)
    return before + reply + after if found else reply  # not found: there are stray tags inside


def _blocks(text: str, opening: str, closing: str) -> tuple[list[str], str]:
    """Return what stands in closed blocks, and the text without them; linear, as a pattern would not be."""
    inside: list[str] = []
    outside: list[str] = []
    start = 0
    while (opened := text.find(opening, start)) >= 0:
        closed = text.find(closing, opened)
        if closed < 0:
            break
        outside.append(text[start:opened])
        inside.append(text[opened + len(opening) : closed])
        start = closed + len(closing)
    return inside, "".join([*outside, text[start:]])


def _salvage(text: str) -> tuple[ParseKind, str]:
    """Find the reply in a malformed output from which closed think blocks are removed."""
    blocks, rest = _blocks(text, "<response>", "</response>")
    for block in blocks:
        if response := _without_tags(block):
            return "closed_response", response
    if "<response>" in rest and (response := _outside_think(rest.split("<response>", 1)[1])):
        return "open_response", response
    if response := _outside_think(rest):
        return "untagged", response
    return "blank", ""


def _outside_think(text: str) -> str:
    """Return what follows the last stray ``</think>`` and precedes a stray ``<think>``, without tags."""
    return _without_tags(text.rpartition("</think>")[2].partition("<think>")[0])


def _without_tags(text: str) -> str:
    found = _ANY_TAG.sub("", text)
    # A tag inside a tag leaves a new one; with a space in its place it does not.
    return (_ANY_TAG.sub(" ", text) if _ANY_TAG.search(found) else found).strip()


LEAVES = "</end/>"

RESOLVED = "<ok>"


SPEAKERS: dict[Speaker, str] = {"seeker": "Seeker", "supporter": "Supporter"}

_CONTROL_TOKEN = re.compile(r"</?end/?>|</?ok/?>|<\|[^|<>]*\|>", re.IGNORECASE)


def as_tagged_lines(turns: Iterable[Turn], *, show_strategy: bool) -> str:
    """Return turns as lines ``Seeker: …`` and ``Supporter: …``, or ``Supporter [Clarification]: …`` with tags."""
    return "\n".join(
        f"{SPEAKERS[turn.speaker]} [{turn.strategy}]: {as_turn(turn.text)}"
        if show_strategy and turn.strategy and turn.speaker == "supporter"
        else f"{SPEAKERS[turn.speaker]}: {as_turn(turn.text)}"
        for turn in turns
    )


def scene_of(scenario: Scenario) -> str:
    """Return a scenario's problem type, with the emotion type where it is known."""
    problem = scenario.problem_type or "not stated"
    return f"{problem} ({scenario.emotion_type})" if scenario.emotion_type else problem


def one_line(reply: Reply, on_length: OnLength) -> str:
    """Return a spoken reply's text with every run of white space as one space.

    Raises:
        ParseError: If the reply was cut and this is not allowed, or a later line of it starts with a role label
            (``role_label``).
    """
    text = finished_text(reply, on_length)
    if any(map(starts_with_label, lines_of(text)[1:])):
        raise ParseError("a reply in which another turn begins", kind="role_label", samples=(text,))
    return " ".join(text.split())


def clean_utterance(text: str, taxonomy: Taxonomy, max_words: int | None) -> str:
    """Return an utterance that keeps the rules of AFlow's speakers.

    Args:
        text: One line.
        taxonomy: Whose names and abbreviations in square brackets count as strategy tags.
        max_words: Longest reply in words between white space, at least 1; None sets no limit.

    Raises:
        ParseError: Kind ``blank``, ``control_token``, ``role_label``, ``strategy_tag`` or ``too_long``.
    """
    if not text:
        raise ParseError("a blank reply", kind="blank")
    if _CONTROL_TOKEN.search(text):
        raise ParseError("a control token inside a reply", kind="control_token", samples=(text,))
    if starts_with_label(text):
        raise ParseError("a reply that starts with a role label", kind="role_label", samples=(text,))
    names = "|".join(re.escape(name) for name in (*taxonomy.names, *taxonomy.abbrs))
    if re.search(rf"\[\s*(?:{names})\b[^\]]*\]", text, re.IGNORECASE):
        raise ParseError("a strategy tag inside a reply", kind="strategy_tag", samples=(text,))
    return within_words(text, max_words)
