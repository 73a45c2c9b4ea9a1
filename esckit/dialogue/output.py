"""Taking a supporter's output apart: reasoning, reply, and whether it has the agreed form.

The agreed form is ``<think>A</think> <response>B</response>`` (RLFF-ESC, arXiv 2508.12935). A published policy can end
with only half its outputs well-formed, so everyone who reads one uses :func:`split_output`. Only the reply ever enters
a dialogue, a critic or a reward model.
"""

from __future__ import annotations

import re

from esckit.prompts.prompt import Prompt
from esckit.types import Generation, ParseKind

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
    return _ANY_TAG.sub("", text).strip()
