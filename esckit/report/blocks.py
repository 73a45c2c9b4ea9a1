"""What a report is made of, before it is a page, Markdown or a picture.

A report has parts (a run, a comparison), a part has sections, a section has blocks. Every chart knows its numbers as a
table, for Markdown, print and screen readers. All strings are plain text: whoever renders them escapes them. Below the
blocks stand the charts that several reports make of their data. Not here: pictures (:mod:`esckit.report.charts`) and
texts (:mod:`esckit.report.render`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from esckit.report.source import ABSENT, decimals_of, interval, measured, number, share


class Named(str):
    """A cell whose words stand for an identifier: pages show it when pointed at, Markdown beside the words."""

    __slots__ = ("stands_for",)
    stands_for: str

    def __new__(cls, words: str, stands_for: str) -> Named:
        """Return the cell."""
        cell = super().__new__(cls, words)
        cell.stands_for = stands_for
        return cell


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells.

    Attributes:
        folded: True if a reader has to open it first.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    note: str = ""
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and what they are."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """One key figure: what it is, its value, and what it rests on."""

    label: str
    value: str
    basis: str = ""


@dataclass(frozen=True, slots=True)
class Tiles:
    """The few numbers to read first."""

    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence; ``warning`` and ``bad`` stand out."""

    text: str
    kind: Literal["info", "warning", "bad", "good"] = "info"


@dataclass(frozen=True, slots=True)
class Points:
    """Sentences that belong to what stands above them."""

    title: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be read letter by letter, folded."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Series:
    """A line: points, an optional band around them, and what each point rests on.

    Attributes:
        low: Lower end of the band per point, None where there is none; empty without a band.
        high: Upper end of the band per point.
        n: Cases per point; empty where there is no such number.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    n: tuple[int, ...] = ()

    def bands(self) -> list[list[tuple[float, float, float]]]:
        """Return (x, low, high) of neighbouring points that have a band, one list per stretch."""
        stretches: list[list[tuple[float, float, float]]] = [[]]
        for x, low, high in zip(self.x, self.low, self.high, strict=False):
            if low is None or high is None:
                stretches.append([])
            else:
                stretches[-1].append((x, low, high))
        return [stretch for stretch in stretches if stretch]


@dataclass(frozen=True, slots=True)
class Lines:
    """Curves over one axis.

    Attributes:
        name: Base name of the plot's file.
        y_range: What the y axis must show at least.
        band: What the band is, in words.
        marks: Horizontal lines with a meaning, such as a threshold.
        diagonal: True if the line y = x means something.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    y_range: tuple[float, float] | None = None
    band: str = ""
    marks: tuple[tuple[str, float], ...] = ()
    diagonal: bool = False

    @property
    def legend(self) -> tuple[str, ...]:
        """The names of its colours."""
        return tuple(series.name for series in self.series)

    @property
    def caption(self) -> str:
        """What the picture cannot say."""
        return f"Band: {self.band}." if self.band and any(series.low for series in self.series) else ""

    def table(self) -> Table:
        """Return the numbers."""
        banded = any(series.low for series in self.series)
        counted = any(series.n for series in self.series)
        columns = [self.x_label, self.y_label, *([self.band or "band"] if banded else []), *(["n"] if counted else [])]
        rows = []
        of_x = decimals_of(x for series in self.series for x in series.x)
        of_y = decimals_of(y for series in self.series for y in (*series.y, *series.low, *series.high))
        for series in self.series:
            for i, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
                row = [series.name, number(x, of_x), number(y, of_y)]
                if banded:
                    has_band = bool(series.low) and series.low[i] is not None
                    band = f"[{number(series.low[i], of_y)}, {number(series.high[i], of_y)}]" if has_band else ABSENT
                    row.append(band)
                if counted:
                    row.append(number(series.n[i]) if series.n else ABSENT)
                rows.append(tuple(row))
        if len(self.series) == 1:
            return Table(tuple(columns), tuple(row[1:] for row in rows), title=self.title)
        return Table(("curve", *columns), tuple(rows), title=self.title)


@dataclass(frozen=True, slots=True)
class Bars:
    """Stacked bars: one category per bar, one value per series in it."""

    name: str
    title: str
    x_label: str
    y_label: str
    categories: tuple[str, ...]
    series: tuple[tuple[str, tuple[float, ...]], ...]

    caption = ""

    @property
    def legend(self) -> tuple[str, ...]:
        """The names of its colours."""
        return tuple(name for name, _ in self.series)

    def table(self) -> Table:
        """Return the numbers of every category that has any."""
        rows = zip(self.categories, *(values for _, values in self.series), strict=True)
        decimals = decimals_of(value for _, values in self.series for value in values)
        shown = tuple(
            (category, *(number(value, decimals) for value in values)) for category, *values in rows if any(values)
        )
        return Table((self.x_label, *self.legend), shown, title=self.title)


@dataclass(frozen=True, slots=True)
class Heat:
    """A matrix of counts, coloured by the share of each in its column's sum (``by='column'``) or row's."""

    name: str
    title: str
    row_label: str
    column_label: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    by: Literal["row", "column"] = "column"

    legend = ()

    @property
    def caption(self) -> str:
        """What the picture cannot say."""
        return f"Rows: {self.row_label}; columns: {self.column_label}; per cent of the {self.by}."

    def shares(self) -> tuple[tuple[float, ...], ...]:
        """Return every count divided by the sum that it belongs to; 0 where that is 0."""
        columns = [sum(column) for column in zip(*self.counts, strict=True)]
        wholes = [columns if self.by == "column" else [sum(row)] * len(row) for row in self.counts]
        return tuple(
            tuple(count / whole if whole else 0.0 for count, whole in zip(*each, strict=True))
            for each in zip(self.counts, wholes, strict=True)
        )

    def table(self) -> Table:
        """Return the counts."""
        rows = tuple((label, *map(number, row)) for label, row in zip(self.labels, self.counts, strict=True))
        return Table((f"{self.row_label} ↓ {self.column_label} →", *self.labels), rows, title=self.title)


@dataclass(frozen=True, slots=True)
class Flow:
    """How labels follow each other from one position to the next.

    Attributes:
        labels: All labels, in the order of their colours.
        totals: Per position, how often each label stands there.
        links: Per step from a position to the next, (from, to, count) by index of the label.
    """

    name: str
    title: str
    positions: tuple[str, ...]
    labels: tuple[str, ...]
    totals: tuple[tuple[int, ...], ...]
    links: tuple[tuple[tuple[int, int, int], ...], ...]

    caption = ""

    @property
    def legend(self) -> tuple[str, ...]:
        """The names of its colours."""
        return self.labels

    def table(self) -> Table:
        """Return the share of every label at every position, and how many dialogues reach it."""
        sums = [sum(total) for total in self.totals]
        rows = tuple(
            (label, *(share(count / whole if whole else None) for count, whole in zip(counts, sums, strict=True)))
            for label, counts in zip(self.labels, zip(*self.totals, strict=True), strict=True)
        )
        columns = ("strategy", *(f"turn {position}" for position in self.positions))
        return Table(columns, (*rows, ("n", *map(number, sums))), title=self.title)


@dataclass(frozen=True, slots=True)
class Intervals:
    """A value with its interval for each of several rows, below each other.

    Attributes:
        rows: Name, value, lower and upper end of the interval (None where there is none), and whether the row stands
            for comparison only.
        x_range: What the axis must show at least.
        unit: Unit of the values.
    """

    name: str
    title: str
    rows: tuple[tuple[str, float, float | None, float | None, bool], ...]
    x_range: tuple[float, float] | None = None
    unit: str = "none"

    legend = ()

    @property
    def caption(self) -> str:
        """What the picture cannot say."""
        return "Grey: for comparison." if any(is_reference for *_, is_reference in self.rows) else ""

    def table(self) -> Table:
        """Return the values and their intervals."""
        decimals = decimals_of(number for _, *numbers, _ in self.rows for number in numbers)
        shown = tuple(
            (name, measured(value, self.unit, decimals), interval({"low": low, "high": high}, self.unit, decimals))
            for name, value, low, high, _ in self.rows
        )
        return Table(("system", "value", "interval"), shown, title=self.title)


Chart = Lines | Bars | Heat | Flow | Intervals


@dataclass(frozen=True, slots=True)
class Explorer:
    """Records to walk through on the page; on paper and in Markdown a table stands for them.

    Attributes:
        kind: Which part of the page's script shows it.
        data: Plain JSON.
        tables: What it comes down to without a screen.
    """

    kind: Literal["trees", "futures", "episodes"]
    data: dict[str, Any]
    tables: tuple[Table, ...] = ()


Block = Table | Facts | Tiles | Note | Points | Code | Chart | Explorer


@dataclass(frozen=True, slots=True)
class Section:
    """A headed piece of a part.

    Attributes:
        folded: True if a reader has to open it first.
    """

    title: str
    blocks: tuple[Block, ...]
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One run, or the comparison of several.

    Attributes:
        folded: True if a reader has to open its sections first.
    """

    title: str
    kicker: str
    status: str
    sections: tuple[Section, ...]
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """All that one page shows."""

    title: str
    parts: tuple[Part, ...] = ()

    def charts(self) -> list[tuple[Part, Chart]]:
        """Return every chart with the part it belongs to, in order."""
        return [
            (part, block)
            for part in self.parts
            for section in part.sections
            for block in section.blocks
            if isinstance(block, Chart)
        ]


# ---------------------------------------------------------------- charts of data


def mean_and_quartiles(name: str, by_position: Mapping[int, Sequence[float]]) -> Series:
    """Return means by position with the middle half of the values as a band, and n."""
    import numpy as np

    known = {place: values for place, values in sorted(by_position.items()) if values}
    ends = [np.quantile(values, (0.25, 0.75)).tolist() for values in known.values()]
    return Series(
        name,
        tuple(map(float, known)),
        tuple(math.fsum(values) / len(values) for values in known.values()),
        tuple(low for low, _ in ends),
        tuple(high for _, high in ends),
        tuple(map(len, known.values())),
    )


def bins(values: Sequence[float], *, n_bins: int = 16) -> tuple[float, float]:
    """Return the start and width of round bins that hold all values in about so many steps."""
    low, high = min(values), max(values)
    rough = (high - low) / n_bins or 0.05
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(step * power for step in (1.0, 2.0, 2.5, 5.0, 10.0) if step * power >= rough)
    return math.floor(low / width + 1e-9) * width, width


def bin_of(value: float, start: float, width: float) -> int:
    """Return the index of the bin [start + i·width, start + (i+1)·width) that holds a value."""
    return math.floor((value - start) / width + 1e-9)


def flow_of(name: str, title: str, sequences: Sequence[Sequence[str]], *, longest: int = 10) -> Flow | None:
    """Return the flow of some label sequences, cut at ``longest`` positions; None where no label stands."""
    labels = list(dict.fromkeys(label for sequence in sequences for label in sequence))
    if not labels:
        return None
    index_of = {label: index for index, label in enumerate(sorted(labels))}
    width = min(longest, max(len(sequence) for sequence in sequences))
    totals: list[Counter[int]] = [Counter() for _ in range(width)]
    links: list[Counter[tuple[int, int]]] = [Counter() for _ in range(width - 1)]
    for sequence in sequences:
        codes = [index_of[label] for label in sequence[:width]]
        for place, code in enumerate(codes):
            totals[place][code] += 1
        for place, pair in enumerate(pairwise(codes)):
            links[place][pair] += 1
    return Flow(
        name,
        title,
        tuple(str(place + 1) for place in range(width)),
        tuple(sorted(labels)),
        tuple(tuple(total[code] for code in range(len(labels))) for total in totals),
        tuple(tuple((a, b, n) for (a, b), n in sorted(link.items())) for link in links),
    )


def transitions(name: str, sequences: Sequence[Sequence[str]]) -> Heat | None:
    """Return how often a label follows another, over all positions; None where nothing follows anything."""
    pairs = Counter(pair for sequence in sequences for pair in pairwise(sequence))
    if not pairs:
        return None
    labels = tuple(sorted({label for pair in pairs for label in pair}))
    counts = tuple(tuple(pairs[first, then] for then in labels) for first in labels)
    return Heat(name, "What follows what", "strategy of a turn", "strategy of the next", labels, counts, by="row")
