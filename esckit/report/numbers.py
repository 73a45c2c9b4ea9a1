"""The numbers of a run to read first: of an evaluation its headline metrics, of any other run its summary's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esckit.report.compared import headline_names, whole_rows
from esckit.report.metric_rows import value_cells
from esckit.report.source import ABSENT, Run, flattened


def numbers(run: Run) -> dict[str, Mapping[str, Any]]:
    """Return all numbers of a run by name, each a row with ``value`` and ``unit``, of a metric also interval and n."""
    if run.command == "evaluate":
        return whole_rows(run)
    summary = flattened(run.json("summary.json"))
    return {
        name: {"value": value, "unit": "share" if name.endswith("_share") else None} for name, value in summary.items()
    }


def first_numbers(run: Run, wanted: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return numbers of a run as texts, by what they are called.

    Args:
        run: The run.
        wanted: Which, each by its name under what it is called; what the run does not have is ``–``. By default the
            metrics that a report shows first, or the numbers at the top of the summary.
    """
    found = numbers(run)
    if not wanted:
        shown = headline_names([run]) if run.command == "evaluate" else [name for name in found if "." not in name]
        wanted = {name: name for name in shown}
    return {label: _text(found[name]) if name in found else ABSENT for label, name in wanted.items()}


def _text(row: Mapping[str, Any]) -> str:
    value, between, n = value_cells(row)
    return value + (f" {between}" if between != ABSENT else "") + (f", n {n}" if n != ABSENT else "")
