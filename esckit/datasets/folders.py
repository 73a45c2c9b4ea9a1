"""Paths as users give them: a file, a folder of split files, or the name of a shipped sample."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from esckit.datasets.text import listed
from esckit.errors import DataError
from esckit.registry import nearest
from esckit.resources import shipped_dir

SAMPLE_PREFIX = "sample:"
SPLITS = ("train", "valid", "test")
_SAMPLES = {"esconv": "esconv_sample", "extes": "extes_sample.json"}
_SPLIT_FILE = re.compile(r"(?:.+-)?(train|valid|validation|dev|test)\.(?:txt|json|jsonl)", re.DOTALL)
_EXPECTED = "one file per split, named [prefix-](train|valid|validation|dev|test).(txt|json|jsonl)"


class SplitFile(NamedTuple):
    """A file of a corpus, and the split that its name gives it."""

    path: Path
    split: str | None


class Found(NamedTuple):
    """The files of a corpus in the order train, valid, test, and the names of the others in its folder."""

    files: tuple[SplitFile, ...]
    ignored: tuple[str, ...] = ()


def find_files(given: str) -> Found:
    """Return the files behind a path.

    Raises:
        DataError: If there are none, or a folder's names do not say which split is which.
    """
    path = _sample(given) if given.startswith(SAMPLE_PREFIX) else Path(given)
    try:
        if path.is_dir():
            return _split_files(path)
        if path.exists() and not path.is_file():
            raise DataError("neither a file nor a folder", path=given, whole_file=True)
        if path.exists():
            return Found((SplitFile(path, None),))
    except OSError as error:
        raise DataError(f"a path that cannot be read ({error.strerror})", path=given, whole_file=True) from error
    raise _missing(given, path)


def _sample(given: str) -> Path:
    name = given.removeprefix(SAMPLE_PREFIX)
    if name not in _SAMPLES:
        raise DataError(
            "no sample of this name", path=given, expected=" or ".join(SAMPLE_PREFIX + n for n in _SAMPLES),
            whole_file=True,
        )  # fmt: skip
    return shipped_dir("data") / _SAMPLES[name]


def _split_files(folder: Path) -> Found:
    """Sort a folder's files into splits by their names."""
    by_split: dict[str, list[Path]] = {split: [] for split in SPLITS}
    ignored = []
    for path in sorted(folder.iterdir()):
        named = _SPLIT_FILE.fullmatch(path.name)
        if named and path.is_file():
            word = named.group(1)
            by_split["valid" if word in ("validation", "dev") else word].append(path)
        else:
            ignored.append(path.name)
    for split, paths in by_split.items():
        if len(paths) > 1:
            raise DataError(
                f"{len(paths)} files for the split {split}: {listed(path.name for path in paths)}",
                path=str(folder),
                expected=_EXPECTED,
                whole_file=True,
            )
    files = tuple(SplitFile(path, split) for split, paths in by_split.items() for path in paths)
    if not files:
        raise DataError(
            f"a folder without split files; it holds {listed(ignored)}",
            path=str(folder),
            expected=_EXPECTED,
            hint="Name a single file, or rename the files",
            whole_file=True,
        )
    return Found(files, tuple(ignored))


def _missing(given: str, path: Path) -> DataError:
    """Say that there is nothing, and what may have been meant."""
    try:
        siblings = [sibling.name for sibling in path.parent.iterdir()]
    except OSError:
        siblings = []
    close = nearest(path.name, siblings)
    return DataError(
        "no such file or folder",
        path=given,
        expected="a corpus file or folder" + (f"; did you mean {str(path.parent / close)!r}?" if close else ""),
        hint="docs/data.md says how to get the corpora",
        whole_file=True,
    )
