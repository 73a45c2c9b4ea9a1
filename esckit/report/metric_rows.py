"""Rows of ``metrics.json`` as tables and curves: no value without its n, coverage and interval, or the reason why not.

Published numbers, with their source and caveats, stand in columns of their own beside ours, are never tested against,
and never come without their caveats.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Self

from pydantic import Field, model_validator

from esckit.documents import parse_yaml, read_shipped
from esckit.errors import ConfigError
from esckit.registry import did_you_mean
from esckit.report.blocks import Block, Lines, Named, Note, Points, Series, Table
from esckit.report.source import (
    ABSENT,
    OWN_CORPORA,
    at,
    decimals_of,
    interval,
    measured,
    number,
    section,
    share,
    signed,
)
from esckit.types import Record

_ARROWS = {True: " ↑", False: " ↓", None: ""}

_MOST_COUNTS = 2

_ENDS = ("low", "high")

_BASES = ("cases", "probes")
"""Counts that say the same as n, where they equal it; any other count that happens to equal n says something."""

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


Row = Mapping[str, Any]


def suite_of(row: Row) -> str:
    """Return the suite that a metric belongs to."""
    return str(row.get("name", "")).partition(".")[0]


def metric_table(rows: Sequence[Row], *, title: str = "", shared: Collection[str] = ()) -> Table:
    """Return one row per metric: value, interval, n, unscored, coverage, and whatever a reader must know.

    Args:
        rows: The metrics.
        title: What they depend on.
        shared: Flags that are shown elsewhere.
    """
    levels = {section(row, "interval").get("level") for row in rows} - {None}
    level = f"{100 * float(levels.pop()):.4g} %" if len(levels) == 1 else "95 %"  # type: ignore[arg-type]
    table = tuple(
        (
            headed(row),
            *value_cells(row),
            number(row.get("n_unscored")),
            share(row.get("coverage")),
            _remarks(row, shared),
        )
        for row in rows
    )
    columns = ("metric", "value", f"{level} interval", "n", "unscored", "coverage", "remarks")
    note = "↑ higher is better, ↓ lower is better. Unscored cases enter no value."
    return Table(columns, table, title=title, note=note)


def value_cells(row: Row | None) -> tuple[str, str, str]:
    """Return a row's value, interval and n."""
    if row is None:
        return ABSENT, ABSENT, ABSENT
    unit, decimals = str(row.get("unit")), decimals_of(_shown([row]))
    value, ends = measured(row.get("value"), unit, decimals), interval(row.get("interval"), unit, decimals)
    return value, ends, number(row.get("n"))


def _shown(rows: Iterable[Row]) -> list[float]:
    """Return the numbers that are shown of some rows of one metric: values and ends of intervals."""
    numbers = [one for row in rows for one in (row.get("value"), *map(section(row, "interval").get, _ENDS))]
    return [float(one) for one in numbers if one is not None]


def short_name(row: Row) -> str:
    """Return a metric's name without its suite."""
    return str(row.get("name", "")).partition(".")[2] or str(row.get("name", ""))


@cache
def plain_names(file: str = "names.yaml") -> Mapping[str, str]:
    """Return what a reader is told, by identifier: ``names.yaml`` of metrics, ``training_names.yaml`` of trainings."""
    text = resources.files("esckit.report").joinpath(file).read_text(encoding="utf-8")
    found: Mapping[str, str] = parse_yaml(text, file)
    return found


def plain_name(name: str) -> str:
    """Return what a reader is told a metric is; without its suite, but with its critic, dimension or kind of probe."""
    *before, last = name.split(".")
    if last not in plain_names():
        return (name.partition(".")[2] or name).replace("_", " ").replace(".", " · ")
    return " · ".join([plain_names()[last], *before[1:]])


def headed(row: Row) -> Named:
    """Return a metric's plain name with an arrow where more or less of it is better; it stands for the identifier."""
    name = str(row.get("name", ""))
    return Named(f"{plain_name(name)}{_ARROWS[row.get('higher_is_better')]}", name)


def comparison_cells(each: Row, unit: str) -> tuple[str, str, str]:
    """Return the difference of a comparison, its interval and its n."""
    dropped = each.get("n_dropped")
    n = number(each.get("n")) + (f" ({number(dropped)} dropped)" if dropped else "")
    return signed(each.get("difference"), unit), interval(each.get("interval"), unit), n


def _remarks(row: Row, shared: Collection[str]) -> str:
    unit, counts = str(row.get("unit")), section(row, "counts")
    pieces = [] if unit in ("share", "0-100", "none", "p") or unit in counts else [unit]
    # The sums behind a value, where they are few and are not n once more under another name.
    for name, total in counts.items() if len(counts) <= _MOST_COUNTS else ():
        pieces += [f"{name} {number(total)}"] if name not in _BASES or total != row.get("n") else []
    pieces += [str(flag) for flag in row.get("flags") or () if flag not in shared]
    pieces += [str(row["reason"])] if row.get("reason") else []
    return "; ".join([*pieces, *_unscored(row)])


def _unscored(row: Row) -> list[str]:
    return [f"{reason} {number(count)}" for reason, count in section(row, "unscored").items()]


def curves_by_turn(rows: Sequence[Row]) -> list[Block]:
    """Return one curve per metric over the turns, with what it rests on; strict and lenient share a chart."""
    charts: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        name = short_name(row)
        charts[name.replace("_strict", "").replace("_lenient", "")][name].append(row)
    found: list[Block] = []
    for stem, by_name in charts.items():
        title = plain_name(f"{suite_of(rows[0])}.{stem if len(by_name) > 1 else next(iter(by_name))}")
        # In a chart of two, names need to say only by which rule.
        names = {name: "lenient" if name.endswith("_lenient") else "strict" for name in by_name}
        if len(by_name) == 1:
            names = dict.fromkeys(by_name, title)
        series = []
        for name, points in by_name.items():
            known = [row for row in points if row.get("value") is not None]
            known.sort(key=lambda row: int(row["group"]["turn"]))
            if known:
                series.append(_series(names[name], [float(row["group"]["turn"]) for row in known], known))
        unit = str(next(iter(by_name.values()))[0].get("unit"))
        found.append(
            Lines(
                f"{suite_of(rows[0])}_{stem}".replace(".", "_"),
                title,
                "turn",
                "share" if unit == "share" else "value",
                tuple(series),
                (0.0, 1.0) if unit == "share" else None,
                band="95 % interval",
                marks=(("1/2", 0.5),) if "critic" in stem else (),
            )
        )
        by_sentence: dict[str, list[str]] = defaultdict(list)
        for name, points in by_name.items():
            for sentence in _beside(points):
                by_sentence[sentence].append(names[name])
        text = " ".join(f"{', '.join(said)}: {sentence}" for sentence, said in by_sentence.items())
        found += [Note(text)] if text else []
    return found


def _beside(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what a curve cannot show: turns without a value, and how many cases were left out."""
    missing: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.get("value") is None:
            missing[str(row.get("reason"))].append(str(row["group"]["turn"]))
    for reason, turns in missing.items():
        yield f"no value at turn {', '.join(turns)} ({reason})."
    left_out = [row for row in rows if row.get("n_unscored")]
    if left_out:
        worst = min(left_out, key=lambda row: float(row.get("coverage") or 0.0))
        reasons = ", ".join(_unscored(worst))
        yield f"coverage {share(worst.get('coverage'))} at turn {worst['group']['turn']} (unscored: {reasons})."


def _series(name: str, xs: Sequence[float], rows: Sequence[Row]) -> Series:
    """Return the values of rows over some x with their intervals, if any row has one, and n."""
    bounds = [(row["interval"]["low"], row["interval"]["high"]) if row.get("interval") else None for row in rows]
    ends = [tuple(float(bound[end]) if bound else None for bound in bounds) if any(bounds) else () for end in (0, 1)]
    values = tuple(float(row["value"]) for row in rows)
    return Series(name, tuple(xs), values, ends[0], ends[1], tuple(int(row.get("n") or 0) for row in rows))


def tables_by_group(rows: Sequence[Row], shared: Collection[str]) -> list[Table]:
    """Return one table per kind of subgroup and family of metrics (a critic, say).

    A row per subgroup, a column per metric; cells hold the value with its interval and n, and a number for each remark
    that stands below the table.
    """
    kinds: dict[tuple[tuple[str, ...], str], list[Row]] = defaultdict(list)
    for row in rows:
        kinds[tuple(row["group"]), short_name(row).rpartition(".")[0]].append(row)
    found: list[Table] = []
    for (keys, family), mine in kinds.items():
        placed = {(tuple(map(str, row["group"].values())), short_name(row)): row for row in mine}
        groups, names = (
            list(dict.fromkeys(group for group, _ in placed)),
            list(dict.fromkeys(name for _, name in placed)),
        )
        numbers: dict[str, int] = {}
        bases = {_basis(row) for row in mine}
        alike = bases.pop() if len(bases) == 1 else None  # shown once then, below the table
        decimals = {name: decimals_of(_shown(row for row in mine if short_name(row) == name)) for name in names}
        table = tuple(
            (*group, *(_cell(placed.get((group, name)), shared, numbers, alike, decimals[name]) for name in names))
            for group in groups
        )
        columns = (*keys, *(Named(plain_name(name).partition(" · ")[0], name) for name in names))
        title = f"By {' and '.join(keys)}{f' · {family}' if family else ''}"
        notes = [f"{_raised(at)} {remark}." for remark, at in numbers.items()] + [f"{alike} everywhere."] * bool(alike)
        found.append(Table(columns, table, title=title, note=" ".join(notes), folded=len(table) > 12))
    return found


def _cell(
    row: Row | None, shared: Collection[str], numbers: dict[str, int], alike: str | None, decimals: int | None
) -> str:
    """Return a value with its conditions; remarks are numbered in ``numbers``, in the order in which they come up."""
    if row is None:
        return ABSENT
    unit = str(row.get("unit"))
    ends = interval(row.get("interval"), unit, decimals)
    remarks = [flag for flag in marked_flags(row) if flag not in shared]
    remarks += [str(row["reason"])] if row.get("reason") else []
    marks = " ".join(_raised(numbers.setdefault(remark, len(numbers) + 1)) for remark in remarks)
    basis = "" if alike else f" ({_basis(row)})"
    return f"{measured(row.get('value'), unit, decimals)}{'' if ends == ABSENT else f' {ends}'}{basis}{marks}"


def marked_flags(row: Row) -> list[str]:
    """Return the flags that a cell is marked with; how small a sample is, its n says."""
    return [str(flag) for flag in row.get("flags") or () if flag != "small_sample"]


def _basis(row: Row) -> str:
    """Return how many cases a value rests on."""
    n, left_out = int(row.get("n") or 0), int(row.get("n_unscored") or 0)
    return f"n {number(n)} of {number(n + left_out)}" if left_out else f"n {number(n)}"


def _raised(at: int) -> str:
    return str(at).translate(_SUPERSCRIPTS)


def reliability_curve(rows: Sequence[Row]) -> list[Lines]:
    """Return the reliability curve of a reward model: the share that came true against what was predicted, by bin."""
    by_bin: dict[int, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row.get("value") is not None:
            by_bin[int(row["group"]["bin"])][short_name(row)] = row
    bins = [(each["bin_p"], each["bin_y"]) for _, each in sorted(by_bin.items()) if {"bin_p", "bin_y"} <= {*each}]
    if not bins:
        return []
    curve = _series("test", [float(p["value"]) for p, _ in bins], [y for _, y in bins])
    labels = ("reward_calibration", "Reliability", "mean p", "share positive")
    return [Lines(*labels, (curve,), (0.0, 1.0), band="95 % interval", diagonal=True)]


def reference_blocks(names: Collection[str], rows: Sequence[Row], recipe: Mapping[str, Any]) -> Iterator[Block]:
    """Yield each published table, beside the run's own values where they measure the same, then its caveats."""
    whole = {str(row.get("name")): row for row in rows if not row.get("group")}
    known = load_references()
    for reference in (table for table in known.tables if table.id in names):
        is_same = is_same_test(reference, recipe)
        ours = [whole.get(row.metric or "") if is_same else None for row in reference.rows]
        beside = any(ours)
        table = tuple(
            (
                row.name,
                *(value_cells(own) if beside else ()),
                *(ABSENT if value is None else f"{value:g}" for value in row.values),
            )
            for row, own in zip(reference.rows, ours, strict=True)
        )
        columns = ("as published", *(("this run", "interval", "n") if beside else ()), *reference.columns)
        yield Table(columns, table, title=reference.title, note=f"Source: {reference.source}.")
        caveats = (known.caveats[name] for name in reference.caveats)
        sentences = (f"{caveat[:1].upper()}{caveat[1:].removesuffix('.')}." for caveat in caveats)
        yield Points("Never to be read without", tuple(sentences))


def is_same_test(reference: ReferenceTable, recipe: Mapping[str, Any]) -> bool:
    """Return whether an evaluation's values are of the test that a published table is of."""
    is_own = str(at(recipe, "data.path")).startswith(OWN_CORPORA)
    return bool(reference.same) and not is_own and all(at(recipe, path) == it for path, it in reference.same.items())


# ---------------------------------------------------------------- published numbers


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


def load_references() -> References:
    """Return the shipped published numbers."""
    return read_shipped(References, "esckit.report", "references.yaml")
