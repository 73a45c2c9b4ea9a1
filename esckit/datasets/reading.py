"""Raw records to dialogues: what happens to every record whatever its layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from esckit.datasets.containers import RawRecord, raw_records
from esckit.datasets.fields import RecordFields
from esckit.datasets.formats import NEEDS, agree, foreign, shape_of, unwrapped
from esckit.errors import DataError
from esckit.protocols import Issue, IssueSink
from esckit.types import Dialogue

RecordReader = Callable[[RecordFields], Dialogue]

_ARRAY_FORMATS = frozenset({"esconv", "extes"})


def read_dialogues(path: Path, read: RecordReader, *, format: str, sink: IssueSink) -> Iterator[Dialogue]:
    """Yield the dialogues of a file; refused records go to the sink and are passed over.

    Args:
        path: File.
        read: Reads one record of the format.
        format: The format's name.
        sink: Takes notes, warnings and refusals.

    Raises:
        DataError: If the whole file is unusable, or the sink raises.
    """
    return dialogues_of(raw_records(path, sink=sink), path, read, format=format, sink=sink)


def dialogues_of(
    records: Iterable[RawRecord], path: Path, read: RecordReader, *, format: str, sink: IssueSink
) -> Iterator[Dialogue]:
    """Yield the dialogues of raw records; as :func:`read_dialogues` otherwise."""
    container_noted = False
    for raw in records:
        fields = RecordFields(raw, path)
        try:
            _unwrap(fields)
            _check_shape(fields, format)
            dialogue = read(fields)
        except DataError as error:
            sink.refuse(error)
            continue
        if not container_noted and _is_foreign(raw, format):
            fields.note("container", detail=raw.container)
            container_noted = True
        if accepted(fields.issues, sink):
            yield dialogue


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
