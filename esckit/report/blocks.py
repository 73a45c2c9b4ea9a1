"""What a report is made of, before it is Markdown, HTML or a plot.

A report has parts (a run, a comparison), a part has sections, a section has blocks. Every chart can say itself as a
table, so that Markdown, print and screen readers get the numbers. All strings here are plain text: whoever renders
them escapes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

ABSENT = "–"


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


@dataclass(frozen=True, slots=True)
class Bars:
    """Stacked bars: one category per bar, one value per series in it."""

    name: str
    title: str
    x_label: str
    y_label: str
    categories: tuple[str, ...]
    series: tuple[tuple[str, tuple[float, ...]], ...]


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

    def shares(self) -> tuple[tuple[float, ...], ...]:
        """Return every count divided by the sum that it belongs to; 0 where that is 0."""
        row_sums = [sum(row) for row in self.counts]
        column_sums = [sum(column) for column in zip(*self.counts, strict=True)]
        return tuple(
            tuple(_divide(count, column_sums[j] if self.by == "column" else row_sums[i]) for j, count in enumerate(row))
            for i, row in enumerate(self.counts)
        )


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


Chart = Lines | Bars | Heat | Flow


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


Block = Table | Facts | Tiles | Note | Points | Code | Lines | Bars | Heat | Flow | Explorer


@dataclass(frozen=True, slots=True)
class Section:
    """A headed piece of a part."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One run, or the comparison of several."""

    title: str
    kicker: str
    status: str
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """All that one page shows."""

    title: str
    parts: tuple[Part, ...] = field(default_factory=tuple)

    def charts(self) -> list[tuple[Part, Chart]]:
        """Return every chart with the part it belongs to, in order."""
        return [
            (part, block)
            for part in self.parts
            for section in part.sections
            for block in section.blocks
            if isinstance(block, Lines | Bars | Heat | Flow)
        ]


def _divide(count: int, whole: int) -> float:
    return count / whole if whole else 0.0
