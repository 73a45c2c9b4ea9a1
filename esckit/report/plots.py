"""Charts as files for papers: SVG with text as text, and PNG, drawn by matplotlib on white."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from esckit.records import storage_error
from esckit.report.blocks import Bars, Chart, Flow, Heat, Lines, Report

_COLOURS = (
    "#2f7f8f",
    "#d98324",
    "#7a63b8",
    "#5a9a4f",
    "#c2506b",
    "#3f6db5",
    "#a88b1f",
    "#8c6a54",
    "#5fa8a0",
    "#6f7882",
)

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "esckit",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "font.size": 9,
    "legend.frameon": False,
}


def write_plots(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write every chart of a report as SVG and PNG; return the files.

    Raises:
        StorageError: If a file cannot be written.
    """
    written: list[Path] = []
    several = len(report.parts) > 1
    for number, (part, chart) in enumerate(report.charts(), start=1):
        stem = f"{_slug(part.title)}-{_slug(chart.name)}" if several else _slug(chart.name)
        taken = {path.stem for path in written}
        stem = f"{stem}-{number}" if stem in taken else stem
        for suffix in (".svg", ".png"):
            path = folder / f"{stem}{suffix}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _save(chart, path)
            except OSError as error:
                raise storage_error(error, path) from error
            written.append(path)
    return tuple(written)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "plot"


def _save(chart: Chart, path: Path) -> None:
    with rc_context(_STYLE):
        figure = Figure(figsize=_size(chart), layout="constrained")
        axes = figure.add_subplot()
        # What stands between dollar signs would be read as mathematics.
        axes.set_title(_literal(chart.title), loc="left")
        _draw(chart, axes)
        # No date: equal runs give equal files.
        figure.savefig(path, dpi=200, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})


def _literal(text: str) -> str:
    return text.replace("$", r"\$")


def _size(chart: Chart) -> tuple[float, float]:
    if isinstance(chart, Heat):
        side = 2.4 + 0.42 * len(chart.labels)
        return side, side
    return (6.4, 3.4) if isinstance(chart, Flow) else (4.6, 3.0)


def _draw(chart: Chart, axes: Axes) -> None:
    if isinstance(chart, Lines):
        _draw_lines(chart, axes)
    elif isinstance(chart, Bars):
        _draw_bars(chart, axes)
    elif isinstance(chart, Heat):
        _draw_heat(chart, axes)
    else:
        _draw_flow(chart, axes)


def _draw_lines(chart: Lines, axes: Axes) -> None:
    for index, series in enumerate(chart.series):
        colour = _COLOURS[index % len(_COLOURS)]
        mark = "o" if len(series.x) <= 40 else None
        axes.plot(series.x, series.y, color=colour, marker=mark, markersize=3.5, label=_literal(series.name))
        for stretch in series.bands():
            x, low, high = zip(*stretch, strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    for name, level in chart.marks:
        axes.axhline(level, color="#777777", linestyle="--", linewidth=0.8)
        axes.annotate(name, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="#777777")
    if chart.diagonal:
        axes.plot((0, 1), (0, 1), color="#777777", linestyle="--", linewidth=0.8)
    if chart.y_range:
        axes.set_ylim(*chart.y_range)
    axes.set_xlabel(_literal(chart.x_label))
    axes.set_ylabel(_literal(chart.y_label))
    if len(chart.series) > 1:
        axes.legend()


def _draw_bars(chart: Bars, axes: Axes) -> None:
    lying = any(len(category) > 8 for category in chart.categories)
    names = [_literal(category) for category in chart.categories]
    places = range(len(names))
    base = [0.0] * len(names)
    for index, (name, values) in enumerate(chart.series):
        colour = _COLOURS[index % len(_COLOURS)]
        if lying:
            axes.barh(places, values, left=base, color=colour, label=_literal(name))
        else:
            axes.bar(places, values, bottom=base, color=colour, label=_literal(name), width=0.86)
        base = [below + value for below, value in zip(base, values, strict=True)]
    if lying:
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set_xlabel(_literal(chart.y_label))
    else:
        every = -(-len(names) // 8)
        axes.set_xticks(places[::every], names[::every])
        axes.set_xlabel(_literal(chart.x_label))
        axes.set_ylabel(_literal(chart.y_label))
    if len(chart.series) > 1:
        axes.legend()


def _draw_heat(chart: Heat, axes: Axes) -> None:
    shares = chart.shares()
    axes.imshow(shares, cmap=colormaps["GnBu"], vmin=0.0, vmax=1.0)
    places = range(len(chart.labels))
    names = [_literal(label) for label in chart.labels]
    axes.set_xticks(places, names, rotation=50, ha="right")
    axes.set_yticks(places, names)
    axes.set_xlabel(_literal(chart.column_label))
    axes.set_ylabel(_literal(chart.row_label))
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            if chart.counts[i][j]:
                colour = "white" if share > 0.6 else "black"
                axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)


def _draw_flow(chart: Flow, axes: Axes) -> None:
    """Draw the shares per position as stacked areas; the page has the ribbons."""
    sums = [sum(total) or 1 for total in chart.totals]
    layers = [
        [total[index] / whole for total, whole in zip(chart.totals, sums, strict=True)]
        for index in range(len(chart.labels))
    ]
    places = range(len(chart.positions))
    colours = [_COLOURS[index % len(_COLOURS)] for index in range(len(layers))]
    axes.stackplot(places, layers, labels=[_literal(label) for label in chart.labels], colors=colours, alpha=0.85)
    axes.set_xticks(places, chart.positions)
    axes.set_xlabel("supporter turn")
    axes.set_ylabel("share of dialogues that reach it")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
