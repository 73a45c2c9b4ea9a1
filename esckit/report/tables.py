"""Charts as tables, for Markdown, print and screen readers."""

from __future__ import annotations

from esckit.report.blocks import ABSENT, Bars, Chart, Heat, Lines, Table, number, share


def chart_table(chart: Chart) -> Table:
    """Return the numbers of a chart."""
    if isinstance(chart, Lines):
        return _lines(chart)
    if isinstance(chart, Bars):
        rows = tuple(
            (category, *(number(values[i]) for _, values in chart.series))
            for i, category in enumerate(chart.categories)
            if any(values[i] for _, values in chart.series)
        )
        return Table((chart.x_label, *(name for name, _ in chart.series)), rows, title=chart.title)
    if isinstance(chart, Heat):
        counts = tuple((label, *map(number, row)) for label, row in zip(chart.labels, chart.counts, strict=True))
        head = f"{chart.row_label} ↓ {chart.column_label} →"
        return Table((head, *chart.labels), counts, title=chart.title)
    columns = tuple(f"turn {position}" for position in chart.positions)
    by_label = zip(chart.labels, zip(*chart.totals, strict=True), strict=True)
    sums = [sum(total) for total in chart.totals]
    flow = tuple(
        (label, *(share(count / whole) if whole else ABSENT for count, whole in zip(row, sums, strict=True)))
        for label, row in by_label
    )
    return Table(("strategy", *columns), (*flow, ("n", *map(number, sums))), title=chart.title)


def _lines(chart: Lines) -> Table:
    several = len(chart.series) > 1
    banded = any(series.low for series in chart.series)
    counted = any(series.n for series in chart.series)
    columns = [*(["curve"] if several else []), chart.x_label, chart.y_label]
    columns += [*([chart.band or "band"] if banded else []), *(["n"] if counted else [])]
    rows = []
    for series in chart.series:
        for i, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
            row = [*([series.name] if several else []), number(x), number(y)]
            if banded:
                has = bool(series.low) and series.low[i] is not None
                row.append(f"[{number(series.low[i])}, {number(series.high[i])}]" if has else ABSENT)
            if counted:
                row.append(number(series.n[i]) if series.n else ABSENT)
            rows.append(tuple(row))
    return Table(tuple(columns), tuple(rows), title=chart.title)
