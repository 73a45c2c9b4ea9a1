"""``esckit report``: from run folders to Markdown, one page and plots; calls no model and changes no run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esckit.errors import ConfigError
from esckit.records import write_atomic
from esckit.report.blocks import Report
from esckit.report.build import build_report
from esckit.report.markdown import render_markdown
from esckit.report.page import render_page
from esckit.report.source import open_run

PAGE = "report.html"


@dataclass(frozen=True, slots=True)
class ReportResult:
    """What was written."""

    page: Path
    markdown: Path
    plots: tuple[Path, ...]


def write_report(
    runs: Sequence[Path],
    *,
    out: Path | None = None,
    against: Path | None = None,
    plots: Path | None = None,
    quotes: bool = False,
    unwritten: Mapping[str, Any] | None = None,
) -> ReportResult:
    """Write the report of some runs.

    Args:
        runs: Run folders, at least one.
        out: The page; by default ``report.html`` in the run's folder, of several runs beside the first one's folder.
            The Markdown stands beside it.
        against: A run to show beside each of the others.
        plots: Folder for the charts as SVG and PNG; none by default.
        quotes: Show texts of dialogues also where their corpus may be for research use only.
        unwritten: Content of JSON files, by name, that the runs will have once their report is there.

    Raises:
        DataError: If a folder is no run folder or a file in it cannot be read.
        StorageError: If something cannot be written.
    """
    if not runs:
        raise ConfigError("no run", expected="at least one run folder")
    page = out or (runs[0] if len(runs) == 1 else runs[0].parent) / PAGE
    markdown = page.with_suffix(".md")
    if out is not None and out.is_dir():
        raise ConfigError(f"the folder {page} as the page", expected="a name that ends in .html")
    if page.suffix not in (".html", ".htm"):
        raise ConfigError(f"{page} as the page", expected="a name that ends in .html")
    opened = [open_run(path, quotes=quotes, unwritten=unwritten) for path in runs]
    other = None if against is None else open_run(against, quotes=quotes)
    report = build_report(opened, against=other)
    write_atomic(markdown, render_markdown(report))
    write_atomic(page, render_page(report))
    return ReportResult(page, markdown, _plots(report, plots))


def _plots(report: Report, folder: Path | None) -> tuple[Path, ...]:
    if folder is None:
        return ()
    from esckit.report.plots import write_plots

    return write_plots(report, folder)
