"""The numbers of a run to read first: of an evaluation its headline metrics, of any other run its summary's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esckit.report.compared import headline_names, whole_rows
from esckit.report.metric_rows import Row, value_cells
from esckit.report.source import ABSENT, Run, flattened

_FACTS = ("value", "unit", "interval", "reason", "n", "n_unscored", "coverage", "flags")

_HELD_OUT = ("valid", "dev", "test")


def numbers(run: Run) -> dict[str, Row]:
    """Return all numbers of a run by name: ``value``, ``unit``, and of a metric ``interval`` and ``n``."""
    if run.command == "evaluate":
        return whole_rows(run)
    summary = flattened(run.json("summary.json"))
    return {
        name: {"value": value, "unit": "share" if name.endswith("_share") else None} for name, value in summary.items()
    }


def first_numbers(run: Run, wanted: Mapping[str, str] | None = None) -> dict[str, Row | None]:
    """Return numbers of a run by what they are called; None is one that the run does not have.

    Args:
        run: The run.
        wanted: Which, each by its name under what it is called. By default the metrics that a report shows first, or
            the numbers at the top of the summary and what was measured on held-out data.
    """
    found = numbers(run)
    if not wanted:
        shown = headline_names([run]) if run.command == "evaluate" else filter(_is_first, found)
        wanted = {name: name for name in shown}
    return {label: found.get(name) for label, name in wanted.items()}


def _is_first(name: str) -> bool:
    """Return whether a number of a summary is at its top, or of all held-out data together."""
    part, *below = name.split(".")
    return not below or (part in _HELD_OUT and len(below) <= 2)


def facts_of(row: Row | None) -> dict[str, Any] | None:
    """Return a number as JSON has it."""
    return None if row is None else {name: row[name] for name in _FACTS if name in row}


def text_of(row: Row | None) -> str:
    """Return a number as a reader sees it."""
    value, between, n = value_cells(row)
    return value + (f" {between}" if between != ABSENT else "") + (f", n {n}" if n != ABSENT else "")
