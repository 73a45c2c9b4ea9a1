"""The formats of corpora: what a record of each must have, how it looks, and which of them a record is.

Recognition looks at the keys of records, never at file names. What each format looks like inside is known to its
reader (:data:`RECORD_READERS`).
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from esckit.data.kinds import Guess
from esckit.data.names import Names
from esckit.registry import Registry
from esckit.text import listed, quoted

AUTO = "auto"


class Format(NamedTuple):
    """What is known about a format without reading it.

    Attributes:
        reader: ``module:attr`` of the function that reads one record of it.
        needs: What a record must have, in words.
        keys: The keys that the first record is compared with where no format fits.
        example: Two lines of a file in this format.
        unusual: Containers that it is not usually kept in.
    """

    reader: str
    needs: str
    keys: tuple[str, ...]
    example: tuple[str, str]
    unusual: tuple[str, ...] = ()


_READERS = "esckit.data.readers:"

_DOCUMENT, _LINES = ("lines",), ("array", "object")

_ESCONV = ("dialog", "situation", "emotion_type", "problem_type")

FORMATS: Mapping[str, Format] = {
    "esconv": Format(
        f"{_READERS}original_record",
        "`dialog` with items that have `content`",
        _ESCONV,
        (
            '[{"emotion_type": "…", "problem_type": "…", "situation": "…", "survey_score": {}, "dialog": ['
            '{"speaker": "seeker", "annotation": {}, "content": "…"},',
            '{"speaker": "supporter", "annotation": {"strategy": "Question"}, "content": "…"}]}]',
        ),
        unusual=_DOCUMENT,
    ),
    "esconv-hub": Format(
        f"{_READERS}hub_record",
        "`dialog` with items that have `text`, and `survey_score`",
        (*_ESCONV, "survey_score"),
        (
            '[{"emotion_type": "…", "problem_type": "…", "situation": "…", "survey_score": {}, "dialog": ['
            '{"speaker": "usr", "text": "…"},',
            '{"speaker": "sys", "strategy": "Question", "text": "…"}]}]',
        ),
        unusual=_LINES,
    ),
    "ppdpp": Format(
        f"{_READERS}ppdpp_record",
        "`dialog` with items that have `text`",
        _ESCONV,
        (
            '[{"emotion_type": "…", "problem_type": "…", "situation": "…", "dialog": [{"speaker": "usr", "text": "…"},',
            '{"speaker": "sys", "strategy": "Question", "text": "…"}]}]',
        ),
        unusual=_LINES,
    ),
    "multiesc": Format(
        f"{_READERS}multiesc_record",
        "`dialog` with items that have `text`, and `all_strategy` or `vad`",
        (*_ESCONV, "init_intensity", "final_intensity"),
        (
            '[{"emotion_type": "…", "problem_type": "…", "situation": "…", "init_intensity": 4, "final_intensity": 2, '
            '"dialog": [{"speaker": "usr", "text": "…", "feedback": null},',
            '{"speaker": "sys", "strategy": "Question", "all_strategy": ["Question"], "text": "…"}]}]',
        ),
        unusual=_LINES,
    ),
    "extes": Format(
        f"{_READERS}extes_record",
        "`content` and `scene` or `description`",
        ("scene", "description", "content"),
        (
            '[{"scene": "Academic Stress", "description": "…", "content": [{"User": "…"},',
            '{"AI Strategy": "Clarification", "AI": "…"}]}]',
        ),
        unusual=_DOCUMENT,
    ),
    "jsonl": Format(
        f"{_READERS}jsonl_record",
        "`scenario` and `turns`",
        ("scenario", "turns"),
        (
            '{"scenario": {"situation": "…"}, "turns": [{"speaker": "seeker", "text": "…"}, '
            '{"speaker": "supporter", "text": "…", "strategy": null}]}',
            '{"scenario": {"situation": ""}, "turns": [{"speaker": "seeker", "text": "… …"}]}',
        ),
        unusual=_LINES,
    ),
    "messages": Format(
        "esckit.data.chat:messages_record",
        "`messages` with items that have `role` and `content`",
        ("messages",),
        (
            '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
            '{"messages": [{"role": "user", "content": "… …"}, {"role": "assistant", "content": "…"}]}',
        ),
    ),
    "sharegpt": Format(
        "esckit.data.chat:sharegpt_record",
        "`conversations` with items that have `from` and `value`",
        ("conversations",),
        (
            '{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}',
            '{"conversations": [{"from": "human", "value": "… …"}, {"from": "gpt", "value": "…"}]}',
        ),
    ),
    "table": Format(
        "esckit.data.tables:table_record",
        "an utterance a row, with columns for dialogue, speaker and text",
        ("dialogue", "speaker", "text"),
        ("dialogue,speaker,text,strategy", '1,seeker,"…",'),
    ),
}
"""All formats by name."""

RECORD_READERS = Registry("data set format", {name: format.reader for name, format in FORMATS.items()})
"""Format name to the function that reads one record of it; a user's own loader of whole files is a ``module:attr``."""

READABLE = f"JSON, JSON lines, CSV, TSV, Parquet or gzip in one of the formats {', '.join(FORMATS)} (docs/data.md)"

CHAT = frozenset({"messages", "sharegpt"})
"""Formats of chat records, which one reader reads."""

_MESSAGE_KEYS = ("name", "strategy", "reasoning", "reasoning_content", "thinking", "tool_calls")

_FAMILIES = (frozenset({"esconv-hub", "ppdpp"}), CHAT)

_CARDS = Guess(
    "role cards of ESC-Eval ('base' and 'res'), which describe seekers and hold no dialogue",
    "A scenario of self-play comes from a dialogue; docs/data.md lists the corpora that are read",
)


class Shape(NamedTuple):
    """The format that a record looks like; ``certain`` if it is that format or a broken one of no other."""

    format: str | None
    certain: bool


def agree(found: str, format: str) -> bool:
    """Return whether a record that looks like one format may stand in a file of another.

    ESConv's two text layouts differ by the survey only, which a record may lack; chat records by the names of keys.
    """
    return found == format or any({found, format} <= family for family in _FAMILIES)


def shape_of(value: Any, names: Names) -> Shape:
    """Return the format that a record's keys indicate."""
    if isinstance(value, list):
        value = {"messages": value} if value else None
    if not isinstance(value, dict):
        return Shape(None, certain=False)
    if names.columns.get("messages") in value:
        return Shape(_chat_format(value, names) or "messages", certain=True)
    if "scenario" in value and "turns" in value:
        return Shape("jsonl", certain=True)
    if "dialog" in value:
        return _dialog_shape(value)
    if "content" in value and ("scene" in value or "description" in value):
        return Shape("extes", certain=isinstance(value["content"], list) and bool(value["content"]))
    return _own_shape(value, names)


def _own_shape(record: Mapping[str, Any], names: Names) -> Shape:
    """Return which of the formats for data of one's own a record has, or is a broken one of."""
    chat = _chat_format(record, names)
    if chat is not None:
        return Shape(chat, certain=True)
    columns = [names.column(what, record) for what in ("dialogue", "speaker", "text")]
    if all(columns) or any(names.columns.get(what) in record for what in ("dialogue", "speaker", "text")):
        return Shape("table", certain=True)
    if is_message(record):
        return Shape("messages", certain=True)
    if "scenario" in record or "turns" in record:
        return Shape("jsonl", certain=False)
    return Shape("extes" if "scene" in record and "description" in record else None, certain=False)


def is_message(value: Any) -> bool:
    """Return whether a value is a message of a chat, rather than a record that holds some or a row that has an id."""
    if not isinstance(value, dict):
        return False
    return any({*keys} <= value.keys() <= {*keys, *_MESSAGE_KEYS} for keys in (("role", "content"), ("from", "value")))


def _chat_format(record: Mapping[str, Any], names: Names) -> str | None:
    """Return the chat format that a record's list of messages has, None if it has no such list."""
    key = names.column("messages", record)
    items = record[key] if key is not None else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items[:1]):
        return None
    return "sharegpt" if items and {"from", "value"} <= items[0].keys() else "messages"


def _dialog_shape(record: Mapping[str, Any]) -> Shape:
    items = record["dialog"] if isinstance(record["dialog"], list) else []
    items = [item for item in items if isinstance(item, dict)]
    if any(item.keys() & {"all_strategy", "vad"} for item in items):
        return Shape("multiesc", certain=True)
    for item in items:
        if "content" in item:
            return Shape("esconv", certain=True)
        if "text" in item:
            return Shape("esconv-hub" if "survey_score" in record else "ppdpp", certain=True)
    return Shape("esconv", certain=False)


def foreign(value: Any, names: Names) -> Guess | None:
    """Return which known layout a value has that is not read, None if it has none of these."""
    is_card = isinstance(value, dict) and {"base", "res"} <= value.keys() and shape_of(value, names).format is None
    return _CARDS if is_card else None


class Closest(NamedTuple):
    """The format that comes nearest to a record of none: its name, and what of it is there and what is not."""

    format: str
    says: str


def closest(record: Mapping[str, Any]) -> Closest:
    """Return the format that comes nearest to a record; ``jsonl``, our own, if none has anything in common.

    A list of objects with several texts is one of messages, whatever it is called; else keys are compared.
    """
    known = {key for format in FORMATS.values() for key in format.keys}
    for key, value in record.items():
        texts = _texts_of_all(value) if key not in known else []
        if len(texts) > 1:
            unnamed = [what for what in ("speaker", "text") if Names().column(what, texts) is None]
            named = [f"messages={key}", *(f"{what}=NAME" for what in unnamed)]
            columns = " ".join(f"--column {shlex.quote(each)}" for each in named)
            says = f"it comes nearest to messages: {quoted(key)} is a list of objects with {listed(texts)}"
            return Closest("messages", f"{says}; say what holds what: {columns}")
    keys = record.keys()
    best, likeness, says = "jsonl", 0.0, "it has nothing in common with any format"
    for name, format in FORMATS.items():
        there = {key: found for key in format.keys if (found := _same(name, key, keys))}
        alike = {key: found for key in format.keys if key not in there and (found := _alike(key, keys))}
        share = (len(there) + len(alike) / 2) / len(format.keys)
        if share > likeness:
            clauses = [f"has {listed(there.values())}"] if there else []
            clauses += [f"has {quoted(found)} in place of {key!r}" for key, found in alike.items()]
            lacking = [key for key in format.keys if key not in there and key not in alike]
            clauses += [f"lacks {listed(lacking)}"] if lacking else []
            best, likeness, says = name, share, f"it comes nearest to {name}: it {', '.join(clauses)}"
    return Closest(best, says)


def _texts_of_all(value: Any) -> list[str]:
    """Return the keys under which every item of a list has a text; none if it is no list of objects."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return []
    return [key for key in value[0] if all(isinstance(item.get(key), str) for item in value)]


def _same(format: str, key: str, keys: Collection[str]) -> str | None:
    """Return the key that is the wanted one; columns of a table have several usual names."""
    if format == "table":
        return Names().column(key, keys)
    return key if key in keys else None


def _alike(key: str, keys: Collection[str]) -> str | None:
    """Return the key that is the wanted one spelt otherwise."""
    by_key = {other.casefold(): other for other in keys}
    close = get_close_matches(key, by_key, n=1, cutoff=0.75)
    return by_key[close[0]] if close else None


def shown(name: str) -> str:
    """Return the two lines that show how a file in a format looks, for the end of a message."""
    return "Readable would be, for example:\n  " + "\n  ".join(FORMATS[name].example)
