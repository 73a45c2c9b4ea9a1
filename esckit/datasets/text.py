"""Text as esckit keeps it, ids made from it, and how little of it a message may show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

from esckit.types import Dialogue
from esckit.words import without_surrogates

# Category Cc without what `str.split` takes for white space.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_COMPUTED_ID = re.compile(r"[a-z]+-([0-9a-f]{12})")
_MAX_QUOTED = 60

NOTHING = object()
"""Stands for the value of a key that an object lacks, where ``None`` would mean a JSON null."""


class Normalised(NamedTuple):
    """A normalised text and the codes of what was changed."""

    text: str
    codes: tuple[str, ...]


def normalise(raw: str) -> Normalised:
    """Normalise a text field.

    Lone surrogates become U+FFFD, control characters that are not white space go, every run of white space becomes one
    space and the ends are trimmed. Case, quotes, emoji and Unicode form stay.
    """
    codes = []
    text = without_surrogates(raw)
    if text != raw:
        codes.append("surrogate")
    cleaned = _CONTROL.sub("", text)
    if cleaned != text:
        codes.append("control_character")
    spaced = " ".join(cleaned.split())
    if spaced != cleaned:
        codes.append("white_space")
    return Normalised(spaced, tuple(codes))


def dialogue_id(corpus: str, utterances: Iterable[tuple[str, str]]) -> str:
    """Return ``<corpus>-`` and 12 hex digits over the (speaker, text) pairs of the kept, unmerged turns.

    Labels, surveys, situation, file and position do not enter: one dialogue has one id in every layout and option.
    """
    lines = "\n".join(f"{speaker}\t{text}" for speaker, text in utterances)
    return f"{corpus}-{sha256(lines.encode()).hexdigest()[:12]}"


def ids_digest(dialogues: Iterable[Dialogue]) -> str:
    """Return the hex SHA-256 over the sorted ids (their 12 digits where computed), joined by line ends."""
    parts = []
    for dialogue in dialogues:
        computed = _COMPUTED_ID.fullmatch(dialogue.id)
        parts.append(computed.group(1) if computed else dialogue.id)
    return sha256("\n".join(sorted(parts)).encode()).hexdigest()


def quoted(value: str) -> str:
    """Return a key, label or word in quotes: at most 60 characters, what cannot be printed escaped."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in value[: _MAX_QUOTED + 1])
    if len(shown) > _MAX_QUOTED:
        shown = shown[: _MAX_QUOTED - 1] + "…"
    return f"'{shown}'"


def listed(words: Iterable[str], *, limit: int = 10) -> str:
    """Return words in quotes, joined by commas; beyond the limit only their number."""
    all_words = list(words)
    shown = ", ".join(quoted(word) for word in all_words[:limit])
    more = len(all_words) - limit
    return f"{shown} and {more} more" if more > 0 else shown or "none"


def json_type(value: Any) -> str:
    """Return the JSON type of a parsed value with its article: ``an array``, ``null``, ``nothing``."""
    if value is NOTHING:
        return "nothing"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Mapping):
        return "an object"
    return "an array" if isinstance(value, list | tuple) else f"a value of type {type(value).__name__}"
