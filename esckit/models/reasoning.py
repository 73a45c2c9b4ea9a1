"""Reasoning and answer of what a model wrote, told apart once for every role and every backend.

Models that reason put it into the text between two marks (``<think>…</think>`` and its kin), into a channel of its own
(``<|channel|>analysis<|message|>…``), or a server returns it in a field of its own. The opening mark may be missing,
since some chat templates write it into the prompt. Inside reasoning nothing is an utterance or a verdict; a text that
ends inside its reasoning has no answer. Each function is linear in the length of the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from esckit.errors import BackendError
from esckit.types import Reply, StopReason, Usage
from esckit.words import without_surrogates

MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<analysis>", "</analysis>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
    ("<unused94>thought", "<unused95>"),
)
"""Strings that open and close reasoning; case does not count, nor do attributes and blanks inside a tag."""

CHANNEL_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|channel>")
"""Control tokens of formats with channels; in harmony, what stands outside the channel ``final`` is reasoning."""

_MAX_CHARS_PER_TOKEN = 64
_MIN_CHARS = 4096

_CLOSING = {opening.casefold(): closing for opening, closing in MARKS}
_TAG_REST = r"(?:\s[^<>]{0,80})?>"
_MARK = re.compile(
    "|".join(
        re.escape(mark).removesuffix(">") + (_TAG_REST if mark[-1] == ">" else "") for pair in MARKS for mark in pair
    ),
    re.IGNORECASE,
)
_OPENING = MARKS[0][0]
_CHANNEL, _MESSAGE = "<|channel|>", "<|message|>"
_MESSAGE_END = re.compile("|".join(map(re.escape, ("<|start|>", "<|end|>", "<|return|>", "<|call|>"))))
# Servers that leave control tokens out of the text turn the harmony format into "analysisWe …assistantfinalHello."
_BARE_ANALYSIS = re.compile(r"\s*analysis(?=[A-Z]|.*assistantfinal)", re.DOTALL)
_BARE_FINAL = "assistantfinal"


class Split(NamedTuple):
    """A text taken apart.

    Attributes:
        reasoning: The pieces of reasoning, stripped and joined by line breaks; None if all are blank and closed.
        answer: What is left, stripped; the text itself where it holds no mark, "" where it ends inside reasoning.
        is_open: Whether the text ends inside reasoning.
    """

    reasoning: str | None
    answer: str
    is_open: bool = False


def split_reasoning(text: str) -> Split:
    """Return the reasoning and the answer of a text.

    A closing mark without an opening one means that the text began inside reasoning: the opening mark was part of the
    prompt. Where the caller knows that it was, it must put the mark back before the text, or a text that is cut before
    the closing mark is taken for an answer.
    """
    if _CHANNEL in text:
        return _split_channels(text)
    if bare := _BARE_ANALYSIS.match(text):
        reasoning, final, answer = text[bare.end() :].partition(_BARE_FINAL)
        return _split([reasoning], [answer], is_open=not final)
    thoughts: list[str] = []
    answer_pieces: list[str] = []
    start, closing = 0, ""
    for mark in _MARK.finditer(text):
        said, before = _bare(mark[0]), text[start : mark.start()]
        if not closing and said in _CLOSING:
            answer_pieces.append(before)
            closing = _CLOSING[said].casefold()
        elif not closing:
            # Without an opening mark all that was said so far was reasoning.
            thoughts += [*answer_pieces, before]
            answer_pieces = []
        elif said == closing:
            thoughts.append(before)
            closing = ""
        else:
            continue
        start = mark.end()
    if not start:
        return Split(None, text)
    (thoughts if closing else answer_pieces).append(text[start:])
    return _split(thoughts, answer_pieces, is_open=bool(closing))


def _split_channels(text: str) -> Split:
    """Take apart a text in the harmony format; without a channel ``final`` there is no answer."""
    thoughts: list[str] = []
    answers: list[str] = []
    for message in text.split(_CHANNEL)[1:]:
        header, _, content = message.partition(_MESSAGE)
        said = _MESSAGE_END.split(content, maxsplit=1)[0]
        (answers if header.split()[:1] == ["final"] else thoughts).append(said)
    return _split(thoughts, answers, is_open=not answers)


def _split(thoughts: list[str], answer: list[str], *, is_open: bool) -> Split:
    reasoning = _joined(thoughts)
    return Split(reasoning or "", "", True) if is_open else Split(reasoning, "".join(answer).strip())


def _joined(pieces: list[str]) -> str | None:
    return "\n".join(piece for piece in map(str.strip, pieces) if piece) or None


def opened_by(prompt: str) -> str:
    """Return the mark of the reasoning that a prompt leaves open, "" if it leaves none open."""
    opened = ""
    for mark in _MARK.finditer(prompt):
        opened = mark[0] if _bare(mark[0]) in _CLOSING else ""
    return opened


def _bare(mark: str) -> str:
    """Return a mark as the table names it, in lower case and without attributes."""
    name = mark.casefold().split(maxsplit=1)[0]
    return name if name == mark.casefold() else f"{name.removesuffix('>')}>"


def closing_mark(opening: str) -> str:
    """Return the mark that closes reasoning behind an opening one."""
    return _CLOSING[_bare(opening)]


def with_reasoning_apart(reply: Reply, max_tokens: int) -> Reply:
    """Return the reply of a chat model of a user's own, which may not tell its reasoning apart; others as they are.

    Raises:
        BackendError: As :func:`make_reply`.
    """
    if reply.raw is not None or reply.reasoning is not None:
        return reply
    return make_reply(reply.text, reply.stop_reason, reply.usage, max_tokens=max_tokens)


def make_reply(
    text: str, stop_reason: StopReason, usage: Usage, *, max_tokens: int, reasoning: str | None = None
) -> Reply:
    """Return what a backend read as a reply, with its reasoning apart. Every backend makes its replies here.

    Args:
        text: What the model wrote, an opening mark that its chat template wrote for it included.
        stop_reason: Why it stopped.
        usage: What the call cost.
        max_tokens: How many tokens were asked for.
        reasoning: What the server returned as reasoning, beside the text.

    Raises:
        BackendError: ``too_long`` if the text cannot have been written with so few tokens: a server that ignores the
            limit.
    """
    text = without_surrogates(text)
    most = max(_MIN_CHARS, _MAX_CHARS_PER_TOKEN * max_tokens)
    n_chars = len(text) + len(reasoning or "")
    if n_chars > most:
        raise BackendError(
            f"a reply of {n_chars} characters where {max_tokens} tokens were asked for",
            kind="too_long",
            expected=f"at most {most} characters",
            samples=(text[:200],),
        )
    found = split_reasoning(text)
    apart = _MARK.sub("", without_surrogates(reasoning or "")).strip()
    thought = _joined([apart, found.reasoning or ""]) or found.reasoning
    if thought is None:
        return Reply(found.answer, stop_reason, usage, raw=None if found.answer == text else text)
    usage = usage.model_copy(update={"reasoned": 1, "only_reasoned": int(not found.answer)})
    is_open = found.is_open or (stop_reason is StopReason.LENGTH and not text.strip())
    as_written = not apart and _OPENING in text
    raw = text if as_written else f"{_OPENING}{thought}" + ("" if is_open else f"{_CLOSING[_OPENING]}{found.answer}")
    return Reply(found.answer, stop_reason, usage, reasoning=thought, raw=raw)
