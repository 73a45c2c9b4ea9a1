"""Published numbers with their source and caveats: printed as columns of their own, never tested against."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from esckit.documents import read_shipped
from esckit.errors import ConfigError
from esckit.registry import did_you_mean
from esckit.types import Record

_DATA = frozenset({"data.dataset", "data.scheme", "data.split", "data.limit", "taxonomy"})

SAYS_WHICH_TEST = {
    "strategy": _DATA | {"settings.strategy.unit", "settings.strategy.exclude"},
    "response": _DATA | {"settings.response.per_dialogue"},
}
"""By suite, what a recipe must say alike for our value to be of a published test: corpus, split, unit, taxonomy, and
that nothing was left out. A suite that is not here has no published test that anybody else can run."""


class ReferenceRow(Record):
    """One row of a published table.

    Attributes:
        name: As the source names it.
        metric: Our metric for the same quantity; None where rows are systems, or the test set cannot be had.
        values: One per column as printed in the source; None where it has none.
    """

    name: str
    metric: str | None = None
    values: tuple[float | None, ...]


class ReferenceTable(Record):
    """A published table.

    Attributes:
        id: Such as ``rlff.table1``.
        suite: The suite it stands beside.
        caveats: Ids of the texts that must be printed with it; at least one.
        same: What a recipe must say, by dotted path, for our metrics to be of the same test: else they are not shown
            in this table.
    """

    id: str
    title: str
    suite: str
    source: str
    caveats: tuple[str, ...] = Field(min_length=1)
    same: dict[str, Any] = Field(default_factory=dict)
    columns: tuple[str, ...]
    rows: tuple[ReferenceRow, ...]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for row in self.rows:
            needed = SAYS_WHICH_TEST.get((row.metric or "").partition(".")[0])
            if row.metric and (needed is None or needed - self.same.keys()):
                raise ValueError(f"our {row.metric} beside row {row.name!r}, and same does not say of which test")
            if len(row.values) != len(self.columns):
                raise ValueError(f"row {row.name!r} has {len(row.values)} values for {len(self.columns)} columns")
        return self


class References(Record):
    """All published tables, and the caveat texts by id."""

    version: int
    caveats: dict[str, str]
    tables: tuple[ReferenceTable, ...]

    @model_validator(mode="after")
    def _known_caveats(self) -> Self:
        unknown = {name for table in self.tables for name in table.caveats} - set(self.caveats)
        if unknown:
            raise ValueError(f"caveats without a text: {sorted(unknown)}")
        return self

    def table(self, name: str) -> ReferenceTable:
        """Return a table by id.

        Raises:
            ConfigError: If there is none of this id.
        """
        by_id = {table.id: table for table in self.tables}
        if name not in by_id:
            raise ConfigError(
                f"unknown reference {name!r}",
                expected=f"one of {', '.join(by_id)}",
                hint=did_you_mean(name, by_id) or None,
            )
        return by_id[name]

    def beside(self, suite: str) -> tuple[ReferenceTable, ...]:
        """Return the tables that stand beside a suite."""
        return tuple(table for table in self.tables if table.suite == suite)

    def texts(self, table: ReferenceTable) -> tuple[str, ...]:
        """Return the caveats to print with a table."""
        return tuple(self.caveats[name] for name in table.caveats)


def load_references() -> References:
    """Return the shipped published numbers."""
    return read_shipped(References, "esckit.report", "references.yaml")
