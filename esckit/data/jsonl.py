"""The project's own record format, one dialogue a line, strictly read.

::

    {"schema": "esckit.dialogue/1", "scenario": {"id": "jsonl-0123456789ab", "situation": "…", "emotion_type": null,
     "problem_type": "job crisis", "experience_type": null}, "turns": [{"speaker": "seeker", "text": "…", …}, …],
     "survey": null, "source": null, "taxonomy": "esconv", "mapping": null}

``scenario`` and ``turns`` are required, all else may be absent. :func:`esckit.records.write_records` writes it; writing
and reading again gives equal dialogues. What a record says of its own source is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from esckit.data.fields import Placed, RecordFields, keep_spoken, note_turn_pattern
from esckit.documents import complaint
from esckit.errors import DataError
from esckit.registry import nearest
from esckit.text import NOTHING, dialogue_id, json_type, quoted, without_surrogates
from esckit.types import Dialogue, Record, Scenario, Source, Survey, Turn, TurnPart

R = TypeVar("R", bound=Record)


_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")

_SCHEMA = re.compile(re.escape(Dialogue.SCHEMA) + r"(\.\d+)?")

_SPEAKERS = ("seeker", "supporter")

_METADATA = ("emotion_type", "problem_type", "experience_type")

_RATINGS = tuple(name for name in Survey.model_fields if name != "answers")


def jsonl_record(fields: RecordFields) -> Dialogue:
    """Read one record."""
    record = dict(fields.object(fields.raw.value))
    _check_schema(fields, record.pop("schema", Dialogue.SCHEMA))
    _check_keys(fields, record, Dialogue)
    placed = [
        _turn(fields, fields.object(item, f"turns[{i}]"), f"turns[{i}]")
        for i, item in enumerate(fields.list(record.get("turns", NOTHING), "turns"))
    ]
    kept = keep_spoken(fields, placed)
    note_turn_pattern(fields, kept)
    scenario = _scenario(fields, record.get("scenario", NOTHING), kept)
    survey = None if record.get("survey") is None else _survey(fields, record["survey"])
    source = None if record.get("source") is None else _build(fields, Source, record["source"], "source")
    return Dialogue(
        scenario=scenario,
        turns=tuple(item.turn for item in kept),
        survey=survey,
        source=source,
        taxonomy=fields.label(record.get("taxonomy"), "taxonomy"),
        mapping=fields.label(record.get("mapping"), "mapping"),
    )


def _check_schema(fields: RecordFields, found: Any) -> None:
    if not isinstance(found, str):
        raise fields.wrong_type(found, "schema", f"the schema {Dialogue.SCHEMA!r}")
    if not _SCHEMA.fullmatch(found):
        raise fields.error(
            f"the schema {quoted(found)}",
            "schema",
            expected=f"the schema {Dialogue.SCHEMA!r}",
            hint="It was written by another version of esckit, or is no dialogue",
        )


def _check_keys(fields: RecordFields, found: Mapping[str, Any], kind: type[Record], field: str = "") -> None:
    """Refuse a key that the record class does not have."""
    for key in found:
        if key not in kind.model_fields:
            close = nearest(key, kind.model_fields) if len(key) < 100 else None
            asked = f"; did you mean {close!r}?" if close else ""
            expected = f"one of {', '.join(kind.model_fields)}{asked}"
            raise fields.error(f"the unknown key {quoted(key)}", field or None, expected=expected)


def _scenario(fields: RecordFields, value: Any, kept: list[Placed]) -> Scenario:
    """Read the scenario; compute its id where it brings none."""
    found = dict(fields.object(value, "scenario"))
    _check_keys(fields, found, Scenario, "scenario")
    found["situation"] = fields.optional_text(found.get("situation"), "scenario.situation") or ""
    for key in _METADATA:
        found[key] = fields.optional_text(found.get(key), f"scenario.{key}")
    own_id = found.get("id")
    if own_id is None:
        found["id"] = dialogue_id("jsonl", _utterances(kept))
    elif not isinstance(own_id, str):
        raise fields.wrong_type(own_id, "scenario.id", "a string")
    elif not _ID.fullmatch(own_id):
        raise fields.error(
            f"the id {quoted(own_id)}", "scenario.id", expected="1 to 64 of letters, digits, '.', '_', ':', '-'"
        )
    return Scenario(**found)


def _utterances(kept: list[Placed]) -> Iterator[tuple[str, str]]:
    """Yield speaker and text of the unmerged turns."""
    for item in kept:
        for piece in item.turn.parts or (item.turn,):
            yield item.turn.speaker, piece.text


def _turn(fields: RecordFields, item: dict[str, Any], place: str) -> Placed:
    _check_keys(fields, item, Turn, place)
    speaker = fields.speaker(item.get("speaker", NOTHING), f"{place}.speaker", _SPEAKERS)
    parts = item.get("parts")
    found = _spoken(fields, item, place) | {"speaker": speaker}
    if parts is not None:
        found["parts"] = tuple(
            _part(fields, fields.object(part, f"{place}.parts[{i}]"), f"{place}.parts[{i}]")
            for i, part in enumerate(fields.list(parts, f"{place}.parts"))
        )
    return Placed(place, Turn.model_validate(found))


def _part(fields: RecordFields, part: dict[str, Any], place: str) -> TurnPart:
    _check_keys(fields, part, TurnPart, place)
    return TurnPart.model_validate(_spoken(fields, part, place))


def _spoken(fields: RecordFields, item: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Read what turns and their parts have in common."""
    feedback = item.get("feedback")
    return {
        "text": fields.utterance(item.get("text", NOTHING), f"{place}.text"),
        "strategy": fields.label(item.get("strategy"), f"{place}.strategy"),
        "source_strategy": fields.label(item.get("source_strategy"), f"{place}.source_strategy"),
        "feedback": None if feedback is None else fields.rating(feedback, f"{place}.feedback"),
    }


def _survey(fields: RecordFields, value: Any) -> Survey:
    found = dict(fields.object(value, "survey"))
    _check_keys(fields, found, Survey, "survey")
    for key in _RATINGS:
        rating = found.get(key)
        found[key] = None if rating is None else fields.rating(rating, f"survey.{key}")
    answers = {} if found.get("answers") is None else fields.object(found["answers"], "survey.answers")
    found["answers"] = {
        without_surrogates(key): fields.optional_text(answer, f"survey.answers.{quoted(key)}")
        for key, answer in answers.items()
    }
    return _build(fields, Survey, found, "survey")


def _build(fields: RecordFields, kind: type[R], value: Any, field: str) -> R:
    """Validate an object of scalars as a record."""
    found = fields.object(value, field)
    _check_keys(fields, found, kind, field)
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise _complaint(fields, error, field) from error


def _complaint(fields: RecordFields, error: ValidationError, field: str) -> DataError:
    """Turn pydantic's first complaint into ours, by type and without the value."""
    first = error.errors(include_url=False)[0]
    place = ".".join([field, *(str(part) for part in first["loc"])])
    if first["type"] == "missing":
        return fields.wrong_type(NOTHING, place, "a value")
    expected = complaint(first).removeprefix("must be ")
    return fields.error(json_type(first["input"]), place, expected=expected)
