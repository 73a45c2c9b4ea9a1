"""From raw records to dialogues: which format a file is in, and what happens to every record.

What a format looks like from outside is in :mod:`esckit.data.formats`, inside in its reader; how files are opened in
:mod:`esckit.data.containers`. :class:`IssueList` is the sink that ships.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from esckit.data.containers import RawRecord, raw_records
from esckit.data.fields import RecordFields
from esckit.data.formats import (
    FORMATS,
    READABLE,
    RECORD_READERS,
    agree,
    closest,
    foreign,
    is_message,
    shape_of,
    shown,
)
from esckit.data.names import Names
from esckit.data.strict_json import StrictDecoder
from esckit.data.tables import Rows, WholeFile, dialogues_of
from esckit.errors import DataError
from esckit.protocols import Issue, IssueSink
from esckit.text import json_type, listed, quoted
from esckit.types import Dialogue


class IssueList:
    """The sink that ships: collects what is noted; raises on the first refusal, or counts refusals and continues.

    Args:
        go_on: Whether to continue after a refused record; an error of a whole file is raised all the same.
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


_N_PROBED = 20


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


def recognise(records: Iterable[RawRecord], path: str, names: Names) -> str:
    """Return the format of the first record that tells, looking at twenty at most.

    Raises:
        DataError: If none of them looks like a known format.
    """
    guess = None
    first: Any = None
    for n_seen, record in enumerate(islice(records, _N_PROBED)):
        if record.container == "cells":
            return "table"
        try:
            value = unwrapped(record.value)
        except DataError:
            continue
        other = foreign(value, names)
        if other is not None:
            raise DataError.of_file(path, other.found, expected=READABLE, hint=other.hint)
        shape = shape_of(value, names)
        if shape.format and shape.certain:
            return shape.format
        guess = guess or shape.format
        first = value if n_seen == 0 else first
    if guess:
        return guess
    data: dict[str, Any] = first if isinstance(first, dict) else {}
    near = closest(data)
    raise DataError.of_file(
        path,
        f"{f'the keys {listed(data)}' if data else json_type(first)} in the first record, which is no known format",
        expected=f"one of {', '.join(FORMATS)}; {near.says}" if data else READABLE,
        hint=f"If it is one of them, name it with --format, and its columns with --column. {shown(near.format)}",
    )


def recognise_file(path: Path, names: Names) -> str:
    """Return the format of a file.

    Raises:
        DataError: If it is not readable, of no known format, or no record of it can be parsed.
    """
    probe = IssueList(go_on=True)
    records = raw_records(path, sink=probe, names=names)
    first = next(records, None)
    if first is None:
        raise probe.refusals[0]
    return recognise(chain([first], records), str(path), names)


RecordReader = Callable[[RecordFields], Dialogue]


def read_dialogues(
    path: Path,
    *,
    format: str,
    sink: IssueSink,
    names: Names | None = None,
    records: Iterable[RawRecord] | None = None,
    places: dict[str, str] | None = None,
) -> Iterator[Dialogue]:
    """Yield the dialogues of a file; refused records go to the sink and are passed over.

    Args:
        path: The file, for messages alone if ``records`` are given.
        format: Name of a shipped format.
        sink: Takes notes, warnings and refusals.
        names: What the names in the file stand for; it counts them.
        records: Raw records from elsewhere.
        places: Where in the corpus each id stands, added to here: an id that already exists is refused. None: ids
            are computed from the dialogues, so one that comes again is the same dialogue.

    Raises:
        DataError: If the whole file is unusable, or the sink raises.
    """
    read: RecordReader = RECORD_READERS.resolve(format)
    names = names or Names()
    container_noted = False
    for raw in _records(path, format, sink, names, records):
        fields = RecordFields(raw, path, names)
        try:
            _check_shape(fields, format)
            dialogue = read(fields)
            if places is not None:
                place = ", ".join([f"record {raw.index}", *([f"line {raw.line}"] if raw.line else [])])
                first = places.setdefault(dialogue.id, f"{place} of {path.name}")
                if first != f"{place} of {path.name}":
                    found = f"the id {quoted(dialogue.id)} again, first in {first}"
                    raise fields.error(found, "scenario.id", expected="every id once")
        except DataError as error:
            sink.refuse(error)
            continue
        if not container_noted and raw.container in FORMATS[format].unusual and (raw.index or raw.container != "lines"):
            fields.note("container", detail=raw.container)
            container_noted = True
        if accepted(fields.issues, sink):
            names.spoken.update(fields.spoken)
            yield dialogue


def _records(
    path: Path, format: str, sink: IssueSink, names: Names, records: Iterable[RawRecord] | None
) -> Iterator[RawRecord]:
    """Yield one raw record for every dialogue: rows of a table, and messages that no list holds, are put together."""
    is_table = format == "table"
    rows = raw_records(path, sink=WholeFile(sink) if is_table else sink, names=names) if records is None else records
    if is_table:
        yield from dialogues_of(rows, path, names)
        return
    lone = []
    for raw in rows:
        if format in ("messages", "sharegpt") and is_message(raw.value):
            lone.append(raw)
        else:
            yield raw
    if lone:
        yield replace(lone[0], value=[raw.value for raw in lone])


def accepted(issues: Iterable[Issue], sink: IssueSink) -> bool:
    """Note the issues of one record; return False if the sink treats a warning as a refusal and continues."""
    try:
        # Warnings first: other issues of a refused record do not count.
        for issue in sorted(issues, key=lambda issue: issue.severity == "N"):
            sink.note(issue)
    except DataError as error:
        sink.refuse(error)
        return False
    return True


def _check_shape(fields: RecordFields, format: str) -> None:
    """Refuse a record that is no object, or one of another format; a JSON ``text`` column gives way to its content."""
    raw = fields.raw
    if isinstance(raw.value, Rows):
        return
    try:
        value = unwrapped(raw.value)
    except DataError as error:
        raise fields.error(error.found, "text", expected=error.expected) from error
    if value is not raw.value:
        fields.raw = RawRecord(raw.index, raw.line, value, raw.container)
        fields.note("text_column")
    wanted = f"format {format!r}: {FORMATS[format].needs}"
    other = foreign(value, fields.names)
    if other is not None:
        raise fields.error(other.found, expected=wanted, hint=other.hint)
    found = shape_of(value if isinstance(value, list) else fields.object(value), fields.names)
    if isinstance(value, list) and found.format is None:
        raise fields.wrong_type(value, None, "an object")
    if found.format and found.certain and not agree(found.format, format):
        wrong = fields.error(
            f"a record of format {found.format!r} ({FORMATS[found.format].needs})",
            expected=wanted,
            hint=f"Use --format {found.format} or leave it out",
        )
        wrong.whole_file = raw.index == 0  # then it is the format that is wrong, and not one record
        raise wrong
