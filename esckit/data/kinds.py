"""Words for files that are no corpus: what their first bytes, or the beginning of their text, look like."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from esckit.text import json_type

_PYTHON = re.compile(r"[\s\[({]*u?'")


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
    return "text that is not JSON"
