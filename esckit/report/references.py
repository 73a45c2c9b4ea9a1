"""Published numbers beside our own: columns of their own, never without their caveats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from esckit.report.blocks import ABSENT, Block, Points, Table
from esckit.report.numbers import interval, measured, number
from esckit.report.source import SAMPLE, section


@dataclass(frozen=True, slots=True)
class Published:
    """One row of a published table.

    Attributes:
        metric: Our metric for the same quantity; None where rows are systems.
        values: One per column as printed in the source; None where it has none.
    """

    name: str
    metric: str | None
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """One published table.

    Attributes:
        id: Name under which ``metrics.json`` asks for it.
        columns: Names of the columns, in print order.
        same: What a recipe must say, by dotted path, for our values to be of the same test.
        caveats: What has to be read with it; at least one sentence.
    """

    id: str
    title: str
    source: str
    columns: tuple[str, ...]
    same: Mapping[str, Any]
    rows: tuple[Published, ...]
    caveats: tuple[str, ...]


def reference_blocks(
    references: Sequence[Reference], rows: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any]
) -> Iterator[Block]:
    """Yield each published table, beside the run's own values where they measure the same, then its caveats."""
    whole = {str(row.get("name")): row for row in rows if not row.get("group")}
    for reference in references:
        comparable = _of_this_test(reference, recipe)
        ours = [whole.get(row.metric or "") if comparable else None for row in reference.rows]
        beside = any(ours)
        table = tuple(
            (row.name, *(_own(own) if beside else ()), *map(_printed, row.values))
            for row, own in zip(reference.rows, ours, strict=True)
        )
        columns = ("as published", *(("this run", "interval", "n") if beside else ()), *reference.columns)
        yield Table(columns, table, title=reference.title, note=f"Source: {reference.source}.")
        sentences = (f"{caveat[:1].upper()}{caveat[1:].removesuffix('.')}." for caveat in reference.caveats)
        yield Points("Never to be read without", tuple(sentences))


def _of_this_test(reference: Reference, recipe: Mapping[str, Any]) -> bool:
    """Return whether a run was made on the very test of a table; what ships as a sample is no corpus."""

    def at(path: str) -> Any:
        *sections, name = path.split(".")
        return reduce(section, sections, recipe).get(name)

    return not str(at("data.path")).startswith(SAMPLE) and all(at(path) == it for path, it in reference.same.items())


def _own(row: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if row is None:
        return ABSENT, ABSENT, ABSENT
    unit = str(row.get("unit"))
    return measured(row.get("value"), unit), interval(row.get("interval"), unit), number(row.get("n"))


def _printed(value: float | None) -> str:
    return ABSENT if value is None else f"{value:g}"
