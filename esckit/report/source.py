"""A run folder as a report reads it: whatever is there, and nothing that has to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from esckit.documents import parse_json, read_text
from esckit.errors import DataError
from esckit.records import read_records
from esckit.runs import read_manifest
from esckit.types import Record

SAMPLE = "sample:"


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, open for reading.

    Attributes:
        quotes: True if texts of its dialogues may stand in the report.
        unwritten: Content of JSON files, by name, that are not there yet.
    """

    path: Path
    manifest: Mapping[str, Any]
    quotes: bool
    unwritten: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def command(self) -> str:
        """The command that made it."""
        return str(self.manifest["command"])

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Its resolved recipe."""
        return section(self.manifest, "recipe")

    def json(self, name: str) -> Any:
        """Return the content of a JSON file, None if there is none.

        Raises:
            DataError: If it is no JSON.
        """
        if name in self.unwritten:
            return self.unwritten[name]
        path = self.path / name
        if not path.is_file():
            return None
        return parse_json(read_text(path), path)

    def object(self, name: str) -> Mapping[str, Any]:
        """Return the object in a JSON file, an empty one where there is none."""
        found = self.json(name)
        return found if isinstance(found, Mapping) else {}

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the objects of a JSON-lines file, an empty list if there is none; an unfinished last line is left out.

        Raises:
            DataError: If a whole line is no JSON object.
        """
        path = self.path / name
        if not path.is_file():
            return []
        found = []
        for number, raw in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            if not raw.endswith(b"\n"):
                break
            if not raw.strip():
                continue
            row = parse_json(raw, path, line=number)
            if not isinstance(row, dict):
                raise DataError(f"a JSON {type(row).__name__}", path=str(path), line=number, expected="an object")
            found.append(row)
        return found

    def records(self, kind: type[R], name: str) -> list[R]:
        """Return the records of a file, an empty list if there is none."""
        path = self.path / name
        return list(read_records(kind, path, allow_cut=True)) if path.is_file() else []


def open_run(path: Path, *, quotes: bool = False, unwritten: Mapping[str, Any] | None = None) -> Run:
    """Open a run folder.

    Texts may stand in the report if the data are the sample corpus, the recipe allows it (``report.quotes``), or the
    reader asks for it.

    Raises:
        DataError: If the folder is no run folder.
    """
    manifest = read_manifest(path)
    recipe = section(manifest, "recipe")
    data_path = section(recipe, "data").get("path")
    shipped = isinstance(data_path, str) and data_path.startswith(SAMPLE)
    quotes = quotes or shipped or section(recipe, "report").get("quotes") is True
    return Run(path, manifest, quotes, unwritten or {})


def at(of: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path of nested objects, None where there is none."""
    found: Any = of
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def section(of: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Return the object at a dotted path of nested objects, an empty one where there is none."""
    found = at(of, path)
    return found if isinstance(found, Mapping) else {}
