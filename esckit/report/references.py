"""Published numbers beside our own: columns of their own, never without their caveats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esckit.report.blocks import ABSENT, Block, Points, Table
from esckit.report.numbers import interval, measured, number


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
        caveats: What has to be read with it; at least one sentence.
    """

    id: str
    title: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[Published, ...]
    caveats: tuple[str, ...]


def reference_blocks(references: Sequence[Reference], rows: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """Yield each published table beside the run's own values where they are of one kind, then its caveats."""
    ours = {str(row.get("name")): row for row in rows if not row.get("group")}
    for reference in references:
        beside = any(row.metric in ours for row in reference.rows)
        table = tuple(
            (row.name, *(_own(ours.get(row.metric or "")) if beside else ()), *map(_printed, row.values))
            for row in reference.rows
        )
        columns = ("as published", *(("this run", "interval", "n") if beside else ()), *reference.columns)
        yield Table(columns, table, title=reference.title, note=f"Source: {reference.source}.")
        sentences = (f"{caveat[:1].upper()}{caveat[1:].removesuffix('.')}." for caveat in reference.caveats)
        yield Points("Never to be read without", tuple(sentences))


def _own(row: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if row is None:
        return ABSENT, ABSENT, ABSENT
    unit = str(row.get("unit"))
    return measured(row.get("value"), unit), interval(row.get("interval"), unit), number(row.get("n"))


def _printed(value: float | None) -> str:
    return ABSENT if value is None else f"{value:g}"
