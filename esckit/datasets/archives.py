"""Zips, as ExTES ships: the one JSON member, read in memory. Nothing is ever unpacked to disk."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from esckit.datasets.text import listed
from esckit.errors import DataError

_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")
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


def is_zip(source: BinaryIO) -> bool:
    """Return whether a file begins as a zip does; leaves the file at its start."""
    head = source.read(4)
    source.seek(0)
    return head in _SIGNATURES


def only_json_member(source: BinaryIO, path: Path, *, max_bytes: int) -> bytes:
    """Return the content of the one ``.json`` member outside ``__MACOSX/``.

    Raises:
        DataError: If there is none or more than one, it is too large, or the archive is damaged.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            member = _choose(archive, path)
            if member.file_size > max_bytes:
                raise _too_large(member.file_size, path, max_bytes)
            with archive.open(member) as content:
                data = content.read(max_bytes + 1)
    except _ZIP_ERRORS as error:
        raise DataError(
            f"a zip that cannot be read ({type(error).__name__})", path=str(path), whole_file=True
        ) from error
    if len(data) > max_bytes:
        raise _too_large(len(data), path, max_bytes)
    return data


def _choose(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    members = [info for info in archive.infolist() if not info.is_dir() and not info.filename.startswith("__MACOSX/")]
    wanted = [info for info in members if info.filename.endswith(".json")]
    if len(wanted) == 1:
        return wanted[0]
    raise DataError(
        f"a zip with {len(wanted)} .json members; its members: {listed(info.filename for info in members)}",
        path=str(path),
        expected="exactly one .json member",
        whole_file=True,
    )


def _too_large(size: int, path: Path, max_bytes: int) -> DataError:
    return DataError(
        f"a zip member of {size:,} bytes",
        path=str(path),
        expected=f"at most {max_bytes:,} bytes (512 MiB)",
        hint="Write it as JSON lines, which are streamed",
        whole_file=True,
    )
