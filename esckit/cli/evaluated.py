"""What ``esckit evaluate`` prints of its results: tables on a terminal, else plain lines, one for each metric."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from esckit.cli.common import echo, printable

if TYPE_CHECKING:
    from esckit.evaluate.run import EvaluateResult
    from esckit.metrics.rows import Comparison, Interval, MetricRow


LEAST_COLUMNS = 60
"""On a terminal that is narrower than this, tables would be all line breaks."""


def echo_evaluation(result: EvaluateResult) -> None:
    """Print every metric of whole suites with its n, coverage and interval, then comparisons, then where to read on.

    What the practice world's baselines reach with the same seekers stands beside what the system reaches.
    """
    from esckit.report.compared import BASELINES_DRAW

    rows = {_label(row): row for row in result.metrics.metrics if (row.group or {}).keys() <= {"policy"}}
    width = max(map(len, rows))
    if sys.stdout.isatty() and shutil.get_terminal_size().columns >= LEAST_COLUMNS:
        _echo_table(("metric", "value", "interval", "n", ""), (_cells(name, row) for name, row in rows.items()))
        compared = result.metrics.comparisons
        for other in dict.fromkeys(entry.other for entry in compared):
            head = (f"against {other}", "difference", "interval", "n", "p", "")
            _echo_table(head, (_difference_cells(entry) for entry in compared if entry.other == other))
        width = len("baselines")
    else:
        for label, row in rows.items():
            echo(f"{label:<{width}}  {_value(row)}")
        for entry in result.metrics.comparisons:
            echo(f"{entry.name:<{width}}  {_difference(entry)}")
    if any(row.group for row in rows.values()):
        echo(f"{'baselines':<{width}}  {BASELINES_DRAW}")
    echo(f"{'out':<{width}}  {result.out}")
    echo(f"{'report':<{width}}  {result.report}")


def _echo_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as wide as the terminal; numbers stand at the right of their column."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in head:
        is_text = name in (head[0], "")
        table.add_column(Text(printable(name)), justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(highlight=False).print(table)


def _cells(name: str, row: MetricRow) -> tuple[str, ...]:
    if row.value is None:
        return (name, "–", "", "", _value(row).removeprefix("– "))
    notes = [f"coverage {row.coverage:.1%}"] if row.coverage is not None and row.coverage < 1 else []
    return (name, f"{row.value:.4g}", _between(row.interval), f"{row.n:,}", ", ".join([*notes, *row.flags]))


def _difference_cells(entry: Comparison) -> tuple[str, ...]:
    if entry.difference is None:
        return (entry.name, "–", "", "", "", entry.reason or "")
    p = "" if entry.p is None else f"{entry.p:.3g}"
    notes = [f"{entry.n_dropped} dropped"] if entry.n_dropped else []
    if entry.reason and not (entry.interval and p):
        notes.append(entry.reason)
    return (entry.name, f"{entry.difference:+.4g}", _between(entry.interval), f"{entry.n:,}", p, ", ".join(notes))


def _between(interval: Interval | None) -> str:
    return f"[{interval.low:.4g}, {interval.high:.4g}]" if interval else ""


def _label(row: MetricRow) -> str:
    return row.name if row.group is None else f"{row.name} of {row.group['policy']}"


def _value(row: MetricRow) -> str:
    if row.value is None:
        unscored = ", ".join(f"{reason} {n}" for reason, n in row.unscored.items())
        return f"– ({row.reason}; unscored: {unscored})" if unscored else f"– ({row.reason})"
    coverage = f", coverage {row.coverage:.1%}" if row.coverage is not None and row.coverage < 1 else ""
    flags = f" ({', '.join(row.flags)})" if row.flags else ""
    return f"{row.value:.4g} {_between(row.interval)}".rstrip() + f", n {row.n}{coverage}{flags}"


def _difference(entry: Comparison) -> str:
    if entry.difference is None:
        return f"against {entry.other}: – ({entry.reason})"
    p = f", p {entry.p:.3g}" if entry.p is not None else ""
    between = f" {_between(entry.interval)}".rstrip()
    dropped = f" ({entry.n_dropped} dropped)" if entry.n_dropped else ""
    why = f" ({entry.reason})" if entry.reason and not (between and p) else ""
    return f"against {entry.other}: {entry.difference:+.4g}{between}{p}, n {entry.n}{dropped}{why}"
