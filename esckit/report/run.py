"""``esckit report``: from run folders to one page, Markdown and plots; calls no model and changes no run.

Here stands which sections a run's report has, in reading order, and how several runs stand on one page: two side by
side, or one recipe under several seeds. What stands in the sections of one run is written by the modules beside this
one, as blocks (:mod:`esckit.report.blocks`). Everything is read from files of the runs: a report of a run needs
neither its models nor its data.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esckit.config.load import RECIPES
from esckit.errors import ConfigError, DataError
from esckit.records import write_atomic
from esckit.report.about import cost, failures, provenance, thoughts, what_was_run
from esckit.report.blocks import Block, Note, Part, Report, Section, Table
from esckit.report.evaluation import evaluation_sections
from esckit.report.metric_rows import short_name, suite_of, value_cells
from esckit.report.opening import in_short
from esckit.report.plays import search_sections, simulate_sections
from esckit.report.render import render_markdown, render_page
from esckit.report.source import Run, at, flattened, measured, number, open_run, plain, section, signed
from esckit.report.systems import Tested, systems
from esckit.report.training import summary_sections, training_sections
from esckit.runs import MANIFEST, differing_fields, read_manifest, without

if TYPE_CHECKING:
    from esckit.report.plots import PlotStyle

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
    tested: Tested | None = None,
    plot_style: PlotStyle | None = None,
) -> ReportResult:
    """Write the report of some runs.

    Args:
        runs: Run folders, at least one.
        out: The page; by default ``report.html`` in the run's folder, of several runs beside the first one's folder.
            The Markdown stands beside it.
        against: A run to show beside each of the others.
        plots: Folder for the charts as files; none by default.
        quotes: Show texts of dialogues also where their corpus may be for research use only.
        unwritten: Content of JSON files, by name, that the runs will have once their report is there.
        tested: Adds paired tests to the comparison of several evaluations.
        plot_style: Kind, size and font of the charts in ``plots``.

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
    report = build_report(opened, against=None if against is None else open_run(against, quotes=quotes), tested=tested)
    markdown = page.with_suffix(".md")
    write_atomic(markdown, render_markdown(report))
    write_atomic(page, render_page(report))
    if plots is None:
        return ReportResult(page, markdown, ())
    from esckit.report.plots import write_plots

    return ReportResult(page, markdown, write_plots(report, plots, plot_style))


def build_report(runs: Sequence[Run], *, against: Run | None = None, tested: Tested | None = None) -> Report:
    """Return the report of some runs.

    Args:
        runs: At least one.
        against: A run to show beside each of them.
        tested: Adds paired tests to the comparison of several evaluations.

    Raises:
        DataError: If a file of a run is not what its command writes.
    """
    names = ", ".join(run.name for run in runs)
    try:
        parts = [_part(run, against) for run in runs]
        if against is not None:
            parts += [side_by_side(run, against) for run in runs]
        over_seeds = across_seeds(runs)
        if over_seeds:
            parts += over_seeds
        elif together := systems(runs, tested):
            # What is compared comes first; what only one system has is opened by who wants it.
            parts = together + [replace(part, folded=True) for part in parts]
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
        *(in_short(run) if run.command == "evaluate" else ()),
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


# ---------------------------------------------------------------- several runs


_MOST_FIELDS = 40


def side_by_side(run: Run, other: Run) -> Part:
    """Return two runs beside each other: what differs in the recipes, and every number of both."""
    blocks = _metrics(run, other) if run.metric_rows and other.metric_rows else _summaries(run, other)
    return Part(
        f"{run.name} beside {other.name}",
        "side by side",
        "",
        (Section("What differs", tuple(_differences(run, other))), Section("Numbers", tuple(blocks))),
    )


def _differences(run: Run, other: Run) -> list[Block]:
    fields = differing_fields(run.recipe, other.recipe)
    if not fields:
        return [Note("The recipes are equal.", "good")]
    rows = tuple(
        (field, plain(at(run.recipe, field)), plain(at(other.recipe, field))) for field in fields[:_MOST_FIELDS]
    )
    note = "" if len(fields) <= _MOST_FIELDS else f"The first {_MOST_FIELDS} of {len(fields)} fields."
    return [Table(("field of the recipe", run.name, other.name), rows, note=note)]


def _identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a run without what changes no result."""
    recipe, command = section(manifest, "recipe"), manifest.get("command")
    return without(recipe, RECIPES.resolve(command).OPERATIONAL) if command in RECIPES.targets else dict(recipe)


def _seeds_at(run: Run, field: str) -> tuple[Any, str | None]:
    """Return the seed that a field of the recipe stands for, and all else that it says, None for any other field.

    Such a field is the seed itself, or a checkpoint: its run has a recipe with a seed.
    """
    if field == "seed":
        return run.recipe.get("seed"), ""
    folder = Path(plain(at(run.recipe, field)))
    if not field.endswith(".checkpoint") or not (folder / MANIFEST).is_file():
        return None, None
    recipe = _identity(read_manifest(folder))
    return recipe.pop("seed", None), json.dumps(recipe, sort_keys=True)


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row.get("name")), json.dumps(row.get("group"), sort_keys=True)


def _metrics(run: Run, other: Run) -> list[Block]:
    theirs = {_key(row): row for row in other.metric_rows}
    blocks: list[Block] = []
    pairs = [(row, theirs[_key(row)]) for row in run.metric_rows if _key(row) in theirs and not row.get("group")]
    for suite in dict.fromkeys(suite_of(row) for row, _ in pairs):
        rows = []
        for a, b in (pair for pair in pairs if suite_of(pair[0]) == suite):
            difference = None if None in (a.get("value"), b.get("value")) else float(a["value"]) - float(b["value"])
            cells = (*value_cells(a), *value_cells(b), signed(difference, str(a.get("unit"))))
            rows.append((short_name(a), *cells))
        columns = ("metric", run.name, "interval", "n", other.name, "interval", "n", "difference")
        blocks.append(Table(columns, tuple(rows), title=suite))
    note = "Values side by side, without a test. A comparison case by case, with p, is what evaluate --against makes."
    return [*blocks, Note(note)]


def _summaries(run: Run, other: Run) -> list[Block]:
    ours, theirs = flattened(run.json("summary.json")), flattened(other.json("summary.json"))
    names = [name for name in ours if name in theirs]
    if not names:
        return [Note("The two runs have no numbers in common.", "warning")]
    rows = tuple(
        (name.replace("_", " "), number(ours[name]), number(theirs[name]), signed(ours[name] - theirs[name], "none"))
        for name in names
    )
    return [Table(("what", run.name, other.name, "difference"), rows)]


def across_seeds(runs: Sequence[Run]) -> list[Part]:
    """Return mean and standard deviation over seeds: of one evaluation, or of models trained from one recipe."""
    if len(runs) < 2 or not all(run.metric_rows for run in runs):
        return []
    recipes = [_identity(run.manifest) for run in runs]
    fields = {field for recipe in recipes[1:] for field in differing_fields(recipes[0], recipe)}
    seeds = {tuple(_seeds_at(run, field)[0] for field in sorted(fields)) for run in runs}
    bases = {tuple(_seeds_at(run, field)[1] for field in sorted(fields)) for run in runs}
    if len(seeds) != len(runs) or len(bases) != 1 or None in bases.pop():
        return []
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        for row in run.metric_rows:
            if not row.get("group") and row.get("value") is not None:
                by_name.setdefault(str(row["name"]), []).append(row)
    table = []
    for name, rows in by_name.items():
        values, unit = [float(row["value"]) for row in rows], str(rows[0].get("unit"))
        spread = measured(statistics.stdev(values), unit) if len(values) > 1 else number(None)
        table.append((name, measured(statistics.fmean(values), unit), spread, number(len(values))))
    block = Table(("metric", "mean", "standard deviation", "n seeds"), tuple(table))
    return [
        Part("Across seeds", f"{len(runs)} runs under different seeds", "", (Section("Mean over seeds", (block,)),))
    ]
