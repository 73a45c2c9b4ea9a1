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
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_RESPONSE = re.compile(r"<response>(.*?)</response>", re.DOTALL)
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
    agreed = _AGREED.fullmatch(text.strip())
    if agreed and all(text.count(tag) == 1 for tag in _TAGS) and all(part.strip() for part in agreed.groups()):
        return Generation(
            raw=text, reasoning=agreed[1].strip(), response=agreed[2].strip(), format_ok=True, parse_kind="ok"
        )
    thought = _THINK.search(text)
    kind, response = _salvage(_THINK.sub("", text))
    return Generation(
        raw=text,
        reasoning=(thought[1].strip() or None) if thought else None,
        response=response,
        format_ok=False,
        parse_kind=kind,
    )


def _salvage(text: str) -> tuple[ParseKind, str]:
    """Find the reply in a malformed output from which closed think blocks are removed."""
    for block in _RESPONSE.finditer(text):
        if response := _without_tags(block[1]):
            return "closed_response", response
    rest = _RESPONSE.sub("", text)
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
