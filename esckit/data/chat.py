"""The reader of chat records: OpenAI's ``messages`` and ShareGPT's ``conversations``.

One record of each, with all that is read::

    {"id": "…", "situation": "…", "emotion_type": "…", "problem_type": "…", "experience_type": "…",
     "messages": [{"role": "system", "content": "…"}, {"role": "user", "content": "…"},
                  {"role": "assistant", "content": "…", "strategy": "Question"}]}
    {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}

Only the list is required; a record may also be the list itself. A system prompt instructs a model: it is no turn, and
is the seeker's situation only if the user says so. Reasoning (``<think>``, ``reasoning_content``) is no utterance. A
message that holds anything but text (a tool call, a picture) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from esckit.data.fields import Placed, RecordFields, assemble_own
from esckit.data.names import INSTRUCTIONS
from esckit.text import NOTHING, json_type, listed, quoted
from esckit.types import Dialogue, Speaker, Turn

_FACTS = ("situation", "emotion_type", "problem_type", "experience_type")

_REASONING = ("reasoning", "reasoning_content", "thinking")

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)

_RESPONSE = re.compile(r"\s*<response>(.*)</response>\s*", re.DOTALL)

_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})

_THOUGHT_PARTS = frozenset({"thinking", "reasoning"})


def _chat_record(fields: RecordFields, format: str) -> Dialogue:
    value, names = fields.raw.value, fields.names
    record = {"messages": value} if isinstance(value, list) else fields.object(value)
    key = names.column("messages", record)
    if key is None:
        wanted = names.columns.get("messages", "messages")
        raise fields.wrong_type(NOTHING, wanted, f"a list of messages; the record has {listed(record)}")
    items = fields.list(record[key], key)
    messages = [fields.object(item, f"{key}[{place}]") for place, item in enumerate(items)]
    columns = {what: names.column(what, record) for what in _FACTS}
    fields.extra_keys(record, (key, "id", *(column for column in columns.values() if column)))
    sides = fields.sides(
        [_role(fields, message, f"{key}[{i}]") for i, message in enumerate(messages)], key, more=INSTRUCTIONS
    )
    scenario = {
        what: fields.optional_text(record[column], column) if column else None for what, column in columns.items()
    }
    placed, situations = [], []
    for place, (message, side) in enumerate(zip(messages, sides, strict=True)):
        field = f"{key}[{place}]"
        if side == "seeker" or side == "supporter":
            placed.append(Placed(field, _turn(fields, message, field, side)))
        elif side == "situation":
            situations.append(_text(fields, message, field))
        else:
            fields.note("not_a_turn", field, detail=quoted(_role(fields, message, field)))
    scenario["situation"] = scenario["situation"] or " ".join(filter(None, situations))
    own_id = record.get("id")
    return assemble_own(fields, placed, scenario, format=format, own_id=own_id if isinstance(own_id, str) else None)


messages_record = partial(_chat_record, format="messages")
sharegpt_record = partial(_chat_record, format="sharegpt")


def _role(fields: RecordFields, message: Mapping[str, Any], field: str) -> str:
    """Return who a message is of."""
    column = fields.names.column("speaker", message)
    role = message[column] if column is not None else NOTHING
    if not isinstance(role, str):
        raise fields.wrong_type(role, f"{field}.{column or fields.names.columns.get('speaker', 'role')}", "a name")
    return role


def _turn(fields: RecordFields, message: Mapping[str, Any], field: str, side: Speaker) -> Turn:
    """Read one message of the seeker or the supporter."""
    names = fields.names
    columns = {what: names.column(what, message) for what in ("speaker", "text", "strategy")}
    fields.extra_keys(message, (*filter(None, columns.values()), *_REASONING, "tool_calls", "function_call"), field)
    text = _text(fields, message, field)
    if any(message.get(key) for key in _REASONING):
        fields.note("reasoning", field)
    label = (
        fields.label(message[columns["strategy"]], f"{field}.{columns['strategy']}") if columns["strategy"] else None
    )
    if side == "seeker" and label is not None:
        fields.warn("misplaced_annotation", f"{field}.{columns['strategy']}")
        label = None
    return Turn(speaker=side, text=text, source_strategy=label)


def _text(fields: RecordFields, message: Mapping[str, Any], field: str) -> str:
    """Return what a message says, without reasoning; parts of text are joined.

    Raises:
        DataError: If it holds anything else, or reasoning that does not end.
    """
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            raise fields.error(f"a message with {key}", f"{field}.{key}", expected="messages of text alone")
    column = fields.names.column("text", message)
    place = f"{field}.{column or fields.names.columns.get('text', 'content')}"
    content = message[column] if column is not None else NOTHING
    if isinstance(content, list):
        content = " ".join(filter(None, (_part(fields, part, f"{place}[{i}]") for i, part in enumerate(content))))
    if isinstance(content, str) and "<think>" in content:
        thought = _THOUGHT.fullmatch(content)
        if thought is None:
            raise fields.error(
                "reasoning that does not end, or begins within a text",
                place,
                expected="<think>…</think> before the text",
            )
        fields.note("reasoning", place)
        reply = _RESPONSE.fullmatch(thought[2])
        content = reply[1] if reply else thought[2]
    return fields.utterance(content, place)


def _part(fields: RecordFields, part: Any, place: str) -> str | None:
    """Return the text of one part of a message; None for reasoning."""
    if isinstance(part, str):
        return part
    kind = fields.object(part, place).get("type", "text")
    if kind in _THOUGHT_PARTS:
        fields.note("reasoning", place)
        return None
    if kind not in _TEXT_PARTS:
        shown = quoted(kind) if isinstance(kind, str) else json_type(kind)
        raise fields.error(f"a part of type {shown}", place, expected="parts of type 'text' alone")
    if not isinstance(part.get("text"), str):
        raise fields.wrong_type(part.get("text", NOTHING), f"{place}.text", "a string")
    return str(part["text"])
