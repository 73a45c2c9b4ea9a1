"""What a report is made of, before it is Markdown, HTML or a plot.

A report has parts (a run, a comparison), a part has sections, a section has blocks. Every chart can say itself as a
table, so that Markdown, print and screen readers get the numbers. All strings here are plain text: whoever renders
them escapes them.

Numbers for reading: shares as per cent with one decimal, everything else with as many digits as it deserves.

Where values lie: quartiles by position, and counts in equal bins.

How labels follow each other over the positions of several sequences.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
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


def share(value: float | None) -> str:
    """Return a share in [0, 1] as per cent with one decimal."""
    return ABSENT if value is None else f"{100 * value:.1f} %".replace("-", "−")


def number(value: float | None) -> str:
    """Return a number: whole ones with thousands separators, others with about four significant digits."""
    if value is None:
        return ABSENT
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}".replace("-", "−")
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size < 1e-4 or size >= 1e6:
        text = f"{value:.2e}"
    else:
        text = f"{value:.{1 if size >= 100 else 2 if size >= 10 else 3 if size >= 0.01 else 5}f}"
    return text.replace("-", "−")


def measured(value: float | None, unit: str) -> str:
    """Return a metric's value in its unit."""
    if unit == "share":
        return share(value)
    if unit == "0-100" and value is not None:
        return f"{value:.2f}".replace("-", "−")
    return number(value)


def interval(row: Mapping[str, Any] | None, unit: str) -> str:
    """Return ``[low, high]`` of an interval in a metric's unit."""
    if not row or row.get("low") is None or row.get("high") is None:
        return ABSENT
    ends = [measured(float(row[end]), unit).removesuffix(" %") for end in ("low", "high")]
    return f"[{ends[0]}, {ends[1]}]"


def signed(value: float | None, unit: str) -> str:
    """Return a difference with its sign; of shares in percentage points."""
    if value is None:
        return ABSENT
    text = f"{100 * value:.1f}" if unit == "share" else measured(value, unit)
    sign = "+" if value > 0 and not text.startswith("+") else ""
    return sign + text.replace("-", "−") + (" pp" if unit == "share" else "")


def p_value(value: float | None) -> str:
    """Return a p-value with three decimals; small ones as ``< 0.001``."""
    if value is None:
        return ABSENT
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def plain(value: Any) -> str:
    """Return a value of a recipe or manifest on one line."""
    if value is None or value == {} or value == []:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value) if isinstance(value, float) else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return str(value)


def flattened(value: Any, prefix: str = "") -> dict[str, float]:
    """Return the numbers in nested objects by dotted path; lists, texts and truth values are left out."""
    if isinstance(value, Mapping):
        found: dict[str, float] = {}
        for key, inner in value.items():
            found |= flattened(inner, f"{prefix}.{key}" if prefix else str(key))
        return found
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return {prefix: value}
    return {}


def quantile(ordered: Sequence[float], q: float) -> float:
    """Return a quantile of sorted values, linear between neighbours."""
    import numpy as np

    return float(np.quantile(ordered, q))


def mean_and_quartiles(name: str, by_position: Mapping[int, Sequence[float]]) -> Series:
    """Return means by position with the middle half of the values as a band, and n."""
    places = sorted(place for place, values in by_position.items() if values)
    values = [sorted(by_position[place]) for place in places]
    return Series(
        name,
        tuple(float(place) for place in places),
        tuple(math.fsum(each) / len(each) for each in values),
        tuple(quantile(each, 0.25) for each in values),
        tuple(quantile(each, 0.75) for each in values),
        tuple(len(each) for each in values),
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
