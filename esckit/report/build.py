"""From run folders to a report."""

from __future__ import annotations

from collections.abc import Sequence

from esckit.report.about import cost, failures, provenance, what_was_run
from esckit.report.blocks import Part, Report, Section
from esckit.report.compare import across_seeds, side_by_side
from esckit.report.evaluation import evaluation_sections
from esckit.report.references import Reference
from esckit.report.search import search_sections
from esckit.report.simulate import simulate_sections
from esckit.report.source import Run
from esckit.report.training import training_sections


def build_report(runs: Sequence[Run], *, against: Run | None = None, references: Sequence[Reference] = ()) -> Report:
    """Return the report of some runs.

    Args:
        runs: At least one.
        against: A run to show beside each of them.
        references: Published tables; those that a run's ``metrics.json`` asks for are shown.
    """
    parts = [_part(run, against, references) for run in runs]
    if against is not None:
        parts += [side_by_side(run, against) for run in runs]
    parts += across_seeds(runs)
    names = ", ".join(run.name for run in runs)
    return Report(f"{names} · esckit" if against is None else f"{names} beside {against.name} · esckit", tuple(parts))


def _part(run: Run, against: Run | None, references: Sequence[Reference]) -> Part:
    sections = (
        what_was_run(run),
        *_results(run, against, references),
        *failures(run),
        *cost(run),
        provenance(run),
    )
    return Part(run.name, run.command, str(run.manifest.get("status", "")), sections)


def _results(run: Run, against: Run | None, references: Sequence[Reference]) -> list[Section]:
    other = against if against is not None and against.command == run.command else None
    if run.command == "simulate":
        return simulate_sections(run, other)
    if run.command == "search":
        return search_sections(run)
    if run.command == "evaluate":
        return evaluation_sections(run, other, references)
    return training_sections(run)
