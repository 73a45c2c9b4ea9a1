"""Search trees as training data: read from runs of ``search``. How a tree is grown stands in the room ``search``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from esckit.errors import DataError
from esckit.records import read_records
from esckit.runs import refuse_links
from esckit.types import SearchTree

TREES = "trees.jsonl"
"""The file of a run of ``search`` that holds its trees."""


def tree_file(path: Path) -> Path:
    """Return the file of trees that a path names: itself, or that of a run folder.

    Raises:
        DataError: If there is none.
    """
    file = path / TREES if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"no {TREES}" if path.is_dir() else "no such file or folder",
            path=str(path),
            expected="a run folder of 'esckit search', or its trees.jsonl",
        )
    if path.is_dir():
        refuse_links([file])
    return file


def read_trees(file: Path) -> Iterator[SearchTree]:
    """Yield the trees of a file.

    Raises:
        DataError: If one is not a tree, or the last line was cut by a crash.
    """
    with file.open("rb") as lines:
        size = lines.seek(0, 2)
        lines.seek(max(0, size - 1))
        if size and lines.read(1) != b"\n":
            raise DataError(
                "an unfinished last line",
                path=str(file),
                hint="The search was stopped: rerun the same command, it resumes",
            )
    yield from read_records(SearchTree, file)
