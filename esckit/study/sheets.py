"""Filled-in sheets of a study, as raters send them back: read in any form that spreadsheets save, and checked.

Everything that is wrong is told at once, with file and row. Only ids and answers are read; the texts of a sheet may
have been changed by a spreadsheet without harm.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from esckit.errors import DataError
from esckit.registry import did_you_mean
from esckit.study.key import ANSWERS, Asked, StudyKey

_ENCODINGS = ("utf-8-sig", "utf-16", "cp1252")
"""As spreadsheets save: CSV UTF-8, Unicode text, and plain CSV of a Western system."""

_MOST_BYTES = 50_000_000

_SHOWN = 5


class Place(NamedTuple):
    """Where an answer stands: file, and row as a spreadsheet counts it."""

    file: str
    row: int

    def __str__(self) -> str:
        """Return file and row, as messages show them."""
        return f"{self.file}, row {self.row}"


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of a study.

    Attributes:
        given: By rater and question, by dimension; as the rater gave them, with sides as the rater saw them.
        failed_checks: Attention checks that a rater answered otherwise than told, in any dimension.
        missing: Number of answers that a rater did not give.
    """

    given: Mapping[tuple[str, str], Mapping[str, str]]
    failed_checks: Mapping[str, tuple[str, ...]]
    missing: Mapping[str, int]

    def has_any(self, rater: str) -> bool:
        """Return whether a rater gave any answer."""
        return any(answers for (of, _), answers in self.given.items() if of == rater)


@dataclass(slots=True)
class _Sheets:
    """What has been read so far, and what was wrong with it."""

    key: StudyKey
    given: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    places: dict[tuple[str, str], Place] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def read(self, path: Path) -> None:
        """Read one sheet; what is wrong is added to the problems."""
        try:
            rows = list(_rows(path))
        except DataError as error:
            self.problems.append(error.headline + (f"; expected {error.expected}" if error.expected else ""))
            return
        columns = ("study", "rater", "question", *self.key.dimensions)
        header = {name.strip().casefold(): name for name in (rows[0][1] if rows else {})}
        if lacking := [name for name in columns if name not in header]:
            self.problems.append(f"{path.name}: no column {', '.join(lacking)}; expected {', '.join(columns)}")
            return
        repeated: dict[str, list[str]] = defaultdict(list)
        for number, row in rows:
            cells = {name: row[header[name]].strip() for name in columns}
            if any(cells.values()):
                self._take(Place(path.name, number), cells, repeated)
        for other, questions in repeated.items():
            self.problems.append(f"{path.name}: {_listed(questions)} answered twice, first in {other}")

    def _take(self, place: Place, cells: Mapping[str, str], repeated: dict[str, list[str]]) -> None:
        rater, question = cells["rater"], cells["question"]
        if cells["study"] != self.key.study:
            self.problems.append(f"{place}: study {cells['study']!r}; expected {self.key.study!r}")
        elif rater not in self.key.raters:
            self.problems.append(f"{place}: unknown rater {rater!r}; expected one of {', '.join(self.key.raters)}")
        elif question not in self.key.questions:
            hint = did_you_mean(question, self.key.questions)
            self.problems.append(f"{place}: unknown question {question!r}" + (f"; {hint}" if hint else ""))
        elif (rater, question) in self.given:
            repeated[self.places[rater, question].file].append(f"{rater}'s {question}")
        else:
            answers = {}
            for name in self.key.dimensions:
                value = _normal(cells[name])
                if value and value not in self.key.values:
                    expected = f"one of {', '.join(self.key.values)}"
                    self.problems.append(f"{place}: {name} {cells[name]!r}; expected {expected}")
                elif value:
                    answers[name] = value
            self.given[rater, question], self.places[rater, question] = answers, place

    def missing(self) -> dict[str, dict[str, list[str]]]:
        """Return the dimensions without an answer by question, by rater."""
        found: dict[str, dict[str, list[str]]] = {}
        for rater, asked in self.key.raters.items():
            lacking = {
                each.question: [
                    name for name in self.key.dimensions if name not in self.given.get((rater, each.question), {})
                ]
                for each in asked
            }
            found[rater] = {question: names for question, names in lacking.items() if names}
        return found


def read_answers(key: StudyKey, folder: Path, sheets: Sequence[Path], *, partial: bool = False) -> Answers:
    """Return the answers in the sheets of a study.

    Args:
        key: The study.
        folder: Its folder; without any sheet named, all of ``answers/`` are read, but not hidden files.
        sheets: CSV files.
        partial: Take what is there, where raters or answers are missing.

    Raises:
        DataError: If there is no sheet, or anything is wrong with one; the message names all of it.
    """
    paths = list(sheets) or sorted(path for path in (folder / ANSWERS).glob("*.csv") if not path.name.startswith("."))
    if not paths:
        raise DataError(
            "no sheet with answers",
            path=str(folder / ANSWERS),
            expected="the CSV files that raters sent, or their names",
        )
    found = _Sheets(key)
    for path in paths:
        found.read(path)
    missing = found.missing()
    if not partial:
        found.problems += _unfinished(key, missing)
    if found.problems:
        count = "1 problem" if len(found.problems) == 1 else f"{len(found.problems)} problems"
        only_unfinished = len(found.problems) == len(list(_unfinished(key, missing)))
        raise DataError(
            "\n  ".join([f"sheets of study {key.study}: {count}", *found.problems]),
            hint="--partial takes what is there" if not partial and only_unfinished else None,
        )
    if not any(found.given.values()):
        raise DataError(
            "sheets without any answer", path=str(paths[0]), expected="answers in the columns of dimensions"
        )
    return Answers(
        found.given,
        {rater: tuple(_failed(key, found.given, rater, asked)) for rater, asked in key.raters.items()},
        {rater: sum(map(len, lacking.values())) for rater, lacking in missing.items()},
    )


def _unfinished(key: StudyKey, missing: Mapping[str, Mapping[str, Sequence[str]]]) -> Iterator[str]:
    for rater, lacking in missing.items():
        if len(lacking) == len(key.raters[rater]) and all(len(it) == len(key.dimensions) for it in lacking.values()):
            yield f"no answers of rater {rater}"
        elif lacking:
            n = sum(map(len, lacking.values()))
            whole = len(key.raters[rater]) * len(key.dimensions)
            yield f"rater {rater}: {n} of {whole} answers missing, in {_listed(list(lacking))}"


def _failed(
    key: StudyKey, given: Mapping[tuple[str, str], Mapping[str, str]], rater: str, asked: Sequence[Asked]
) -> Iterator[str]:
    """Yield the attention checks that a rater answered, and not as told."""
    for each in asked:
        answers = given.get((rater, each.question), {})
        if each.expected is not None and any(value != each.expected for value in answers.values()):
            yield each.question


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _normal(cell: str) -> str:
    """Return an answer as the key writes it: ``Tie`` is ``tie``, and a spreadsheet's ``2.0`` or ``2,0`` is ``2``."""
    return re.sub(r"^(\d+)[.,]0+$", r"\1", cell.casefold())


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV file by the names of its columns, with their numbers.

    Raises:
        DataError: If the file cannot be read, or is no table.
    """
    if not path.is_file():
        raise DataError("no such file", path=str(path), expected="a sheet as CSV")
    if path.stat().st_size > _MOST_BYTES:
        raise DataError("a file of more than 50 MB", path=str(path), expected="a sheet as CSV")
    raw = path.read_bytes()
    if raw[:4] in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
        raise DataError("a workbook", path=path.name, expected="a CSV file: in the spreadsheet, save it as CSV")
    text = next((found for name in _ENCODINGS if (found := _decoded(raw, name)) is not None), "")
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        for number, cells in enumerate(reader, start=1):
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = cells
            else:
                yield number, dict(zip(header, [*cells, *[""] * len(header)], strict=False))
    except csv.Error as error:
        raise DataError(f"no CSV ({error})", path=path.name, expected="a sheet as CSV") from error


def _decoded(raw: bytes, encoding: str) -> str | None:
    if encoding == "utf-16" and raw[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        return None
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None
