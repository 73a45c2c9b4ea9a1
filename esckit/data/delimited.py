"""CSV and TSV: rows by the columns of the header. Quoted cells may hold delimiters and line ends."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from esckit.data.names import check_distinct
from esckit.errors import DataError
from esckit.text import listed, quoted

_DELIMITERS = ("\t", ",", ";", "|")

_N_PROBED = 5

_WORD = re.compile(r"[\w.#/-]{1,40}")


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        line: The line it ends on, counted from 1.
        cells: Its cells by column; columns after a short row's end lack.
        columns: All columns of the table.
    """

    line: int
    cells: dict[str, str]
    columns: tuple[str, ...]


def delimiter_of(text: str, is_column: Callable[[str], bool], *, whole: bool = True) -> str | None:
    """Return what separates the columns of a table, None if the text looks like no table.

    The header tells: it has the most columns under the right delimiter, at least two, each with a name. Either two of
    them are known, or they are single words or one is known, and some row below has as many cells: any other first line
    may be something that somebody said, which no message may quote. So may a line that says one word twice, unless one
    of its columns is known and the others are single words.

    Args:
        text: The beginning of a file.
        is_column: Whether a name is that of a known column.
        whole: Whether that is all of it; else the last row may be cut.
    """
    best, found = 1, None
    for delimiter in _DELIMITERS:
        rows = list(islice(_rows(text, delimiter), _N_PROBED + 1))
        rows = rows if whole or len(rows) > _N_PROBED else rows[:-1]
        header = [cell.strip() for cell in rows[0]] if rows else []
        n_known = sum(map(is_column, set(header)))
        are_words = all(is_column(cell) or _WORD.fullmatch(cell) for cell in header)
        is_header = n_known > 1 or ((n_known > 0 or are_words) and len(header) in map(len, rows[1:]))
        is_plain = len(set(header)) == len(header) or (n_known > 0 and are_words)
        if is_header and is_plain and all(header) and len(header) > best:
            best, found = len(header), delimiter
    return found


def _rows(text: str, delimiter: str) -> Iterator[list[str]]:
    """Yield the rows up to the first that cannot be read."""
    with suppress(csv.Error):
        yield from filter(None, csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True))


def table_rows(text: str, delimiter: str, path: Path) -> Iterator[Row]:
    """Yield the rows below the header; blank lines are passed over.

    A row that ends early has no cells for the last columns.

    Raises:
        DataError: If two columns have one name, a row cannot be read, or it has more cells than there are columns.
    """
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: tuple[str, ...] = ()
    try:
        for row in reader:
            if not row:
                continue
            if not header:
                header = tuple(cell.strip() for cell in row)
                check_distinct(path, header)
                continue
            if len(row) > len(header):
                raise DataError.of_file(
                    path,
                    f"{len(row)} cells in the row that ends on line {reader.line_num}",
                    expected=f"at most {len(header)}, as many as columns ({listed(header)})",
                    hint="A cell that holds the delimiter, a quote or a line end must stand in double quotes",
                )
            yield Row(reader.line_num, dict(zip(header, row, strict=False)), header)
    except csv.Error as error:
        found = f"a row that cannot be read at line {reader.line_num} ({quoted(str(error))[1:-1]})"
        hint = 'Cells with quotes need quotes around them, and "" for each quote inside'
        raise DataError.of_file(path, found, expected="CSV or TSV", hint=hint) from error
