"""Charts as inline SVG that takes its colours from the page, so that it follows light, dark and print.

Nothing here uses a style attribute: the page's security policy allows none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from esckit.report.blocks import Bars, Chart, Flow, Heat, Lines, number

WIDTH, HEIGHT = 440, 262

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 42

_COLOURS = 10


def svg(chart: Chart) -> str:
    """Return a chart as one ``<svg>`` element."""
    if isinstance(chart, Lines):
        return _lines(chart)
    if isinstance(chart, Bars):
        return _bars(chart)
    return _heat(chart) if isinstance(chart, Heat) else _flow(chart)


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


def _open(width: int, height: int, title: str, kind: str) -> str:
    return (
        f'<svg class="chart {kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" '
        f'preserveAspectRatio="xMidYMid meet">'
    )


def _text(x: float, y: float, text: str, kind: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _rect(kind: str, x: float, y: float, width: float, height: float, said: str, extra: str = "") -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2"{extra}>'
        f"<title>{escape(said)}</title></rect>"
    )


class _Plane:
    """The area of a chart with its scales."""

    def __init__(self, xs: tuple[float, float], y_ticks: Sequence[float]) -> None:
        self.x_low, self.x_high = xs if xs[1] > xs[0] else (xs[0] - 0.5, xs[1] + 0.5)
        self.y_ticks = y_ticks

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    def grid(self) -> Iterator[str]:
        step = self.y_ticks[1] - self.y_ticks[0]
        for tick in self.y_ticks:
            y = self.y(tick)
            kind = "zero" if abs(tick) < step / 1e6 else "grid"
            yield f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="{kind}"/>'
            yield _text(_LEFT - 6, y + 3.5, _tick(tick, step), "tick", "end")

    def labels(self, x_label: str, y_label: str) -> Iterator[str]:
        yield _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, x_label, "axis")
        middle = (HEIGHT - _BOTTOM + _TOP) / 2
        yield _text(11, middle, y_label, "axis", extra=f' transform="rotate(-90 11 {middle:.1f})"')


def _tick(value: float, step: float) -> str:
    if step < 1e-3:
        return f"{value:.1e}".replace("-", "−") if abs(value) > step / 1e6 else "0"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += step * 10**digits % 1 > 1e-6
    text = f"{0.0 if abs(value) < step / 1e6 else value:,.{digits}f}"
    return text.replace("-", "−") if abs(value) < 1e6 else f"{value:.1e}"


def _lines(chart: Lines) -> str:
    xs = [x for series in chart.series for x in series.x] or [0.0]
    ys = [y for series in chart.series for y in (*series.y, *series.low, *series.high) if y is not None]
    ys += [level for _, level in chart.marks] + list(chart.y_range or ())
    plane = _Plane((0.0, 1.0) if chart.diagonal else (min(xs), max(xs)), ticks(min(ys), max(ys)))
    parts = [_open(WIDTH, HEIGHT, chart.title, "lines"), *plane.grid()]
    for x in _x_ticks(xs, chart.diagonal):
        parts.append(_text(plane.x(x), HEIGHT - _BOTTOM + 15, _tick(x, 0.25 if chart.diagonal else 1.0), "tick"))
    for name, level in chart.marks:
        y = plane.y(level)
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="mark"/>')
        parts.append(_text(WIDTH - _RIGHT, y - 4 if y > _TOP + 8 else y + 12, name, "tick", "end"))
    if chart.diagonal:
        parts.append(f'<line x1="{plane.x(0):.1f}" y1="{plane.y(0):.1f}" x2="{plane.x(1):.1f}" y2="{plane.y(1):.1f}" '
                     'class="mark"/>')  # fmt: skip
    for index, series in enumerate(chart.series):
        points = [(plane.x(x), plane.y(y)) for x, y in zip(series.x, series.y, strict=True)]
        for stretch in series.bands():
            upper = [(plane.x(x), plane.y(high)) for x, _, high in stretch]
            lower = [(plane.x(x), plane.y(low)) for x, low, _ in stretch]
            parts.append(f'<path class="band f{index % _COLOURS}" d="{_path([*upper, *reversed(lower)])}Z"/>')
        parts.append(f'<path class="line l{index % _COLOURS}" d="{_path(points)}"/>')
        if len(points) <= 40:
            for place, (x, y) in enumerate(points):
                n = f", n {number(series.n[place])}" if series.n else ""
                said = f"{series.name}: {number(series.x[place])} → {number(series.y[place])}{n}"
                parts.append(f'<circle class="dot f{index % _COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
                             f"<title>{escape(said)}</title></circle>")  # fmt: skip
    return "".join([*parts, *plane.labels(chart.x_label, chart.y_label), "</svg>"])


def _x_ticks(xs: Sequence[float], unit: bool) -> list[float]:
    if unit:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    low, high = min(xs), max(xs)
    if high - low <= 12:
        return [float(x) for x in range(math.ceil(low), math.floor(high) + 1)]
    return [tick for tick in ticks(low, high, about=6) if low <= tick <= high]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""


def _bars(chart: Bars) -> str:
    if any(len(category) > 8 for category in chart.categories):
        return _lying_bars(chart)
    sums = [sum(values[i] for _, values in chart.series) for i in range(len(chart.categories))]
    plane = _Plane((0.0, float(len(chart.categories))), ticks(0.0, max([*sums, 1.0])))
    parts = [_open(WIDTH, HEIGHT, chart.title, "bars"), *plane.grid()]
    every = -(-len(chart.categories) // 8)
    for i, category in enumerate(chart.categories):
        base = 0.0
        for index, (name, values) in enumerate(chart.series):
            top = base + values[i]
            if values[i]:
                x, width = plane.x(i + 0.08), plane.x(i + 0.92) - plane.x(i + 0.08)
                said = f"{category}: {name} {number(values[i])}"
                height = plane.y(base) - plane.y(top)
                parts.append(_rect(f"f{index}", x, plane.y(top), width, height, said))
            base = top
        if i % every == 0:
            parts.append(_text(plane.x(i), HEIGHT - _BOTTOM + 15, category, "tick"))
    return "".join([*parts, *plane.labels(chart.x_label, chart.y_label), "</svg>"])


def _lying_bars(chart: Bars) -> str:
    row, left = 24, 154
    height = row * len(chart.categories) + 12
    sums = [sum(values[i] for _, values in chart.series) for i in range(len(chart.categories))]
    scale = (WIDTH - left - 52) / (max(sums) or 1.0)
    parts = [_open(WIDTH, height, chart.title, "bars")]
    for i, category in enumerate(chart.categories):
        y, x = 6 + i * row, float(left)
        parts.append(_text(left - 8, y + 15, _short(category, 24), "tick", "end"))
        for index, (name, values) in enumerate(chart.series):
            width = values[i] * scale
            parts.append(_rect(f"f{index}", x, y + 4, max(width, 0.5), 15, f"{category}: {name} {number(values[i])}"))
            x += width
        parts.append(_text(x + 6, y + 15, number(sums[i]), "tick", "start"))
    return "".join([*parts, "</svg>"])


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _heat(chart: Heat) -> str:
    n = len(chart.labels)
    left, top, cell = 136, 112, 38 if n <= 8 else 30
    width, height = max(WIDTH, left + n * cell + 82), top + n * cell + 8
    parts = [_open(width, height, chart.title, "heat")]
    shares = chart.shares()
    for i, label in enumerate(chart.labels):
        x = left + (i + 0.5) * cell
        parts.append(_text(left - 8, top + (i + 0.5) * cell + 4, _short(label, 20), "tick", "end"))
        parts.append(_text(x + 4, top - 8, _short(label, 18), "tick", "start",
                           f' transform="rotate(-50 {x + 4:.1f} {top - 8})"'))  # fmt: skip
        for j, count in enumerate(chart.counts[i]):
            share = shares[i][j]
            said = f"{chart.row_label} {label}, {chart.column_label} {chart.labels[j]}: {count}, {100 * share:.1f} %"
            parts.append(f'<rect class="cell" x="{left + j * cell + 1}" y="{top + i * cell + 1}" width="{cell - 2}" '
                         f'height="{cell - 2}" rx="3" fill-opacity="{0.04 + 0.96 * share:.3f}">'
                         f"<title>{escape(said)}</title></rect>")  # fmt: skip
            if count:
                kind = "count strong" if share > 0.5 else "count"
                parts.append(_text(left + (j + 0.5) * cell, top + (i + 0.5) * cell + 4, f"{100 * share:.0f}", kind))
    return "".join([*parts, "</svg>"])


def _flow(chart: Flow) -> str:
    width, height, bar, gap = 760, 330, 14, 3
    whole = max(sum(total) for total in chart.totals)
    step = (width - 2 * 20 - bar) / max(1, len(chart.positions) - 1)
    scale = (height - 60 - gap * len(chart.labels)) / whole
    parts = [_open(width, height, chart.title, "flow")]
    tops: list[dict[int, float]] = []
    for place, total in enumerate(chart.totals):
        y, here = 18.0, {}
        x = 20 + place * step
        for index, count in enumerate(total):
            if count:
                here[index] = y
                said = f"{chart.labels[index]}, turn {chart.positions[place]}: {count}"
                parts.append(_rect(f"f{index % _COLOURS}", x, y, bar, count * scale, said))
                y += count * scale + gap
        tops.append(here)
        parts.append(_text(x + bar / 2, height - 22, chart.positions[place], "tick"))
    for place, links in enumerate(chart.links):
        parts += _ribbons(chart, place, tops, 20 + place * step + bar, step - bar, scale, links)
    parts.append(_text(width / 2, height - 5, "supporter turn", "axis"))
    return "".join([*parts, "</svg>"])


def _ribbons(
    chart: Flow,
    place: int,
    tops: Sequence[dict[int, float]],
    x: float,
    width: float,
    scale: float,
    links: Sequence[tuple[int, int, int]],
) -> Iterator[str]:
    """Yield the ribbons from one position to the next; each takes its place on both bars."""
    leaving, arriving = dict(tops[place]), dict(tops[place + 1])
    for a, b, n in links:
        thick = n * scale
        y0, y1 = leaving[a], arriving[b]
        leaving[a], arriving[b] = y0 + thick, y1 + thick
        middle, end = x + width / 2, x + width
        said = f"{chart.labels[a]} → {chart.labels[b]}: {n}"
        yield (
            f'<path class="ribbon f{a % _COLOURS}" d="M{x:.1f} {y0:.1f}C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} '
            f"{end:.1f} {y1:.1f}L{end:.1f} {y1 + thick:.1f}C{middle:.1f} {y1 + thick:.1f} {middle:.1f} "
            f'{y0 + thick:.1f} {x:.1f} {y0 + thick:.1f}Z"><title>{escape(said)}</title></path>'
        )
