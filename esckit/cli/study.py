"""``esckit study``: a blind study with people, from evaluations to results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from esckit.cli.common import JsonOption, NamedRunsArgument, echo, echo_facts
from esckit.cli.table import named_evaluations
from esckit.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Ask people which answers are better, without telling them who wrote what, and read their sheets.",
)


@app.command()
def make(
    runs: NamedRunsArgument,
    out: Annotated[Path, typer.Option(metavar="FOLDER", show_default=False, help="New folder of the study.")],
    kind: Annotated[
        Literal["ab", "rating"], typer.Option(help="Two answers side by side, or one answer to rate from 1 to 5.")
    ] = "ab",
    items: Annotated[
        int, typer.Option(min=1, help="Cases: each is a question for every pair of systems, or for every system.")
    ] = 50,
    raters: Annotated[int, typer.Option(min=1, max=1000, help="Raters; each answers all questions.")] = 3,
    checks: Annotated[int, typer.Option(min=0, help="Attention checks for each rater.")] = 3,
    dimensions: Annotated[
        str, typer.Option(metavar="NAMES", help="What is asked of each question, with commas between.")
    ] = "fluency,identification,comfort,suggestion,overall",
    suite: Annotated[
        Literal["response", "pairwise", "dialogue"] | None,
        typer.Option(show_default=False, help="Whose cases are shown; by default the first that all runs have."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the cases, the order and the sides.")] = 1,
    quotes: Annotated[
        bool, typer.Option("--quotes", help="Show texts also where the corpus may be for research use only.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make sheets for raters: the same cases of several systems, in random order, with sides balanced.

    Every rater gets a sheet as CSV and the same as an HTML form that needs no network; one of the two is filled in.
    Nothing on them tells which system wrote what: that stands in key.json, which stays with you.

    Try it: esckit study make ours=runs/evaluate-aflow base=runs/evaluate-base --items 30 --out studies/first
    """
    from esckit.evaluate.paired import require_alike
    from esckit.study.cases import shared_suite
    from esckit.study.make import StudyPlan, known_dimensions, make_study

    found = named_evaluations(runs, quotes=quotes)
    asked = known_dimensions(dimensions)
    chosen = suite or shared_suite(found)
    require_alike(found, [f"{chosen}."], hint="People can only compare systems that met the same cases")
    plan = StudyPlan(kind, items, raters, checks, asked, chosen, seed)
    echo_facts(make_study(found, plan, out), as_json=as_json)


@app.command()
def read(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False, help="Folder of the study.")],
    sheets: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SHEET]...", show_default=False, help="CSV files of raters; by default all in FOLDER/answers."
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Take what is there, where raters or answers are missing.")
    ] = False,
    max_failed: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", show_default=False, help="Leave out raters who failed more than N attention checks."
        ),
    ] = None,
    form: Annotated[
        Literal["md", "latex", "json"] | None, typer.Option("--to", help="How to print the tables.", show_default="md")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read filled-in sheets: win rates or mean ratings with intervals and tests, agreement, the judge beside people.

    Sheets that are half filled in, come twice, or hold unknown ids are refused; the message names all of it.

    Try it: esckit study read studies/first
    """
    from esckit.records import dump_json
    from esckit.report.grid import latex, markdown
    from esckit.study.key import read_key
    from esckit.study.results import study_results
    from esckit.study.sheets import read_answers
    from esckit.study.tables import study_data, study_grids

    if as_json and form not in (None, "json"):
        raise ConfigError(f"--json with --to {form}", expected="one of them")
    key = read_key(folder)
    found = study_results(key, read_answers(key, folder, sheets or (), partial=partial), max_failed=max_failed)
    if as_json or form == "json":
        echo(dump_json(study_data(found), indent=2))
    else:
        echo("\n".join(map(latex if form == "latex" else markdown, study_grids(found))), nl=False)
