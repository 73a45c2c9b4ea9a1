"""Charts as pictures: each is drawn once, as SVG elements that serve the page, SVG files and PNG files alike.

On the page, shapes have classes only, which the style sheet colours, so that charts follow light, dark and print; the
page's security policy allows no style attribute. A file gets the title, a legend and the light colours of the same
style sheet written into it. PNG is painted by matplotlib from these very elements. Not here: the numbers of a chart
(:mod:`esckit.report.blocks`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from esckit.records import write_atomic
from esckit.report.blocks import Bars, Chart, Flow, Heat, Intervals, Lines, Report
from esckit.report.source import interval, measured, number

WIDTH, HEIGHT = 440, 262

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 42

_COLOURS = 10

_ILLEGAL_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def asset(name: str) -> str:
    """Return a text that ships for the page."""
    return (files("esckit.report") / "assets" / name).read_text(encoding="utf-8").strip()


def svg(chart: Chart) -> str:
    """Return a chart as one ``<svg>`` element of the page."""
    return tostring(_drawn(chart), encoding="unicode")


def write_plots(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write every chart of a report as SVG, with text as text, and as PNG; return the files.

    Raises:
        StorageError: If a file cannot be written.
    """
    written: dict[Path, bytes] = {}
    for at, (part, chart) in enumerate(report.charts(), start=1):
        names = (part.title, chart.name) if len(report.parts) > 1 else (chart.name,)
        stem = "-".join(re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "plot" for name in names)
        stem = f"{stem}-{at}" if folder / f"{stem}.svg" in written else stem
        picture = _framed(chart)
        written[folder / f"{stem}.svg"] = tostring(picture, encoding="utf-8", xml_declaration=True)
        written[folder / f"{stem}.png"] = _png(picture)
    for path, data in written.items():
        write_atomic(path, data)
    return tuple(written)


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


def _drawn(chart: Chart) -> Element:
    draw: dict[type, Callable[[Any], Element]] = {
        Lines: _lines,
        Bars: _bars,
        Heat: _heat,
        Flow: _flow,
        Intervals: _intervals,
    }
    return draw[type(chart)](chart)


def _canvas(chart: Chart, width: float = WIDTH, height: float = HEIGHT) -> Element:
    kind = f"chart {type(chart).__name__.lower()}"
    view = f"0 0 {width} {height}"
    return Element("svg", {"class": kind, "viewBox": view, "role": "img", "aria-label": chart.title})


def _add(canvas: Element, tag: str, kind: str, shown: str = "", **at: float | str) -> None:
    """Draw a shape; ``shown`` is the text of a text element, and what any other shape says when pointed at."""
    placed = {
        key.replace("_", "-"): value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
        for key, value in at.items()
    }
    shape = SubElement(canvas, tag, {"class": kind} | placed)
    if shown:
        (shape if tag == "text" else SubElement(shape, "title")).text = shown


def _text(
    canvas: Element, x: float, y: float, text: str, kind: str, anchor: str = "middle", turned: float = 0.0
) -> None:
    rotation = {"transform": f"rotate({turned:.0f} {x:.1f} {y:.1f})"} if turned else {}
    _add(canvas, "text", kind, text, x=x, y=y, text_anchor=anchor, **rotation)


class _Plane:
    """The area of a chart with its scales; drawing it draws the grid and the names of the axes."""

    def __init__(self, chart: Lines | Bars, xs: tuple[float, float], y_ticks: Sequence[float]) -> None:
        self.x_low, self.x_high = xs if xs[1] > xs[0] else (xs[0] - 0.5, xs[1] + 0.5)
        self.y_low, self.y_high = y_ticks[0], y_ticks[-1]
        self.canvas = _canvas(chart)
        step = y_ticks[1] - y_ticks[0]
        for tick in y_ticks:
            self.level(tick, "zero" if abs(tick) < step / 1e6 else "grid")
            _text(self.canvas, _LEFT - 6, self.y(tick) + 3.5, _tick(tick, step), "tick", "end")
        _text(self.canvas, (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, chart.x_label, "axis")
        _text(self.canvas, 11, (HEIGHT - _BOTTOM + _TOP) / 2, chart.y_label, "axis", turned=-90)

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - _TOP - _BOTTOM)

    def level(self, value: float, kind: str) -> None:
        _add(self.canvas, "line", kind, x1=_LEFT, x2=WIDTH - _RIGHT, y1=self.y(value), y2=self.y(value))

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)


def _tick(value: float, step: float) -> str:
    if step < 1e-3:
        return f"{value:.1e}".replace("-", "−") if abs(value) > step / 1e6 else "0"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += step * 10**digits % 1 > 1e-6
    text = f"{0.0 if abs(value) < step / 1e6 else value:,.{digits}f}"
    return text.replace("-", "−") if abs(value) < 1e6 else f"{value:.1e}"


def _lines(chart: Lines) -> Element:
    xs = [x for series in chart.series for x in series.x] or [0.0]
    ys = [y for series in chart.series for y in (*series.y, *series.low, *series.high) if y is not None]
    ys += [level for _, level in chart.marks] + list(chart.y_range or ())
    plane = _Plane(chart, (0.0, 1.0) if chart.diagonal else (min(xs), max(xs)), ticks(min(ys), max(ys)))
    canvas = plane.canvas
    low, high = min(xs), max(xs)
    if chart.diagonal:
        x_ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    elif high - low <= 12:
        x_ticks = [float(x) for x in range(math.ceil(low), math.floor(high) + 1)]
    else:
        x_ticks = [tick for tick in ticks(low, high, about=6) if low <= tick <= high]
    for x in x_ticks:
        _text(canvas, plane.x(x), HEIGHT - _BOTTOM + 15, _tick(x, 0.25 if chart.diagonal else 1.0), "tick")
    for name, level in chart.marks:
        plane.level(level, "mark")
        y = plane.y(level)
        _text(canvas, WIDTH - _RIGHT, y - 4 if y > _TOP + 8 else y + 12, name, "tick", "end")
    if chart.diagonal:
        _add(canvas, "path", "mark", d=plane.path([(0.0, 0.0), (1.0, 1.0)]))
    for index, series in enumerate(chart.series):
        colour, points = index % _COLOURS, list(zip(series.x, series.y, strict=True))
        for stretch in series.bands():
            around = [(x, high) for x, _, high in stretch] + [(x, low) for x, low, _ in reversed(stretch)]
            _add(canvas, "path", f"band f{colour}", d=f"{plane.path(around)}Z")
        if points:
            _add(canvas, "path", f"line l{colour}", d=plane.path(points))
        for place, (x, y) in enumerate(points if len(points) <= 40 else ()):
            n = f", n {number(series.n[place])}" if series.n else ""
            shown = f"{series.name}: {number(x)} → {number(y)}{n}"
            _add(canvas, "circle", f"dot f{colour}", shown, cx=plane.x(x), cy=plane.y(y), r=3)
    return canvas


def _bars(chart: Bars) -> Element:
    if any(len(category) > 8 for category in chart.categories):
        return _lying_bars(chart)
    n = len(chart.categories)
    sums = [sum(values[i] for _, values in chart.series) for i in range(n)]
    plane = _Plane(chart, (0.0, float(n)), ticks(0.0, max([*sums, 1.0])))
    for i, category in enumerate(chart.categories):
        base = 0.0
        for index, (name, values) in enumerate(chart.series):
            x, y, shown = plane.x(i + 0.08), plane.y(base + values[i]), f"{category}: {name} {number(values[i])}"
            if values[i]:
                width, height = plane.x(i + 0.92) - x, plane.y(base) - y
                _add(plane.canvas, "rect", f"f{index}", shown, x=x, y=y, width=width, height=height, rx=2)
            base += values[i]
        if i % -(-n // 8) == 0:
            _text(plane.canvas, plane.x(i), HEIGHT - _BOTTOM + 15, category, "tick")
    return plane.canvas


def _lying_bars(chart: Bars) -> Element:
    row, left = 24, 154
    canvas = _canvas(chart, height=row * len(chart.categories) + 12)
    sums = [sum(values[i] for _, values in chart.series) for i in range(len(chart.categories))]
    scale = (WIDTH - left - 52) / (max(sums) or 1.0)
    for i, category in enumerate(chart.categories):
        y, x = 6 + i * row, float(left)
        _text(canvas, left - 8, y + 15, _short(category, 24), "tick", "end")
        for index, (name, values) in enumerate(chart.series):
            width, shown = values[i] * scale, f"{category}: {name} {number(values[i])}"
            _add(canvas, "rect", f"f{index}", shown, x=x, y=y + 4, width=max(width, 0.5), height=15, rx=2)
            x += width
        _text(canvas, x + 6, y + 15, number(sums[i]), "tick", "start")
    return canvas


def _intervals(chart: Intervals) -> Element:
    row, left, right = 26, 154, 56
    canvas = _canvas(chart, height=row * len(chart.rows) + 34)
    ends = [end for _, *values, _ in chart.rows for end in values if end is not None]
    at = ticks(min([*ends, *(chart.x_range or ())]), max([*ends, *(chart.x_range or ())]))
    scale, bottom = (WIDTH - left - right) / (at[-1] - at[0]), 6.0 + row * len(chart.rows)

    def x(value: float) -> float:
        return left + (value - at[0]) * scale

    for tick in at:
        _add(canvas, "line", "grid", x1=x(tick), x2=x(tick), y1=6, y2=bottom)
        shown = measured(tick, chart.unit) if chart.unit == "share" else _tick(tick, at[1] - at[0])
        _text(canvas, x(tick), bottom + 16, shown.replace(".0 %", " %"), "tick")
    for i, (name, value, low, high, is_reference) in enumerate(chart.rows):
        y, kind = 6 + (i + 0.5) * row, "rest" if is_reference else "0"
        said = f"{name}: {measured(value, chart.unit)} {interval({'low': low, 'high': high}, chart.unit)}"
        _text(canvas, left - 8, y + 4, _short(name, 24), "tick", "end")
        if low is not None and high is not None:
            _add(canvas, "line", f"line l{kind}", said, x1=x(low), x2=x(high), y1=y, y2=y)
        _add(canvas, "circle", f"dot f{kind}", said, cx=x(value), cy=y, r=5)
        _text(canvas, WIDTH - right + 8, y + 4, measured(value, chart.unit), "tick", "start")
    return canvas


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _heat(chart: Heat) -> Element:
    n = len(chart.labels)
    left, top, cell = 136, 112, 38 if n <= 8 else 30
    canvas = _canvas(chart, max(WIDTH, left + n * cell + 82), top + n * cell + 8)
    for i, (label, shares) in enumerate(zip(chart.labels, chart.shares(), strict=True)):
        x, y = left + i * cell, top + i * cell
        _text(canvas, left - 8, y + cell / 2 + 4, _short(label, 20), "tick", "end")
        _text(canvas, x + cell / 2 + 4, top - 8, _short(label, 18), "tick", "start", turned=-50)
        for j, share in enumerate(shares):
            count, x = chart.counts[i][j], left + j * cell
            shown = f"{chart.row_label} {label}, {chart.column_label} {chart.labels[j]}: {count}, {100 * share:.1f} %"
            size, opacity = cell - 2, f"{0.04 + 0.96 * share:.3f}"
            _add(canvas, "rect", "cell", shown, x=x + 1, y=y + 1, width=size, height=size, rx=3, fill_opacity=opacity)
            if count:
                kind = "count strong" if share > 0.5 else "count"
                _text(canvas, x + cell / 2, y + cell / 2 + 4, f"{100 * share:.0f}", kind)
    return canvas


def _flow(chart: Flow) -> Element:
    width, height, bar, gap = 760, 330, 14, 3
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
                kind = f"f{index % _COLOURS}"
                _add(canvas, "rect", kind, shown, x=x, y=y, width=bar, height=count * scale, rx=2)
                y += count * scale + gap
        _text(canvas, x + bar / 2, height - 22, chart.positions[place], "tick")
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
            _add(canvas, "path", f"ribbon f{a % _COLOURS}", shown, d=ribbon)
            leaving[a] += n * scale
            arriving[b] += n * scale
        leaving = tops
    _text(canvas, width / 2, height - 5, "supporter turn", "axis")
    return canvas


# ---------------------------------------------------------------- files


def _framed(chart: Chart) -> Element:
    """Return a chart that stands alone: its title above, its legend and caption below, and its colours in it."""
    canvas = _drawn(chart)
    width, height = map(float, canvas.attrib["viewBox"].split()[2:])
    _add(canvas, "text", "axis", chart.title, x=0, y=-10, font_weight="bold")
    x, y = 0.0, height + 14
    for index, name in enumerate(chart.legend if len(chart.legend) > 1 else ()):
        length = 30 + 7 * len(name)
        if x + length > width and x > 0:
            x, y = 0.0, y + 17
        _add(canvas, "rect", f"f{index % _COLOURS}", x=x, y=y - 9, width=10, height=10, rx=2)
        _text(canvas, x + 15, y, name, "axis", "start")
        x += length
    if chart.caption:
        y += 17
        _text(canvas, 0, y, chart.caption, "axis", "start")
    paint = _light_paint()
    for shape in canvas.iter():
        kinds = shape.attrib.pop("class", "").split()
        for kind in ([shape.tag] if shape.tag == "text" else []) + kinds:
            shape.attrib |= paint.get(kind, {})
        shape.text = _ILLEGAL_IN_XML.sub("�", shape.text or "") or None
    bottom = y + 10
    canvas.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"-8 -28 {width + 16:g} {bottom + 28:g}",
        "font-family": "DejaVu Sans, Arial, sans-serif",
    }
    return canvas


@cache
def _light_paint() -> dict[str, dict[str, str]]:
    """Return how the page's style sheet paints each class of shapes, in light colours."""
    css = asset("style.css")
    colours = dict(re.findall(r"--(\w[\w-]*): (#\w+)", css.partition("@media")[0]))
    charts = css.partition("/* charts */")[2].partition("/* explorers */")[0]
    charts = re.sub(r"var\(--([\w-]+)\)", lambda found: colours.get(found[1], ""), charts)
    rules = re.findall(r"\.(?:chart \.?)?(\w+) \{ ([^}]*) \}", charts)
    return {kind: dict(re.findall(r"([\w-]+): ([^;]+?);", f"{rule};")) for kind, rule in rules}


def _png(canvas: Element) -> bytes:
    """Return a picture of shapes whose colours stand in them, at 200 dpi."""
    from io import BytesIO

    from matplotlib.figure import Figure

    left, top, width, height = map(float, canvas.attrib["viewBox"].split())
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(left, left + width)
    axes.set_ylim(top + height, top)
    for shape in canvas:
        at: dict[str, Any] = dict(shape.attrib)
        if shape.tag == "text":
            turned = -float(at["transform"][7:].split()[0]) if "transform" in at else 0.0
            side = {"start": "left", "end": "right"}.get(at.get("text-anchor", "start"), "center")
            axes.text(
                float(at["x"]), float(at["y"]), shape.text or "", color=at["fill"], ha=side, rotation=turned,
                fontsize=float(at["font-size"].removesuffix("px")), weight=at.get("font-weight", "normal"),
                rotation_mode="anchor", parse_math=False,
            )  # fmt: skip
            continue
        patch = _patch(shape.tag, at)
        patch.set(
            facecolor=at.get("fill", "none"), edgecolor=at.get("stroke", "none"),
            linewidth=float(at.get("stroke-width", 1)), linestyle="--" if "stroke-dasharray" in at else "-",
            alpha=float(at.get("opacity", at.get("fill-opacity", 1))),
        )  # fmt: skip
        axes.add_patch(patch)
    data = BytesIO()
    # Without the name of the software equal runs give equal files.
    figure.savefig(data, dpi=200, metadata={"Software": None})
    return data.getvalue()


def _patch(tag: str, at: dict[str, Any]) -> Any:
    """Return a shape of SVG as a patch of matplotlib."""
    from matplotlib.patches import Circle, PathPatch, Rectangle
    from matplotlib.path import Path as Outline

    if tag == "rect":
        return Rectangle((float(at["x"]), float(at["y"])), float(at["width"]), float(at["height"]))
    if tag == "circle":
        return Circle((float(at["cx"]), float(at["cy"])), float(at["r"]))
    d = at["d"] if tag == "path" else f"M{at['x1']} {at['y1']}L{at['x2']} {at['y2']}"
    codes = {"M": Outline.MOVETO, "L": Outline.LINETO, "C": Outline.CURVE4, "Z": Outline.CLOSEPOLY}
    points: list[tuple[float, float]] = []
    kinds: list[Any] = []
    for command, numbers in re.findall(r"([MLCZ])([^MLCZ]*)", d):
        values = [float(each) for each in numbers.split()] or [0.0, 0.0]
        points += zip(values[::2], values[1::2], strict=True)
        kinds += [codes[command]] * (len(values) // 2)
    return PathPatch(Outline(points, kinds))
