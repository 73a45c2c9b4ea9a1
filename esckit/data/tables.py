"""Tables with one utterance a row: CSV, TSV, Parquet, JSON lines or the rows of a hub data set.

For example::

    dialogue_id,speaker,text,strategy,situation
    17,client,"I cannot sleep, and …",,Exams begin on Monday.
    17,therapist,Since when?,Question,

The columns for dialogue, speaker and text are required. The rows of a dialogue follow each other as they stand; they
need not be adjacent. A record is a dialogue, so its number counts dialogues in the order of their first rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from esckit.data.containers import RawRecord
from esckit.data.fields import Placed, RecordFields, assemble_own
from esckit.data.names import Names, missing_columns
from esckit.errors import DataError
from esckit.protocols import Issue, IssueSink
from esckit.text import NOTHING, json_type, quoted
from esckit.types import Dialogue, Speaker, Turn

_REQUIRED = ("dialogue", "speaker", "text")

_FACTS = ("situation", "emotion_type", "problem_type", "experience_type")


class Place(NamedTuple):
    """One row of a dialogue: its number among all rows, counted from 0, its line if it has one, and its cells."""

    number: int
    line: int | None
    cells: Mapping[str, Any]

    def field(self, column: str) -> str:
        """Return what messages call a cell."""
        where = f"row {self.number}" + (f" (line {self.line})" if self.line is not None else "")
        return f"{where}, {column}"


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one dialogue, and the columns of the table by what they hold."""

    rows: tuple[Place, ...]
    columns: Mapping[str, str]


class WholeFile:
    """A sink for the rows of a table: to pass one over would leave a gap in some dialogue, so the reading ends."""

    def __init__(self, sink: IssueSink) -> None:
        self._sink = sink

    def note(self, issue: Issue) -> None:
        """Pass it on."""
        self._sink.note(issue)

    def refuse(self, error: DataError) -> None:
        """Raise the error as one of the whole file."""
        error.whole_file = True
        raise error


def dialogues_of(rows: Iterable[RawRecord], path: Path, names: Names) -> Iterator[RawRecord]:
    """Yield one record for every dialogue of a table, in the order of their first rows.

    Raises:
        DataError: If a row is no object or names no dialogue, or columns are missing or cannot be told apart.
    """
    found = []
    for raw in rows:
        if not isinstance(raw.value, dict):
            row = f"row {raw.index}"
            raise DataError.of_file(path, f"{json_type(raw.value)} in {row}", expected="an utterance, as an object")
        found.append(raw)
    keys = list(dict.fromkeys(key for raw in found for key in (*raw.columns, *raw.value)))
    columns = _columns(path, keys, names)
    names.found.update(columns)
    by_dialogue: dict[str, list[RawRecord]] = {}
    for raw in found:
        own = raw.value.get(columns["dialogue"])
        if own is None or own == "" or isinstance(own, bool | list | dict):
            what = "nothing" if own == "" else json_type(own)
            field = Place(raw.index, raw.line, raw.value).field(columns["dialogue"])
            error = DataError.of_file(path, what, expected="the dialogue that the row belongs to, in every row")
            error.field = field
            raise error
        by_dialogue.setdefault(str(own).strip(), []).append(raw)
    for index, of_dialogue in enumerate(by_dialogue.values()):
        first = of_dialogue[0]
        rows_of = tuple(Place(raw.index, raw.line, raw.value) for raw in of_dialogue)
        yield RawRecord(index, first.line, Rows(rows_of, columns), first.container)


def _columns(path: Path, keys: list[str], names: Names) -> dict[str, str]:
    """Return the column of everything that the table has a column for.

    Raises:
        DataError: If one that is required, or that the user names, is not there, or several may be it.
    """
    candidates = {what: names.candidates(what, keys) for what in (*_REQUIRED, "strategy", *_FACTS)}
    missing = [what for what, found in candidates.items() if not found and (what in _REQUIRED or what in names.columns)]
    if missing:
        raise missing_columns(path, missing, keys, names)
    for what, found in candidates.items():
        if len(found) > 1:
            either = " or ".join(f"--column {what}={name}" for name in found)
            shown = " and ".join(map(quoted, found))
            raise DataError.of_file(path, f"{shown}, which may all be the column {what}", hint=f"Say which: {either}")
    return {what: found[0] for what, found in candidates.items() if found}


def table_record(fields: RecordFields) -> Dialogue:
    """Read one dialogue of a table."""
    rows: Rows = fields.raw.value
    columns = rows.columns
    used = set(columns.values())
    for column in dict.fromkeys(key for row in rows.rows for key in row.cells if key not in used):
        fields.note("extra_key", detail=quoted(column))
    words = [_who(fields, row, columns["speaker"]) for row in rows.rows]
    facts: dict[str, str | None] = dict.fromkeys(_FACTS)
    placed, situations = [], []
    for row, word, side in zip(rows.rows, words, fields.sides(words, columns["speaker"]), strict=True):
        text_field = row.field(columns["text"])
        if side == "ignore":
            fields.note("not_a_turn", text_field, detail=quoted(word))
        else:
            text = fields.utterance(row.cells.get(columns["text"], NOTHING), text_field)
            if side == "situation":
                situations.append(text)
            else:
                label = _label(fields, row, columns, side)
                placed.append(Placed(text_field, Turn(speaker=side, text=text, source_strategy=label)))
        for what in (what for what in _FACTS if what in columns):
            value = fields.optional_text(row.cells.get(columns[what]), row.field(columns[what]))
            if value is not None and facts[what] not in (None, value):
                fields.warn("metadata_differs", row.field(columns[what]))
            facts[what] = facts[what] or value
    facts["situation"] = facts["situation"] or " ".join(filter(None, situations))
    return assemble_own(fields, placed, facts, format="table")


def _who(fields: RecordFields, row: Place, column: str) -> str:
    """Return who speaks in a row; a number may be a name."""
    word = row.cells.get(column, NOTHING)
    if not isinstance(word, str | int) or isinstance(word, bool) or word == "":
        raise fields.wrong_type(NOTHING if word == "" else word, row.field(column), "who speaks")
    return str(word)


def _label(fields: RecordFields, row: Place, columns: Mapping[str, str], side: Speaker) -> str | None:
    """Return the strategy of a supporter's row; warn if a seeker's row has one."""
    column = columns.get("strategy")
    if column is None:
        return None
    label = fields.label(row.cells.get(column), row.field(column))
    if side == "seeker" and label is not None:
        fields.warn("misplaced_annotation", row.field(column))
        return None
    return label
