r"""Reading and writing of records: JSON lines that survive a crash, and files that are there whole or not at all.

A line is one record with its ``schema`` first: ``{"schema": "esckit.future/1", …}``; UTF-8, ``\n`` ends, keys in model
order. Not here: run folders (:mod:`esckit.runs`) and foreign corpora (:mod:`esckit.data`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, Self, TypeVar

from pydantic import ValidationError

from esckit.documents import complaint
from esckit.errors import DataError, NotFiniteError, StorageError
from esckit.faultpoints import reached
from esckit.registry import did_you_mean
from esckit.storage import storage_error, writing
from esckit.text import without_surrogates
from esckit.types import Record

log = logging.getLogger(__name__)


R = TypeVar("R", bound=Record)

_ID_KEY = b'"id":"'

_BUFFER = 1_048_576

_UNFINISHED = ".tmp"
"""How the name of a file ends that is being written."""


def dump_line(record: Record) -> str:
    """Return a record as one line of JSON with its schema first, without the line end.

    Raises:
        NotFiniteError: If a number got around the validation of records (``model_copy`` does not validate).
    """
    body = record.model_dump_json()
    if "NaN" in body or "Infinity" in body:
        json.loads(body, parse_constant=partial(_refuse_constant, type(record).__name__))
    schema = getattr(type(record), "SCHEMA", None)
    if schema is None:
        return body
    return f'{{"schema":{json.dumps(schema)}' + ("" if body == "{}" else ",") + body[1:]


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """Return plain data as JSON, which knows no NaN and no infinity.

    Raises:
        NotFiniteError: If a number is not finite.
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        # Written again with the constants, only to find out which.
        json.loads(json.dumps(value), parse_constant=partial(_refuse_constant, "what is written"))
        raise


def _refuse_constant(what: str, name: str) -> NoReturn:
    raise NotFiniteError(f"a number of {what}", float(name))


def not_json(constant: str) -> NoReturn:
    """Refuse NaN and the infinities, which Python's reader of JSON takes."""
    raise ValueError(f"{constant} is not JSON")


def parse_line(kind: type[R], text: str, *, path: str | None = None, line: int | None = None) -> R:
    """Return the record of one line.

    Raises:
        DataError: If the line is not JSON, has another schema, an unknown key or a wrong type.
    """
    wrong = partial(DataError, path=path, record=None if line is None else line - 1, line=line)
    try:
        data = json.loads(text, parse_constant=not_json)
        if "\\ud" in text.lower():
            data = json.loads(without_surrogates(json.dumps(data, ensure_ascii=False)))
    except (ValueError, RecursionError) as error:
        raise wrong(f"no JSON ({error})", expected="one record a line") from error
    if not isinstance(data, dict):
        raise wrong(f"a JSON {type(data).__name__}", expected="an object")
    wanted = getattr(kind, "SCHEMA", None)
    found = data.pop("schema", wanted)
    if found != wanted:
        raise wrong(f"schema {found!r}", expected=f"schema {wanted!r}")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        # Pydantic's first complaint in our words, without quoting any value.
        first = error.errors(include_url=False, include_input=False)[0]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        if first["type"] == "extra_forbidden":
            hint = did_you_mean(str(first["loc"][-1]), kind.model_fields) or None
            raise wrong("an unknown key", field=field, hint=hint) from error
        if first["type"] == "missing":
            raise wrong("nothing", field=field, expected="a value") from error
        raise wrong("a wrong value", field=field, expected=complaint(first).removeprefix("must be ")) from error


class Line(NamedTuple):
    """A line of a file of records: where it starts, its number from 1, and its bytes with the line end."""

    offset: int
    number: int
    raw: bytes


def read_lines(path: Path, *, allow_cut: bool = False) -> Iterator[Line]:
    """Yield the lines of a JSON-lines file that are not blank.

    Args:
        path: File; a missing one is a :class:`~esckit.errors.DataError`.
        allow_cut: Ignore a last line without line end, which a crash may leave.
    """
    if not path.is_file():
        raise DataError("no such file", path=str(path))
    offset = 0
    with path.open("rb", buffering=_BUFFER) as lines:
        for number, raw in enumerate(lines, start=1):
            if allow_cut and not raw.endswith(b"\n"):
                return
            if not raw.isspace():
                yield Line(offset, number, raw)
            offset += len(raw)


def record_of(kind: type[R], line: Line, path: Path) -> R:
    """Return the record of a line of a file.

    Raises:
        DataError: If the line is not UTF-8, or as :func:`parse_line`.
    """
    number = line.number
    try:
        text = line.raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError("bytes that are not UTF-8", path=str(path), record=number - 1, line=number) from error
    return parse_line(kind, text, path=str(path), line=number)


def read_records(kind: type[R], path: Path, *, allow_cut: bool = False) -> Iterator[R]:
    """Yield the records of a JSON-lines file; see :func:`read_lines`."""
    for line in read_lines(path, allow_cut=allow_cut):
        yield record_of(kind, line, path)


def quick_id(kind: type[Record], raw: bytes) -> str | None:
    """Return the id of a line that :func:`dump_line` wrote, without reading the rest; None if it takes a full reading.

    No string of a record can hold ``"id":"``, since quotes inside a string are escaped. So its first place is the
    record's own key, if no field before it holds a record with an id.
    """
    if not raw.startswith(_head(kind)):
        return None
    begin = raw.find(_ID_KEY) + len(_ID_KEY)
    end = raw.find(b'"', begin)
    found = raw[begin:end]
    return None if begin < len(_ID_KEY) or end < 0 or b"\\" in found else found.decode("utf-8", errors="replace")


@cache
def _head(kind: type[Record]) -> bytes:
    """Return how every line of a record begins that :func:`dump_line` wrote."""
    return f'{{"schema":{json.dumps(getattr(kind, "SCHEMA", None))},'.encode()


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Return the first 16 hex digits of SHA-256 over a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or the new one, never a part.

    Raises:
        StorageError: If the file cannot be written; nothing is left behind.
    """
    with _replacing(path) as target:
        target.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a new file to fill, which takes the place of ``path`` at the end; an error leaves nothing behind."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(path.parent, f".{glob.escape(path.name)}.*{_UNFINISHED}")
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_UNFINISHED, dir=path.parent)
        with os.fdopen(handle, "wb") as target:
            with contextlib.suppress(OSError):  # some network file systems know no locks
                fcntl.flock(target, fcntl.LOCK_EX)
            yield target
            target.flush()
            reached("written")
            os.fsync(target.fileno())
            mask = os.umask(0)  # it can only be read by setting it
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            reached("flushed")
            os.replace(temporary, path)
            reached("renamed")
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise storage_error(error, path) from error
        raise


@contextlib.contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which then takes the place of ``folder`` as a whole.

    Readers find, also after a crash, the old folder, the new one or none, but never a part. Where a crash left
    none, :func:`clear_leftovers` brings the old one back.

    Raises:
        StorageError: If it cannot be written; the old folder stays.
    """
    fresh, old = (folder.with_name(f".{folder.name}.{age}") for age in ("new", "old"))
    with writing(folder):
        for left_over in (fresh, old):
            shutil.rmtree(left_over, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            yield fresh
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        reached("filled")
        if folder.exists():
            folder.rename(old)
            reached("moved-away")
        fresh.rename(folder)
        reached("moved-in")
        shutil.rmtree(old, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed process left unfinished in a folder, and bring back a folder that it had moved away."""
    for old in folder.glob(".*.old"):
        place = old.with_name(old.name[1:].removesuffix(".old"))
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(place)
    for fresh in folder.glob(".*.new"):
        shutil.rmtree(fresh, ignore_errors=True)
    _remove_unfinished(folder, f".*{_UNFINISHED}")


def _remove_unfinished(folder: Path, pattern: str) -> None:
    """Remove files of :func:`write_atomic` whose writer is dead: a living one holds their lock."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as indented JSON, atomically."""
    write_atomic(path, dump_json(value, indent=2) + "\n")


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines, atomically, and without holding more than one."""
    write_lines(path, (f"{dump_line(record)}\n".encode() for record in records))


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write lines, given with their ends, as :func:`write_records` does."""
    with _replacing(path) as target:
        target.writelines(lines)


def require_in_place(fd: int, path: Path, whole: Path) -> None:
    """Raise if an open file is no longer what stands at its path: what is written there now would be lost.

    Args:
        fd: The open file.
        path: Where it was opened.
        whole: What to call gone: the file itself, or the folder that it stands for.

    Raises:
        StorageError: If it was moved, replaced or deleted.
    """
    with contextlib.suppress(OSError):
        if os.path.samestat(os.stat(path), os.fstat(fd)):
            return
    raise StorageError(
        f"{whole} was moved or deleted while it was in use",
        expected="a run folder that stays where it is until the run ends",
        hint="Move it back and run the same command again: what it holds is kept",
    )


class JsonlAppender:
    """Appends lines to a file so that a crash loses at most the line being written.

    On opening, an unfinished last line is cut off: it was never whole, so a resumed run does it again. A failed write
    (a full disk, say) is taken back to the last whole line.

    Raises:
        StorageError: If the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            self._end = _end_of_last_line(self._fd)
            cut = os.fstat(self._fd).st_size - self._end
            if cut:
                log.warning("%s: cut off an unfinished last line (%d bytes)", path.name, cut)
                os.ftruncate(self._fd, self._end)
            os.lseek(self._fd, self._end, os.SEEK_SET)
        except OSError as error:
            raise storage_error(error, path) from error

    def append(self, record: Record | Mapping[str, Any]) -> int:
        """Write one record and its line end, and return where its line starts.

        Raises:
            StorageError: If it cannot be written, or the file was moved or deleted.
        """
        require_in_place(self._fd, self.path, self.path)
        text = dump_line(record) if isinstance(record, Record) else dump_json(record)
        data = memoryview((text + "\n").encode("utf-8"))
        reached("half-line", lambda: os.write(self._fd, data[: len(data) // 2]))
        try:
            written = 0
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError as error:
            # Where even this fails, the next opening of the file cuts the line off.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)
                os.lseek(self._fd, self._end, os.SEEK_SET)
            raise storage_error(error, self.path) from error
        self._end += len(data)
        reached("line")
        return self._end - len(data)

    def close(self) -> None:
        """Flush to the disk and close; calling it twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            os.fsync(fd)
        except OSError as error:
            # A device or pipe cannot be flushed; a file that cannot has lost something.
            if error.errno != errno.EINVAL:
                raise storage_error(error, self.path) from error
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        """Return the appender."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close the file."""
        self.close()


def cut_unfinished_line(path: Path) -> None:
    """Cut off a last line without line end, which a crash left, and say so.

    Raises:
        StorageError: If the file cannot be written.
    """
    with JsonlAppender(path):
        pass


def _end_of_last_line(fd: int, block: int = 65_536) -> int:
    """Return the offset just after the last line end of an open file."""
    position = os.fstat(fd).st_size
    while position > 0:
        start = max(0, position - block)
        found = os.pread(fd, position - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0
