"""Paths as users give them: a file, a folder of split files or of one file, or the name of a shipped sample."""

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
# The number is that of a shard, as the Hub names the pieces of a large split.
_SPLIT_FILE = re.compile(
    r"(?:.+-)?(train|valid|validation|dev|test)(?:-([0-9]{5})-of-([0-9]{5}))?"
    r"\.(?:(?:txt|json|jsonl)(?:\.gz)?|parquet)",
    re.DOTALL,
)
_CORPUS_FILE = re.compile(r".+\.(?:(?:json|jsonl)(?:\.gz)?|parquet|zip)", re.DOTALL)
_EXPECTED = (
    "one file per split, named [prefix-](train|valid|validation|dev|test).(txt|json|jsonl|parquet), "
    "or a single corpus file (.json, .jsonl, .parquet, .zip)"
)


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
            return _files_of(path)
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


def _files_of(folder: Path) -> Found:
    """Return a folder's split files by their names or, where there are none, the only corpus file in it."""
    by_split: dict[str, list[Path]] = {split: [] for split in SPLITS}
    others = []
    for path in sorted(folder.iterdir()):
        named = _SPLIT_FILE.fullmatch(path.name)
        if named and path.is_file():
            word = named.group(1)
            by_split["valid" if word in ("validation", "dev") else word].append(path)
        else:
            others.append(path)
    for split, paths in by_split.items():
        _check_one_file(folder, split, paths)
    files = tuple(SplitFile(path, split) for split, paths in by_split.items() for path in paths)
    if not files:
        files = (SplitFile(_only_file(folder, others), None),)
    read = {file.path for file in files}
    return Found(files, tuple(path.name for path in others if path not in read))


def _check_one_file(folder: Path, split: str, paths: list[Path]) -> None:
    """Refuse several files for one split, unless they are all its shards."""
    shards = [named.group(2, 3) for path in paths if (named := _SPLIT_FILE.fullmatch(path.name)) and named.group(2)]
    whole = shards == [(f"{number:05}", f"{len(paths):05}") for number in range(len(paths))]
    if whole or (len(paths) < 2 and not shards):
        return
    found = f"{len(paths)} files for the split {split}: {listed(path.name for path in paths)}"
    expected = f"all shards of the split {split}, from 00000 on" if len(shards) == len(paths) else _EXPECTED
    raise DataError(found, path=str(folder), expected=expected, whole_file=True)


def _only_file(folder: Path, others: list[Path]) -> Path:
    """Return the only file of a folder that can be a corpus."""
    found = [path for path in others if path.is_file() and _CORPUS_FILE.fullmatch(path.name)]
    if len(found) == 1:
        return found[0]
    holds = listed(path.name for path in found or others)
    raise DataError(
        f"a folder with {len(found)} corpus files and no split files; it holds {holds}",
        path=str(folder),
        expected=_EXPECTED,
        hint=f"Name the one you mean, such as {found[0]}" if found else "docs/data.md says what the files are called",
        whole_file=True,
    )


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
