"""What models thought before they answered: kept in the records, shown to no other role, and here to the reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from esckit.report.blocks import Note, Section, Table
from esckit.report.numbers import number
from esckit.report.source import Run
from esckit.words import n_words

_SHOWN = 60
_FILES = ("futures.jsonl", "trees.jsonl", "episodes.jsonl")


def thoughts(run: Run) -> list[Section]:
    """Return the reasoning in a run's records, no section where there is none."""
    found = list(_found(run))
    if not found:
        return []
    rows = tuple(
        (
            unit,
            str(thought.get("place")),
            str(thought.get("role")),
            str(thought.get("text")) if run.quotes else f"{number(n_words(str(thought.get('text'))))} words",
        )
        for unit, thought in found[:_SHOWN]
    )
    note = "" if len(rows) == len(found) else f"The first {number(len(rows))} of {number(len(found))}."
    said = f"{number(len(found))} replies hold reasoning. It is no part of any dialogue, verdict or value."
    return [
        Section("Reasoning", (Note(said), Table(("unit", "place", "role", "reasoning"), rows, note=note, folded=True)))
    ]


def _found(run: Run) -> Iterator[tuple[str, Mapping[str, Any]]]:
    examples = sorted(path.relative_to(run.path).as_posix() for path in (run.path / "examples").glob("*.jsonl"))
    for name in (*_FILES, *examples):
        for row in run.lines(name):
            # A supporter's own reasoning stands on its turn, as a text.
            kept = row.get("reasoning")
            for thought in kept if isinstance(kept, list) else ():
                yield str(row.get("id")), thought
