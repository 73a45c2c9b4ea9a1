"""``esckit report``: from run folders to one page, Markdown and plots; calls no model and changes no run.

Here stands which sections a run's report has, in reading order; what stands in them is written by the modules beside
this one, as blocks (:mod:`esckit.report.blocks`). Everything is read from files of the runs: a report of a run needs
neither its models nor its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esckit.errors import ConfigError, DataError
from esckit.records import write_atomic
from esckit.report.about import cost, failures, provenance, thoughts, what_was_run
from esckit.report.blocks import Part, Report, Section
from esckit.report.compare import across_seeds, side_by_side
from esckit.report.evaluation import evaluation_sections
from esckit.report.plays import search_sections, simulate_sections
from esckit.report.render import render_markdown, render_page
from esckit.report.source import Run, open_run
from esckit.report.training import summary_sections, training_sections

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
        DataError: If a folder is not a run folder or a file in it cannot be read.
        StorageError: If something cannot be written.
    """
    if not runs:
        raise ConfigError("no run", expected="at least one run folder")
    page = out or (runs[0] if len(runs) == 1 else runs[0].parent) / PAGE
    if (out is not None and out.is_dir()) or page.suffix not in (".html", ".htm"):
        what = f"the folder {page}" if page.is_dir() else str(page)
        raise ConfigError(f"{what} as the page", expected="a name that ends in .html")
    opened = [open_run(path, quotes=quotes, unwritten=unwritten) for path in runs]
    report = build_report(opened, against=None if against is None else open_run(against, quotes=quotes))
    markdown = page.with_suffix(".md")
    write_atomic(markdown, render_markdown(report))
    write_atomic(page, render_page(report))
    if plots is None:
        return ReportResult(page, markdown, ())
    from esckit.report.charts import write_plots

    return ReportResult(page, markdown, write_plots(report, plots))


def build_report(runs: Sequence[Run], *, against: Run | None = None) -> Report:
    """Return the report of some runs.

    Args:
        runs: At least one.
        against: A run to show beside each of them.

    Raises:
        DataError: If a file of a run is not what its command writes.
    """
    names = ", ".join(run.name for run in runs)
    try:
        parts = [_part(run, against) for run in runs]
        if against is not None:
            parts += [side_by_side(run, against) for run in runs]
        parts += across_seeds(runs)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        # Files in run folders may have been changed, or cut, by anybody.
        raise DataError(
            f"a value that cannot be shown ({type(error).__name__}: {error})",
            path=names,
            expected="files as the run's command wrote them",
            hint="With -v the traceback is shown",
        ) from error
    return Report(f"{names} · esckit" if against is None else f"{names} beside {against.name} · esckit", tuple(parts))


def _part(run: Run, against: Run | None) -> Part:
    sections = (
        what_was_run(run),
        *_results(run, against if against is not None and against.command == run.command else None),
        *thoughts(run),
        *failures(run),
        *cost(run),
        provenance(run),
    )
    return Part(run.name, run.command, str(run.manifest.get("status", "")), sections)


def _results(run: Run, other: Run | None) -> list[Section]:
    if run.command == "simulate":
        return simulate_sections(run, other)
    if run.command == "search":
        return search_sections(run)
    if run.command == "evaluate":
        return evaluation_sections(run, other)
    return training_sections(run) if run.command.startswith("train") else summary_sections(run)
