r"""Raw records out of a file: JSON array or object, JSON lines, CSV, TSV, gzip of any, Parquet, or a zip of JSON.

Which it is, the first characters say, never the name. JSON lines are streamed and split on ``\n`` bytes only, because
utterances may hold other line separators. What a record means is not known here (:mod:`esckit.data.layouts`).
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from esckit.data.delimited import delimiter_of, table_rows
from esckit.data.formats import READABLE, shown
from esckit.data.kinds import PYTHON_LITERALS, is_python, known_kind, what_it_is
from esckit.data.names import Names
from esckit.data.packed import only_json_member, packing, parquet_rows, unpacked
from esckit.data.strict_json import Decoded, StrictDecoder, ends_early, skip_space
from esckit.errors import DataError
from esckit.protocols import Issue, IssueSink

MAX_LINE_BYTES = 8 * 2**20

MAX_DOCUMENT_BYTES = 512 * 2**20

_BOM = b"\xef\xbb\xbf"

_CHUNK = 65_536


Container = Literal["array", "object", "lines", "rows", "cells"]


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record as the container gives it.

    Attributes:
        index: 0-based record index in the file; refused records and not blank lines are counted.
        line: 1-based line, of JSON lines and tables of text only.
        value: The parsed JSON value, of any type; a row of a table is an object.
        container: What it stood in: ``rows`` are those of Parquet or the hub, ``cells`` those of CSV or TSV.
        columns: All columns of a table of text, whose rows may end early.
    """

    index: int
    line: int | None
    value: Any
    container: Container
    columns: tuple[str, ...] = ()


class _Line(NamedTuple):
    """One line: 1-based number, offset of its first byte, size with its end; ``raw`` is empty if it is too long."""

    number: int
    offset: int
    size: int
    raw: bytes
    too_long: bool


def raw_records(path: Path, *, sink: IssueSink, names: Names | None = None) -> Iterator[RawRecord]:
    """Yield the records of a file in order; of a table, its rows.

    A broken line is refused through the sink and passed over; a broken array or table concerns the whole file.

    Args:
        path: The file.
        sink: Takes notes and refusals.
        names: Columns that the user names; a text with one of them is a table.

    Raises:
        DataError: If the file cannot be read as JSON at all, or holds no record.
    """
    with _opened(path) as source:
        if packing(source) == "parquet":
            for index, row in enumerate(parquet_rows(source, path)):
                yield RawRecord(index, None, row, "rows")
        else:
            yield from _Reading(source, path, sink, names or Names()).records()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, what a gzip file holds, or the only JSON member of a zip, as bytes that can be read twice."""
    try:
        with path.open("rb") as source:
            packed = packing(source)
            if packed == "gzip":
                with unpacked(source, path) as content:
                    yield content
                return
            if packed != "zip":
                yield source
                return
            member = only_json_member(source, path, max_bytes=MAX_DOCUMENT_BYTES)
    except OSError as error:
        raise DataError.of_file(
            path, f"a file that cannot be read ({error.strerror or type(error).__name__})"
        ) from error
    yield BytesIO(member)


class _Reading:
    """One pass over one opened file."""

    def __init__(self, source: BinaryIO, path: Path, sink: IssueSink, names: Names) -> None:
        self.source = source
        self.path = path
        self.sink = sink
        self.names = names
        self.error = partial(DataError.of_file, path)
        self.decoder = StrictDecoder()
        self.start = 0

    def records(self) -> Iterator[RawRecord]:
        """Yield the records, whatever the container is."""
        first = self._first_byte()
        if first == b"[":
            yield from self._array()
        elif first == b"{":
            document = self._as_one_object()
            if document is None:
                yield from self._json_lines()
            else:
                yield document
        elif not first:
            raise self.error("a file that holds no dialogue", expected="at least one record")
        else:
            yield from self._cells()

    def note(self, code: str, *, detail: str | None = None) -> None:
        """Note something about the file as a whole."""
        self.sink.note(Issue(code, "N", self.path.name, 0, detail=detail))

    # ------------------------------------------------------------ the beginning

    def _first_byte(self) -> bytes:
        """Skip a byte order mark, and return the first byte that is not white space (empty if there is none)."""
        head = self.source.read(4)
        wide = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32"}.get(head)
        if wide is None and head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            wide = "UTF-16"
        if wide:
            raise self.error(f"{wide} text (byte offset 0)", expected="UTF-8", hint="Save it as UTF-8")
        if head.startswith(_BOM):
            self.start = len(_BOM)
            self.note("bom")
        self.source.seek(self.start)
        while chunk := self.source.read(_CHUNK):
            stripped = chunk.lstrip(b" \t\r\n")
            if stripped:
                return stripped[:1]
        return b""

    # ------------------------------------------------------------ tables of text

    def _cells(self) -> Iterator[RawRecord]:
        """Yield the rows of CSV or TSV; say what any other file looks like."""
        self.source.seek(self.start)
        head = self.source.read(_CHUNK)
        kind = known_kind(head)
        if kind is not None:
            raise self.error(kind.found, expected=READABLE, hint=kind.hint)
        whole = len(head) < _CHUNK
        text = _utf8(head, self.start, self.error, whole=whole)
        delimiter = delimiter_of(text, self.names.is_column, whole=whole)
        if delimiter is None:
            raise self.error(what_it_is(text), expected=READABLE, hint=shown("table"))
        index = -1
        for index, row in enumerate(table_rows(self._document(), delimiter, self.path)):
            yield RawRecord(index, row.line, row.cells, "cells", row.columns)
        if index < 0:
            raise self.error("a header without rows", expected="at least one utterance")

    # ------------------------------------------------------------ documents

    def _document(self) -> str:
        """Return the whole text of a document that is parsed in one piece."""
        size = self.source.seek(0, os.SEEK_END) - self.start
        if size > MAX_DOCUMENT_BYTES:
            raise self.error(
                f"a JSON array or table of {size:,} bytes",
                expected=f"at most {MAX_DOCUMENT_BYTES:,} bytes (512 MiB)",
                hint="Write it as JSON lines, which are streamed",
            )
        self.source.seek(self.start)
        text = _utf8(self.source.read(), self.start, self.error)
        if "\r\n" in text:
            self.note("crlf")
        return text

    def _array(self) -> Iterator[RawRecord]:
        """Yield the elements of an array as they are parsed."""
        text = self._document()
        position = skip_space(text, skip_space(text, 0) + 1)
        index = 0
        if text[position : position + 1] == "]":
            raise self.error("a file that holds no dialogue", expected="at least one record")
        while True:
            decoded = self._element(text, position, index)
            if decoded.fault is None:
                yield RawRecord(index, None, decoded.value, "array")
            else:
                fault = decoded.fault
                self.sink.refuse(DataError(fault.found, path=str(self.path), record=index, expected=fault.expected))
            index += 1
            position = skip_space(text, decoded.end)
            mark = text[position : position + 1]
            if mark == "]":
                break
            if mark != ",":
                raise self._syntax(json.JSONDecodeError("Expecting ',' delimiter", text, position), index - 1)
            position = skip_space(text, position + 1)
        self._check_end(text, position + 1, index)

    def _check_end(self, text: str, position: int, index: int) -> None:
        end = skip_space(text, position)
        if end != len(text):
            raise self._syntax(json.JSONDecodeError("Extra data", text, end), index)

    def _element(self, text: str, position: int, index: int) -> Decoded:
        try:
            return self.decoder.at(text, position)
        except json.JSONDecodeError as error:
            raise self._syntax(error, index) from error
        except RecursionError as error:
            raise self.error("JSON that is nested too deeply", record=index) from error

    def _syntax(self, error: json.JSONDecodeError, index: int) -> DataError:
        """Return what is wrong with a document, by line and column."""
        if index == 0 and is_python(error.doc):
            return self.error(PYTHON_LITERALS, expected=READABLE)
        early = "; the file ends early" if ends_early(error) else ""
        return self.error(f"no JSON at line {error.lineno}, column {error.colno}: {error.msg}{early}", record=index)

    def _as_one_object(self) -> RawRecord | None:
        """Return a ``{`` document that spans several lines as one record, None if the file is JSON lines."""
        lines = (line for line in self._lines() if line.too_long or line.raw.strip())
        first = next(lines, None)
        if first is None or first.too_long:
            return None
        try:
            self.decoder.whole(first.raw.decode("utf-8"))
            return None
        except json.JSONDecodeError:
            pass  # only a syntax error says that this is no line of JSON lines
        except (UnicodeDecodeError, RecursionError):
            return None
        if is_python(first.raw.decode("utf-8", errors="replace")):
            raise self.error(PYTHON_LITERALS, expected=READABLE)
        second = next(lines, None)
        if second is None or second.raw.startswith(b"{"):
            return None
        text = self._document()
        decoded = self._element(text, skip_space(text, 0), 0)
        self._check_end(text, decoded.end, 1)
        if decoded.fault is not None:
            raise self.error(decoded.fault.found, record=0, expected=decoded.fault.expected)
        return RawRecord(0, None, decoded.value, "object")

    # ------------------------------------------------------------ lines

    def _lines(self) -> Iterator[_Line]:
        """Yield the lines from the start, reading no more than the limit of each into memory."""
        self.source.seek(self.start)
        offset, number = self.start, 0
        while raw := self.source.readline(MAX_LINE_BYTES + 2):
            number += 1
            size = len(raw)
            too_long = len(raw.rstrip(b"\r\n")) > MAX_LINE_BYTES
            rest = raw
            while too_long and rest and not rest.endswith(b"\n"):
                rest = self.source.readline(_CHUNK)
                size += len(rest)
            yield _Line(number, offset, size, b"" if too_long else raw.removesuffix(b"\n"), too_long)
            offset += size

    def _json_lines(self) -> Iterator[RawRecord]:
        """Yield the records of JSON lines; refuse broken lines one by one."""
        index = n_blank = n_crlf = 0
        for line in self._lines():
            n_crlf += line.raw.endswith(b"\r")
            if not line.too_long and not line.raw.strip():
                n_blank += 1
                continue
            try:
                value = self._line_value(line, index)
            except DataError as error:
                self.sink.refuse(error)
            else:
                yield RawRecord(index, line.number, value, "lines")
            index += 1
        if n_crlf:
            self.note("crlf", detail=f"{n_crlf} lines")
        if n_blank:
            self.note("blank_line", detail=f"{n_blank} lines")

    def _line_value(self, line: _Line, index: int) -> Any:
        """Parse one line."""
        refused = partial(DataError, path=str(self.path), record=index, line=line.number)
        if line.too_long:
            limit = f"at most {MAX_LINE_BYTES:,} bytes (8 MiB) a line"
            raise refused(f"a line of {line.size:,} bytes", expected=limit)
        text = _utf8(line.raw, line.offset, refused)
        try:
            decoded = self.decoder.whole(text)
        except json.JSONDecodeError as error:
            early = "; the line ends early" if ends_early(error) else ""
            raise refused(f"no JSON at line {line.number}, column {error.colno}: {error.msg}{early}") from error
        except RecursionError as error:
            raise refused("JSON that is nested too deeply") from error
        if decoded.fault is not None:
            raise refused(decoded.fault.found, expected=decoded.fault.expected)
        return decoded.value


def _utf8(data: bytes, offset: int, error: Callable[..., DataError], *, whole: bool = True) -> str:
    """Return the text of bytes that begin at an offset of the file; unless ``whole``, their last character may be cut.

    Raises:
        DataError: What ``error`` makes of NUL bytes, or of bytes that are not UTF-8.
    """
    nul = data.find(b"\0")
    if nul >= 0:
        raise error(f"a NUL byte at byte offset {offset + nul:,}", hint="Save it as UTF-8")
    try:
        return codecs.utf_8_decode(data, "strict", whole)[0]
    except UnicodeDecodeError as fault:
        found = f"bytes that are not UTF-8 at byte offset {offset + fault.start:,}"
        raise error(found, expected="UTF-8", hint="Save it as UTF-8") from fault
