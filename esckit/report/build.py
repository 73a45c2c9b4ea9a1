"""From run folders to a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from esckit.errors import DataError
from esckit.report.about import cost, failures, provenance, what_was_run
from esckit.report.blocks import Part, Report, Section
from esckit.report.compare import across_seeds, side_by_side
from esckit.report.evaluation import evaluation_sections
from esckit.report.explorers import thoughts
from esckit.report.plays import search_sections, simulate_sections
from esckit.report.source import Run
from esckit.report.training import summary_sections, training_sections


def build_report(runs: Sequence[Run], *, against: Run | None = None) -> Report:
    """Return the report of some runs.

    Args:
        runs: At least one.
        against: A run to show beside each of them.

    Raises:
        DataError: If a file of a run is not what its command writes.
    """
    names = ", ".join(run.name for run in runs)
    with _as_written(names):
        parts = [_part(run, against) for run in runs]
        if against is not None:
            parts += [side_by_side(run, against) for run in runs]
        parts += across_seeds(runs)
    return Report(f"{names} · esckit" if against is None else f"{names} beside {against.name} · esckit", tuple(parts))


@contextmanager
def _as_written(names: str) -> Iterator[None]:
    """Say of which runs a value cannot be shown: files in their folders may have been changed, or cut, by anybody."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DataError(
            f"a value that cannot be shown ({type(error).__name__}: {error})",
            path=names,
            expected="files as the run's command wrote them",
            hint="With -v the traceback is shown",
        ) from error


def _part(run: Run, against: Run | None) -> Part:
    sections = (
        what_was_run(run),
        *_results(run, against),
        *thoughts(run),
        *failures(run),
        *cost(run),
        provenance(run),
    )
    return Part(run.name, run.command, str(run.manifest.get("status", "")), sections)


def _results(run: Run, against: Run | None) -> list[Section]:
    other = against if against is not None and against.command == run.command else None
    if run.command == "simulate":
        return simulate_sections(run, other)
    if run.command == "search":
        return search_sections(run)
    if run.command == "evaluate":
        return evaluation_sections(run, other)
    return training_sections(run) if run.command.startswith("train") else summary_sections(run)
