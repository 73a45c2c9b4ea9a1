"""What a file is, and its content: strict JSON, packed files, and words for files that are no JSON corpus.

JSON is read strictly: no key twice, no NaN, no endless integers, and errors that say where. Such faults do not stop the
parser, so that the rest of an array can still be read; they come back beside the value. Packed files are gzip, Parquet
(the Hub's own conversions), and zips, as ExTES ships; nothing is unpacked to disk.
"""

from __future__ import annotations

import gzip
import json
import lzma
import math
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

from esckit.errors import DataError
from esckit.text import json_type, listed, quoted

MAX_DIGITS = 4_300

_LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")

_CUT_ESCAPE = re.compile(r"\\?u?[0-9A-Fa-f]{0,3}")

_SPACE = re.compile(r"[ \t\n\r]*")


class Fault(NamedTuple):
    """Something that parses, but must not be accepted."""

    found: str
    expected: str


class Decoded(NamedTuple):
    """A parsed value, the position after it, and the first fault in it."""

    value: Any
    end: int
    fault: Fault | None


class StrictDecoder:
    """Parses JSON values out of a text. Not for concurrent use."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_int=self._int, parse_constant=self._constant
        )

    def at(self, text: str, start: int) -> Decoded:
        """Parse the value that begins exactly at a position.

        Raises:
            json.JSONDecodeError: If there is none.
            RecursionError: If it is nested too deeply.
        """
        self._faults.clear()
        value, end = self._decoder.raw_decode(text, start)
        return Decoded(value, end, self._faults[0] if self._faults else None)

    def whole(self, text: str) -> Decoded:
        """Parse a text that holds one value and nothing else; raises as :meth:`at` does."""
        decoded = self.at(text, skip_space(text, 0))
        end = skip_space(text, decoded.end)
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return decoded

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            self._faults.append(Fault(f"the key {quoted(twice)} twice in one object", "every key once"))
        return found

    def _int(self, digits: str) -> int:
        n_digits = len(digits.lstrip("-"))
        if n_digits > MAX_DIGITS:
            self._faults.append(Fault(f"an integer of {n_digits:,} digits", f"at most {MAX_DIGITS:,} digits"))
            return 0
        return int(digits)

    def _constant(self, name: str) -> None:
        self._faults.append(Fault(f"the value {name}", "a number that JSON knows"))


def skip_space(text: str, position: int) -> int:
    """Return the position of the next character that is not JSON white space."""
    found = _SPACE.match(text, position)
    return found.end() if found else position


def ends_early(error: json.JSONDecodeError) -> bool:
    """Return whether the text stops where more was needed, rather than being wrong."""
    if error.msg.startswith("Unterminated string"):
        return True
    rest = error.doc[error.pos : error.pos + 12].rstrip()
    if error.msg == "Extra data" or len(error.doc.rstrip()) > error.pos + len(rest):
        return False
    if error.msg.startswith("Invalid \\"):
        return _CUT_ESCAPE.fullmatch(rest) is not None
    return not rest or (error.msg == "Expecting value" and any(word.startswith(rest) for word in _LITERALS))


_PYTHON = re.compile(r"[\s\[({]*u?'")


READABLE = "a JSON array, JSON lines or Parquet in format esconv, esconv-hub, ppdpp, extes or jsonl"

OWN_DATA = (
    "Write data of your own one dialogue a line, as "
    '{"scenario": {"situation": "…"}, "turns": [{"speaker": "seeker", "text": "…"}, '
    '{"speaker": "supporter", "text": "…", "strategy": null}]}'
    " (format jsonl, docs/data.md). `esckit data inspect FILE.jsonl` shows what is wrong with it, "
    "`esckit data convert FILE.jsonl --to jsonl --out OUT.jsonl` writes it whole"
)

PYTHON_LITERALS = "what looks like Python literals (single quotes)"


_BINARY = (
    (b"ARROW1", "an Arrow (Feather) file", "Write it as Parquet or JSON lines"),
    (b"BZh", "a bzip2 file", "Unpack it"),
    (b"\xfd7zXZ", "an xz file", "Unpack it"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "Unpack it"),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it"),
    (b"SQLite format 3", "an SQLite database", "Export it as JSON lines"),
    (b"\x93NUMPY", "a NumPy array", "Write it as JSON lines"),
    (b"%PDF-", "a PDF", "Fetch the data themselves"),
)

_PICKLE = re.compile(rb"\x80[\x02-\x05]")

_TEXT = (
    ("version https://git-lfs", "a Git LFS pointer, not the file itself", "Run: git lfs pull"),
    ("<!doctype html", "a web page", "Fetch the raw file"),
    ("<html", "a web page", "Fetch the raw file"),
)


class Guess(NamedTuple):
    """What a file is, and what to do about it."""

    found: str
    hint: str


def known_kind(head: bytes) -> Guess | None:
    """Return the kind of file that the first bytes (at least 512, if there are so many) indicate."""
    for signature, found, hint in _BINARY:
        if head.startswith(signature):
            return Guess(found, hint)
    if head[257:262] == b"ustar":
        return Guess("a tar archive", "Unpack it")
    if _PICKLE.match(head):
        return Guess("a pickle, which is never read since it may run code", "Write it as JSON lines")
    start = head[:512].decode("utf-8", errors="replace").lstrip().casefold()
    return next((Guess(found, hint) for begin, found, hint in _TEXT if start.startswith(begin)), None)


def is_python(text: str) -> bool:
    """Return whether a text begins as a printed Python list or dict of strings does."""
    return _PYTHON.match(text) is not None


def what_it_is(text: str) -> str:
    """Return a phrase for the beginning of a file: Python literals, a JSON scalar, TSV, CSV, or text."""
    if is_python(text):
        return PYTHON_LITERALS
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "an empty file"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        pass
    else:
        return f"{json_type(value)} at the top level"
    if all("\t" in line for line in lines[:5]):
        return "what looks like TSV (tabs between columns)"
    if all("," in line for line in lines[:5]):
        return "what looks like CSV (commas between columns)"
    return "text that is no JSON"


_ZIP = (b"PK\x03\x04", b"PK\x05\x06")

_GZIP = b"\x1f\x8b"

_PARQUET = b"PAR1"

_ROWS_AT_ONCE = 256

# What zipfile raises on damaged, encrypted or exotic archives.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def packing(source: BinaryIO) -> Literal["zip", "gzip", "parquet"] | None:
    """Return how a file is packed, by its first bytes; leaves the file at its start."""
    head = source.read(4)
    source.seek(0)
    if head in _ZIP:
        return "zip"
    if head.startswith(_GZIP):
        return "gzip"
    return "parquet" if head == _PARQUET else None


@contextmanager
def unpacked(source: BinaryIO, path: Path) -> Iterator[BinaryIO]:
    """Open what a gzip file holds; it is unpacked while it is read.

    Raises:
        DataError: On reading, if the file is damaged or ends early.
    """
    try:
        with gzip.GzipFile(fileobj=source) as content:
            yield cast(BinaryIO, content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        found = "a gzip file that ends early" if isinstance(error, EOFError) else "a gzip file that is damaged"
        raise DataError.of_file(path, found, hint="Fetch it again") from error


def parquet_rows(source: BinaryIO, path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file as JSON would have them (see :func:`plain_row`).

    Raises:
        DataError: If the file is damaged or holds no row.
    """
    import pyarrow
    from pyarrow import parquet

    n_rows = 0
    try:
        for batch in parquet.ParquetFile(source).iter_batches(_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                n_rows += 1
                yield plain_row(row)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError.of_file(path, f"a Parquet file that cannot be read ({type(error).__name__})") from error
    if not n_rows:
        raise DataError.of_file(path, "a file that holds no dialogue", expected="at least one record")


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a table as the JSON object that it was made from.

    A table gives every object of a column all keys that any of them has, and a gap among numbers is NaN: inside a value
    keys without a value are left out, and NaN is null.
    """
    return {key: _plain(value) for key, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: inner for key, item in value.items() if (inner := _plain(item)) is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Decimal):
        return float(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def only_json_member(source: BinaryIO, path: Path, *, max_bytes: int) -> bytes:
    """Return the content of the one ``.json`` member outside ``__MACOSX/``.

    Raises:
        DataError: If there is none or more than one, it is too large, or the archive is damaged.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            member = _choose(archive, path)
            size = member.file_size
            if size <= max_bytes:
                with archive.open(member) as content:
                    data = content.read(max_bytes + 1)
                size = len(data)
    except _ZIP_ERRORS as error:
        raise DataError.of_file(path, f"a zip that cannot be read ({type(error).__name__})") from error
    if size > max_bytes:
        raise DataError.of_file(
            path,
            f"a zip member of {size:,} bytes",
            expected=f"at most {max_bytes:,} bytes (512 MiB)",
            hint="Write it as JSON lines, which are streamed",
        )
    return data


def _choose(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    members = [info for info in archive.infolist() if not info.is_dir() and not info.filename.startswith("__MACOSX/")]
    wanted = [info for info in members if info.filename.endswith(".json")]
    if len(wanted) == 1:
        return wanted[0]
    raise DataError.of_file(
        path,
        f"a zip with {len(wanted)} .json members; its members: {listed(info.filename for info in members)}",
        expected="exactly one .json member",
    )
