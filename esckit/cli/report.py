"""``esckit report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esckit.cli.common import JsonOption, echo_facts


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", show_default=False, help="Run folders.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="The page; by default report.html in the run's folder, of several runs beside the first one's folder.",
        ),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", show_default=False, help="A run to show side by side with the others.")
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", show_default=False, help="Also write every chart there, as SVG and PNG."),
    ] = None,
    quotes: Annotated[
        bool,
        typer.Option("--quotes", help="Show dialogue texts also where the corpus may be for research use only."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a page of any run: what was run, its numbers, and its dialogues, trees or futures to walk through.

    The page is one HTML file that needs no network; the same tables stand beside it as Markdown. Calls no model.

    Try it: esckit report runs/simulate-smoke
    """
    from esckit.report.run import write_report

    result = write_report(runs, out=out, against=against, plots=plots, quotes=quotes)
    facts = {"page": str(result.page), "markdown": str(result.markdown)}
    if plots is not None:
        facts["plots"] = f"{len(result.plots)} files in {plots}"
    echo_facts(facts, as_json=as_json)
