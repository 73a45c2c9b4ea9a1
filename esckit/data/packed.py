"""Packed files: gzip, Parquet (the Hub's own conversions), and zips, as ExTES ships; nothing is unpacked to disk."""

from __future__ import annotations

import gzip
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from esckit.data.names import check_distinct
from esckit.errors import DataError
from esckit.text import listed

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
        DataError: If the file is damaged, two of its columns have one name, or it holds no row.
    """
    import pyarrow
    from pyarrow import parquet

    n_rows = 0
    try:
        file = parquet.ParquetFile(source)
        check_distinct(path, file.schema_arrow.names)
        for batch in file.iter_batches(_ROWS_AT_ONCE):
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
