"""The two sinks that ship: one stops at the first refusal, one counts refusals and lets the loader go on.

The formats by name: which keys tell them apart, and who reads them.

Recognition looks at records, never at file names.

Raw records to dialogues: what happens to every record whatever its layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from esckit.data.containers import RawRecord, raw_records
from esckit.data.decoding import OWN_DATA, StrictDecoder
from esckit.data.fields import RecordFields
from esckit.errors import DataError
from esckit.protocols import Issue, IssueSink
from esckit.registry import Registry
from esckit.text import json_type, listed, quoted
from esckit.types import Dialogue


class IssueList:
    """The sink that ships: collects what is noted; raises on the first refusal, or counts refusals and goes on.

    Args:
        go_on: Whether to go on after a refused record; an error of a whole file is raised all the same.
        strict: Whether a warning refuses its record (``--strict``).

    Attributes:
        issues: What was noted, in order.
        refusals: Why records were refused, in order.
    """

    def __init__(self, *, go_on: bool = False, strict: bool = False) -> None:
        self.go_on = go_on
        self.strict = strict
        self.issues: list[Issue] = []
        self.refusals: list[DataError] = []

    def note(self, issue: Issue) -> None:
        """Keep the issue; raise a warning that refuses its record, for the reader of records to hand to `refuse`."""
        if self.strict and issue.severity == "W":
            found = f"{issue.code} ({issue.detail})" if issue.detail else issue.code
            hint = "It is a warning: without --strict it is only counted"
            raise DataError(found, path=issue.file, record=issue.record, field=issue.field, hint=hint)
        self.issues.append(issue)

    def refuse(self, error: DataError) -> None:
        """Keep the error, or raise it."""
        if error.whole_file or not self.go_on:
            raise error
        self.refusals.append(error)


AUTO = "auto"


NEEDS: Mapping[str, str] = {
    "esconv": "`dialog` with items that have `content`",
    "esconv-hub": "`dialog` with items that have `text`, and `survey_score`",
    "ppdpp": "`dialog` with items that have `text`",
    "extes": "`content` and `scene` or `description`",
    "jsonl": "`scenario` and `turns`",
}
"""The formats, and the keys that a record of each must have."""


RECORD_READERS = Registry(
    "data set format",
    {
        "esconv": "esckit.data.esconv:original_record",
        "esconv-hub": "esckit.data.esconv:hub_record",
        "ppdpp": "esckit.data.esconv:ppdpp_record",
        "extes": "esckit.data.extes:extes_record",
        "jsonl": "esckit.data.jsonl:jsonl_record",
    },
)
"""Format name to the function that reads one record of it; a user's own loader of whole files is a ``module:attr``."""


class Foreign(NamedTuple):
    """A layout that is known and not read, and what to do about it."""

    name: str
    hint: str


_CHAT = Foreign("chat records ('messages' of 'role' and 'content')", f"They cannot be read yet. {OWN_DATA}")

_SHAREGPT = Foreign("ShareGPT records ('conversations' of 'from' and 'value')", f"They cannot be read yet. {OWN_DATA}")

_CARDS = Foreign(
    "role cards of ESC-Eval ('base' and 'res'), which describe seekers and hold no dialogue",
    "A scenario of self-play comes from a dialogue; docs/data.md lists the corpora that are read",
)

_MULTIESC = Foreign(
    "MultiESC's copy of ESConv (items with 'all_strategy'), whose turns are joined and whose labels are fused",
    "Use ESConv itself; docs/data.md says where it is",
)


_N_PROBED = 20

_TEXT_LAYOUTS = frozenset({"esconv-hub", "ppdpp"})


class Shape(NamedTuple):
    """The format that a record looks like; ``certain`` if it is that format or a broken one of no other."""

    format: str | None
    certain: bool


def shape_of(value: Any) -> Shape:
    """Return which format a record's keys speak for."""
    if not isinstance(value, dict):
        return Shape(None, certain=False)
    if "scenario" in value and "turns" in value:
        return Shape("jsonl", certain=True)
    if "dialog" in value:
        return _dialog_shape(value)
    if "content" in value and ("scene" in value or "description" in value):
        return Shape("extes", certain=isinstance(value["content"], list) and bool(value["content"]))
    if "scenario" in value or "turns" in value:
        return Shape("jsonl", certain=False)
    if "scene" in value and "description" in value:
        return Shape("extes", certain=False)
    return Shape(None, certain=False)


def foreign(value: Any) -> Foreign | None:
    """Return which known layout a value has that is not read, None if it has none of these."""
    if isinstance(value, list):
        return foreign({"messages": value})
    if not isinstance(value, dict):
        return None
    if _first(value, "dialog").keys() & {"all_strategy", "vad"}:
        return _MULTIESC
    if shape_of(value).format is not None:
        return None
    if {"base", "res"} <= value.keys():
        return _CARDS
    items = [value, *(_first(value, key) for key in ("messages", "conversations", "conversation"))]
    if any({"from", "value"} <= item.keys() for item in items):
        return _SHAREGPT
    return _CHAT if any({"role", "content"} <= item.keys() for item in items) else None


def _first(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the first item of a list of objects, an empty one if there is none."""
    items = record.get(key)
    return items[0] if isinstance(items, list) and items and isinstance(items[0], dict) else {}


def _dialog_shape(record: Mapping[str, Any]) -> Shape:
    items = record["dialog"] if isinstance(record["dialog"], list) else []
    for item in items:
        if isinstance(item, dict) and "content" in item:
            return Shape("esconv", certain=True)
        if isinstance(item, dict) and "text" in item:
            return Shape("esconv-hub" if "survey_score" in record else "ppdpp", certain=True)
    return Shape("esconv", certain=False)


def agree(found: str, format: str) -> bool:
    """Return whether a record that looks like one format may stand in a file of another.

    The two text layouts differ by the survey only, which a record may lack.
    """
    return found == format or {found, format} <= _TEXT_LAYOUTS


def unwrapped(value: Any) -> Any:
    """Return the object inside the only column ``text`` of a row, or the value itself.

    Raises:
        DataError: If that object holds a fault (a key twice, say); it names no place.
    """
    if not isinstance(value, dict) or value.keys() != {"text"} or not isinstance(value["text"], str):
        return value
    try:
        inner, _, fault = StrictDecoder().whole(value["text"])
    except (ValueError, RecursionError):
        return value
    if not isinstance(inner, dict):
        return value
    if fault is not None:
        raise DataError(fault.found, expected=fault.expected)
    return inner


def recognise(records: Iterable[RawRecord], path: str) -> str:
    """Return the format of the first record that tells, looking at twenty at most.

    Raises:
        DataError: If none of them looks like a known format.
    """
    guess = None
    first: Any = None
    for n_seen, record in enumerate(islice(records, _N_PROBED)):
        try:
            value = unwrapped(record.value)
        except DataError:
            continue
        other = foreign(value)
        if other is not None:
            raise DataError.of_file(path, other.name, expected=", ".join(NEEDS) + " (docs/data.md)", hint=other.hint)
        shape = shape_of(value)
        if shape.format and shape.certain:
            return shape.format
        guess = guess or shape.format
        first = value if n_seen == 0 else first
    if guess:
        return guess
    found = f"the keys {listed(first)}" if isinstance(first, dict) and first else json_type(first)
    raise DataError.of_file(
        path,
        f"{found} in the first record, which is no known format",
        expected="; ".join(f"{name}: {needs}" for name, needs in NEEDS.items()),
        hint=f"If it is one of them, name it with --format. {OWN_DATA}",
    )


def recognise_file(path: Path) -> str:
    """Return the format of a file.

    Raises:
        DataError: If it is not readable, of no known format, or no record of it can be parsed.
    """
    probe = IssueList(go_on=True)
    records = raw_records(path, sink=probe)
    first = next(records, None)
    if first is None:
        raise probe.refusals[0]
    return recognise(chain([first], records), str(path))


def check_format(asked: str, path: Path) -> None:
    """Check that a format that was asked for is not plainly the wrong one.

    Raises:
        DataError: If the first telling record is of another format.
    """
    try:
        found = recognise_file(path)
    except DataError:
        return  # the loader says it better, record by record
    if not agree(found, asked):
        raise DataError.of_file(
            path,
            f"records of format {found!r} ({NEEDS[found]}) where format {asked!r} was asked for",
            expected=NEEDS[asked],
            hint=f"Use --format {found} or leave it out",
        )


RecordReader = Callable[[RecordFields], Dialogue]


_ARRAY_FORMATS = frozenset({"esconv", "extes"})


def read_dialogues(
    path: Path, *, format: str, sink: IssueSink, records: Iterable[RawRecord] | None = None
) -> Iterator[Dialogue]:
    """Yield the dialogues of a file; refused records go to the sink and are passed over.

    Args:
        path: The file, for messages alone if ``records`` are given.
        format: Name of a shipped format.
        sink: Takes notes, warnings and refusals.
        records: Raw records from elsewhere.

    Raises:
        DataError: If the whole file is unusable, or the sink raises.
    """
    read: RecordReader = RECORD_READERS.resolve(format)
    container_noted = False
    places: dict[str, str] = {}
    for raw in raw_records(path, sink=sink) if records is None else records:
        fields = RecordFields(raw, path)
        try:
            _unwrap(fields)
            _check_shape(fields, format)
            dialogue = read(fields)
            if format == "jsonl":  # whose ids are the records' own word, so that two dialogues can have one
                _check_new(fields, dialogue.id, places)
        except DataError as error:
            sink.refuse(error)
            continue
        if not container_noted and _is_foreign(raw, format):
            fields.note("container", detail=raw.container)
            container_noted = True
        if accepted(fields.issues, sink):
            yield dialogue


def _check_new(fields: RecordFields, dialogue_id: str, places: dict[str, str]) -> None:
    """Refuse an id that the file had before."""
    place = f"record {fields.raw.index}" + (f", line {fields.raw.line}" if fields.raw.line else "")
    first = places.setdefault(dialogue_id, place)
    if first != place:
        found = f"the id {quoted(dialogue_id)} again, first in {first} and now in {place}"
        raise fields.error(found, "scenario.id", expected="every id once")


def accepted(issues: Iterable[Issue], sink: IssueSink) -> bool:
    """Note what was met in one record; return False if the sink takes a warning for a refusal and goes on."""
    try:
        # Warnings first: what else was met in a refused record does not count.
        for issue in sorted(issues, key=lambda issue: issue.severity == "N"):
            sink.note(issue)
    except DataError as error:
        sink.refuse(error)
        return False
    return True


def _unwrap(fields: RecordFields) -> None:
    """Replace a row with a JSON ``text`` column by what it holds."""
    raw = fields.raw
    try:
        value = unwrapped(raw.value)
    except DataError as error:
        raise fields.error(error.found, "text", expected=error.expected) from error
    if value is not raw.value:
        fields.raw = RawRecord(raw.index, raw.line, value, raw.container)
        fields.note("text_column")


def _check_shape(fields: RecordFields, format: str) -> None:
    """Refuse a record that is no object, or one of another format."""
    other = foreign(fields.raw.value)
    if other is not None:
        raise fields.error(other.name, expected=f"format {format!r}: {NEEDS[format]}", hint=other.hint)
    fields.object(fields.raw.value)
    found = shape_of(fields.raw.value)
    if found.format is None or not found.certain or agree(found.format, format):
        return
    raise fields.error(f"a record of format {found.format!r}", expected=f"format {format!r}: {NEEDS[format]}")


def _is_foreign(raw: RawRecord, format: str) -> bool:
    """Return whether the format is usually kept in another container; a single line may be a single object."""
    if format in _ARRAY_FORMATS:
        return raw.container == "lines" and raw.index > 0
    return raw.container in ("array", "object")
