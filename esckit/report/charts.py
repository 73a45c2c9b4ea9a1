"""Charts as pictures: each is drawn once, as SVG elements that serve the page and files alike.

On the page, shapes have classes only, which the style sheet colours, so that charts follow light, dark and print; the
page's security policy allows no style attribute. Not here: the numbers of a chart (:mod:`esckit.report.blocks`), and
pictures as files (:mod:`esckit.report.plots`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from esckit.report.blocks import Bars, Chart, Flow, Heat, Intervals, Lines
from esckit.report.source import interval, measured, number

WIDTH, HEIGHT = 440, 262

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 42

COLOURS = 10

_DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "4 2", "1 2")

_LEGIBLE = 15.0
"""Below this width, a cell holds no number."""


def asset(name: str) -> str:
    """Return a text that ships for the page."""
    return (files("esckit.report") / "assets" / name).read_text(encoding="utf-8").strip()


@dataclass(frozen=True, slots=True)
class Layout:
    """The room that a chart has.

    Attributes:
        width: In units; the text of a tick is 11 units high.
        is_print: True for paper: series differ in marks and dashes as well, and everything keeps to the width.
    """

    width: float = WIDTH
    is_print: bool = False

    @property
    def height(self) -> float:
        """Of a chart with two axes."""
        return max(180.0, HEIGHT * self.width / WIDTH) if self.is_print else HEIGHT

    @property
    def labels(self) -> float:
        """Room at the left for names of rows."""
        return min(154.0, 0.36 * self.width)

    def short(self, text: str, length: int) -> str:
        """Return a name of a row, cut to what there is room for."""
        fitting = min(length, int(self.labels / 6.2)) if self.is_print else length
        return text if len(text) <= fitting else f"{text[: fitting - 1]}…"


ON_PAGE = Layout()


def svg(chart: Chart) -> str:
    """Return a chart as one ``<svg>`` element of the page."""
    return tostring(drawn(chart, ON_PAGE), encoding="unicode")


# ---------------------------------------------------------------- drawing


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Return round numbers from at most ``low`` to at least ``high``."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def drawn(chart: Chart, layout: Layout) -> Element:
    """Return a chart whose shapes have classes in place of colours."""
    draw: dict[type, Callable[[Any, Layout], Element]] = {
        Lines: _lines,
        Bars: _bars,
        Heat: _heat,
        Flow: _flow,
        Intervals: _intervals,
    }
    return draw[type(chart)](chart, layout)


def _canvas(chart: Chart, width: float, height: float) -> Element:
    kind = f"chart {type(chart).__name__.lower()}"
    view = f"0 0 {width} {height}"
    return Element("svg", {"class": kind, "viewBox": view, "role": "img", "aria-label": chart.title})


def add_shape(canvas: Element, tag: str, kind: str, shown: str = "", **at: float | str) -> None:
    """Draw a shape; ``shown`` is the text of a text element, and what any other shape says when pointed at."""
    placed = {
        key.replace("_", "-"): value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
        for key, value in at.items()
    }
    shape = SubElement(canvas, tag, {"class": kind} | placed)
    if shown:
        (shape if tag == "text" else SubElement(shape, "title")).text = shown


def add_text(
    canvas: Element, x: float, y: float, text: str, kind: str, anchor: str = "middle", turned: float = 0.0
) -> None:
    """Write a text at a point, turned by some degrees around it."""
    rotation = {"transform": f"rotate({turned:.0f} {x:.1f} {y:.1f})"} if turned else {}
    add_shape(canvas, "text", kind, text, x=x, y=y, text_anchor=anchor, **rotation)


class _Plane:
    """The area of a chart with its scales; drawing it draws the grid and the names of the axes."""

    def __init__(self, chart: Lines | Bars, xs: tuple[float, float], y_ticks: Sequence[float], layout: Layout) -> None:
        self.right, self.bottom = layout.width - _RIGHT, layout.height - _BOTTOM
        self.x_low, self.x_high = xs if xs[1] > xs[0] else (xs[0] - 0.5, xs[1] + 0.5)
        self.y_low, self.y_high = y_ticks[0], y_ticks[-1]
        self.canvas = _canvas(chart, layout.width, layout.height)
        step = y_ticks[1] - y_ticks[0]
        for tick in y_ticks:
            self.level(tick, "zero" if abs(tick) < step / 1e6 else "grid")
            add_text(self.canvas, _LEFT - 6, self.y(tick) + 3.5, _tick(tick, step), "tick", "end")
        add_text(self.canvas, (_LEFT + self.right) / 2, layout.height - 6, chart.x_label, "axis")
        add_text(self.canvas, 11, (self.bottom + _TOP) / 2, chart.y_label, "axis", turned=-90)

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - _LEFT)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y_low) / (self.y_high - self.y_low) * (self.bottom - _TOP)

    def level(self, value: float, kind: str) -> None:
        add_shape(self.canvas, "line", kind, x1=_LEFT, x2=self.right, y1=self.y(value), y2=self.y(value))

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)


def _tick(value: float, step: float) -> str:
    if step < 1e-3:
        return f"{value:.1e}".replace("-", "−") if abs(value) > step / 1e6 else "0"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += step * 10**digits % 1 > 1e-6
    text = f"{0.0 if abs(value) < step / 1e6 else value:,.{digits}f}"
    return text.replace("-", "−") if abs(value) < 1e6 else f"{value:.1e}"


def _lines(chart: Lines, layout: Layout) -> Element:
    xs = [x for series in chart.series for x in series.x] or [0.0]
    ys = [y for series in chart.series for y in (*series.y, *series.low, *series.high) if y is not None]
    ys += [level for _, level in chart.marks] + list(chart.y_range or ())
    plane = _Plane(chart, (0.0, 1.0) if chart.diagonal else (min(xs), max(xs)), ticks(min(ys), max(ys)), layout)
    canvas = plane.canvas
    low, high = min(xs), max(xs)
    if chart.diagonal:
        x_ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    elif high - low <= 12:
        x_ticks = [float(x) for x in range(math.ceil(low), math.floor(high) + 1)]
    else:
        x_ticks = [tick for tick in ticks(low, high, about=6) if low <= tick <= high]
    for x in x_ticks:
        add_text(canvas, plane.x(x), plane.bottom + 15, _tick(x, 0.25 if chart.diagonal else 1.0), "tick")
    for name, level in chart.marks:
        plane.level(level, "mark")
        y = plane.y(level)
        add_text(canvas, plane.right, y - 4 if y > _TOP + 8 else y + 12, name, "tick", "end")
    if chart.diagonal:
        add_shape(canvas, "path", "mark", d=plane.path([(0.0, 0.0), (1.0, 1.0)]))
    for index, series in enumerate(chart.series):
        colour, points = index % COLOURS, list(zip(series.x, series.y, strict=True))
        for stretch in series.bands():
            around = [(x, high) for x, _, high in stretch] + [(x, low) for x, low, _ in reversed(stretch)]
            add_shape(canvas, "path", f"band f{colour}", d=f"{plane.path(around)}Z")
        if points:
            add_shape(canvas, "path", f"line l{colour}", d=plane.path(points), **_dashes(index, layout))
        for place, (x, y) in enumerate(points if len(points) <= 40 else ()):
            n = f", n {number(series.n[place])}" if series.n else ""
            shown = f"{series.name}: {number(x)} → {number(y)}{n}"
            _mark(canvas, index if layout.is_print else 0, f"dot f{colour}", shown, plane.x(x), plane.y(y))
    return canvas


def _mark(canvas: Element, index: int, kind: str, shown: str, x: float, y: float) -> None:
    """Draw a point of a series: a circle, square, triangle or diamond by its index."""
    r = 3.4
    corners = {
        1: ((-r, -r), (r, -r), (r, r), (-r, r)),
        2: ((0, -1.3 * r), (1.2 * r, r), (-1.2 * r, r)),
        3: ((0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0)),
    }
    if index % 4 == 0:
        add_shape(canvas, "circle", kind, shown, cx=x, cy=y, r=3)
        return
    path = "L".join(f"{x + right:.1f} {y + down:.1f}" for right, down in corners[index % 4])
    add_shape(canvas, "path", kind, shown, d=f"M{path}Z")


def _dashes(index: int, layout: Layout) -> dict[str, str]:
    dashes = _DASHES[index % len(_DASHES)] if layout.is_print else ""
    return {"stroke_dasharray": dashes} if dashes else {}


def add_sign(canvas: Element, chart: Chart, index: int, layout: Layout, x: float, y: float) -> float:
    """Draw the sign of a series in a legend, left of its name on the base line ``y``; return its width."""
    kind = index % COLOURS
    if isinstance(chart, Lines) and layout.is_print:
        line = _dashes(index, layout)
        add_shape(canvas, "line", f"line l{kind}", x1=x, x2=x + 24, y1=y - 4, y2=y - 4, **line)
        _mark(canvas, index, f"dot f{kind}", "", x + 12, y - 4)
        return 24.0
    add_shape(canvas, "rect", f"f{kind}", x=x, y=y - 9, width=10, height=10, rx=2)
    return 10.0


def _bars(chart: Bars, layout: Layout) -> Element:
    if any(len(category) > 8 for category in chart.categories):
        return _lying_bars(chart, layout)
    n = len(chart.categories)
    sums = [sum(values[i] for _, values in chart.series) for i in range(n)]
    plane = _Plane(chart, (0.0, float(n)), ticks(0.0, max([*sums, 1.0])), layout)
    for i, category in enumerate(chart.categories):
        base = 0.0
        for index, (name, values) in enumerate(chart.series):
            x, y, shown = plane.x(i + 0.08), plane.y(base + values[i]), f"{category}: {name} {number(values[i])}"
            if values[i]:
                width, height = plane.x(i + 0.92) - x, plane.y(base) - y
                add_shape(plane.canvas, "rect", f"f{index}", shown, x=x, y=y, width=width, height=height, rx=2)
            base += values[i]
        if i % -(-n // 8) == 0:
            add_text(plane.canvas, plane.x(i), plane.bottom + 15, category, "tick")
    return plane.canvas


def _lying_bars(chart: Bars, layout: Layout) -> Element:
    row, left = 24, layout.labels
    canvas = _canvas(chart, layout.width, row * len(chart.categories) + 12)
    sums = [sum(values[i] for _, values in chart.series) for i in range(len(chart.categories))]
    scale = (layout.width - left - 52) / (max(sums) or 1.0)
    for i, category in enumerate(chart.categories):
        y, x = 6 + i * row, float(left)
        add_text(canvas, left - 8, y + 15, layout.short(category, 24), "tick", "end")
        for index, (name, values) in enumerate(chart.series):
            width, shown = values[i] * scale, f"{category}: {name} {number(values[i])}"
            add_shape(canvas, "rect", f"f{index}", shown, x=x, y=y + 4, width=max(width, 0.5), height=15, rx=2)
            x += width
        # Parts of one whole need no sum.
        if abs(sums[i] - 1.0) > 1e-9:
            add_text(canvas, x + 6, y + 15, number(sums[i]), "tick", "start")
    return canvas


def _intervals(chart: Intervals, layout: Layout) -> Element:
    row, left, right = 26, layout.labels, 56
    canvas = _canvas(chart, layout.width, row * len(chart.rows) + 34)
    ends = [end for _, *values, _ in chart.rows for end in values if end is not None]
    about = max(2, min(5, int((layout.width - left - right) / 44)))
    at = ticks(min([*ends, *(chart.x_range or ())]), max([*ends, *(chart.x_range or ())]), about=about)
    scale, bottom = (layout.width - left - right) / (at[-1] - at[0]), 6.0 + row * len(chart.rows)

    def x(value: float) -> float:
        return left + (value - at[0]) * scale

    for tick in at:
        add_shape(canvas, "line", "grid", x1=x(tick), x2=x(tick), y1=6, y2=bottom)
        shown = measured(tick, chart.unit) if chart.unit == "share" else _tick(tick, at[1] - at[0])
        add_text(canvas, x(tick), bottom + 16, shown.replace(".0 %", " %"), "tick")
    for i, (name, value, low, high, is_reference) in enumerate(chart.rows):
        y, kind = 6 + (i + 0.5) * row, "rest" if is_reference else "0"
        said = f"{name}: {measured(value, chart.unit)} {interval({'low': low, 'high': high}, chart.unit)}"
        add_text(canvas, left - 8, y + 4, layout.short(name, 24), "tick", "end")
        if low is not None and high is not None:
            add_shape(canvas, "line", f"line l{kind}", said, x1=x(low), x2=x(high), y1=y, y2=y)
        add_shape(canvas, "circle", f"dot f{kind}", said, cx=x(value), cy=y, r=5)
        add_text(canvas, layout.width - right + 8, y + 4, measured(value, chart.unit), "tick", "start")
    return canvas


def _heat(chart: Heat, layout: Layout) -> Element:
    n, longest = len(chart.labels), max(map(len, chart.labels))
    cell: float = 38 if n <= 8 else 30
    if layout.is_print:
        longest = min(longest, int(layout.labels / 6.2))
        left: float = 16 + 6 * longest
        top, right = 20 + round(4.7 * longest), round(3.9 * longest)
        cell = min(cell, (layout.width - left - right) / n)
    else:
        # Labels are shown whole; those above the columns lean, so that they need less height than length.
        left = max(136, 16 + 6 * longest)
        top, right = max(112, 20 + round(4.7 * longest)), max(82, round(3.9 * longest))
    canvas = _canvas(chart, max(layout.width, left + n * cell + right), top + n * cell + 8)
    for i, (label, shares) in enumerate(zip(chart.labels, chart.shares(), strict=True)):
        x, y, shown = left + i * cell, top + i * cell, layout.short(label, longest)
        add_text(canvas, left - 8, y + cell / 2 + 4, shown, "tick", "end")
        add_text(canvas, x + cell / 2 + 4, top - 8, shown, "tick", "start", turned=-50)
        for j, share in enumerate(shares):
            count, x = chart.counts[i][j], left + j * cell
            shown = f"{chart.row_label} {label}, {chart.column_label} {chart.labels[j]}: {count}, {100 * share:.1f} %"
            size, opacity = cell - 2, f"{0.04 + 0.96 * share:.3f}"
            add_shape(
                canvas, "rect", "cell", shown, x=x + 1, y=y + 1, width=size, height=size, rx=3, fill_opacity=opacity
            )
            if count and cell >= _LEGIBLE:
                kind = "count strong" if share > 0.5 else "count"
                add_text(canvas, x + cell / 2, y + cell / 2 + 4, f"{100 * share:.0f}", kind)
    return canvas


def _flow(chart: Flow, layout: Layout) -> Element:
    width, height, bar, gap = (layout.width if layout.is_print else 760), 330, 14, 3
    step = (width - 2 * 20 - bar) / max(1, len(chart.positions) - 1)
    scale = (height - 60 - gap * len(chart.labels)) / max(sum(total) for total in chart.totals)
    canvas = _canvas(chart, width, height)
    leaving: dict[int, float] = {}
    for place, total in enumerate(chart.totals):
        x, y, tops = 20 + place * step, 18.0, {}
        for index, count in enumerate(total):
            if count:
                tops[index] = y
                shown = f"{chart.labels[index]}, turn {chart.positions[place]}: {count}"
                kind = f"f{index % COLOURS}"
                add_shape(canvas, "rect", kind, shown, x=x, y=y, width=bar, height=count * scale, rx=2)
                y += count * scale + gap
        add_text(canvas, x + bar / 2, height - 22, chart.positions[place], "tick")
        # Each ribbon takes its place on the bar that it leaves and on the one that it reaches.
        arriving = dict(tops)
        for a, b, n in chart.links[place - 1] if place else ():
            shown = f"{chart.labels[a]} → {chart.labels[b]}: {n}"
            x0, y0, y1, thick = x - step + bar, leaving[a], arriving[b], n * scale
            middle, low0, low1 = (x0 + x) / 2, y0 + thick, y1 + thick
            ribbon = (
                f"M{x0:.1f} {y0:.1f}C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x:.1f} {y1:.1f}"
                f"L{x:.1f} {low1:.1f}C{middle:.1f} {low1:.1f} {middle:.1f} {low0:.1f} {x0:.1f} {low0:.1f}Z"
            )
            add_shape(canvas, "path", f"ribbon f{a % COLOURS}", shown, d=ribbon)
            leaving[a] += n * scale
            arriving[b] += n * scale
        leaving = tops
    add_text(canvas, width / 2, height - 5, "supporter turn", "axis")
    return canvas
