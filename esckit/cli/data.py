"""``esckit data``: look at a corpus, convert it, split it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from esckit.cli.common import echo, echo_json

if TYPE_CHECKING:
    from esckit.data.conversion import Written


app = typer.Typer(
    name="data", help="Look at a corpus, convert it, split it.", no_args_is_help=True, add_completion=False
)


Format = Literal["auto", "esconv", "esconv-hub", "ppdpp", "extes", "jsonl"]

Unknown = Literal["refuse", "keep"]


PathArgument = Annotated[
    str, typer.Argument(metavar="PATH", help=r"File, folder, sample:NAME or hub:OWNER/NAME\[@REVISION].")
]

FormatOption = Annotated[Format, typer.Option("--format", help="Layout of the records.")]

TaxonomyOption = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="Taxonomy of the strategy labels.", show_default="the corpus's own"),
]

SkipOption = Annotated[bool, typer.Option("--skip-invalid", help="Skip and count records that are refused.")]

UnknownOption = Annotated[
    Unknown, typer.Option("--unknown-strategy", help="Refuse a record with an unknown label, or keep it unlabelled.")
]

StrictOption = Annotated[bool, typer.Option("--strict", help="Take every warning for an error.")]

ForceOption = Annotated[bool, typer.Option("--force", help="Write over what is there.")]


@app.command()
def inspect(
    path: PathArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Count turns with runs of one speaker joined.")] = False,
    limit_problems: Annotated[int, typer.Option(min=0, help="Refusals to show in full.")] = 20,
    format_: FormatOption = "auto",
    taxonomy: TaxonomyOption = None,
    skip_invalid: SkipOption = False,
    unknown_strategy: UnknownOption = "refuse",
    strict: StrictOption = False,
) -> None:
    """Count what a corpus holds and list what is odd about it; changes nothing.

    Reads on after refused records. Exits with 1 if some record would be refused, or, with --strict, if there is any
    warning.
    """
    from esckit.data.conversion import Access, inspect_corpus
    from esckit.data.inspection import render, totals

    access = Access(path, format_, taxonomy, skip_invalid, unknown_strategy, strict)
    report = inspect_corpus(access, merge=merge, limit_problems=limit_problems)
    if as_json:
        echo_json(report, indent=None)
    else:
        echo(render(report))
    n_refused, n_warnings = totals(report)
    if n_refused or (strict and n_warnings):
        echo(f"{n_refused:,} records refused, {n_warnings:,} warnings", err=True)
        raise typer.Exit(1)


@app.command()
def convert(
    ctx: typer.Context,
    path: PathArgument,
    to: Annotated[Literal["jsonl", "esconv-hub"], typer.Option("--to", help="Layout to write.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    mapping: Annotated[
        str | None, typer.Option("--map", metavar="NAME|FILE", help="Map the strategies into another taxonomy.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Join runs of one speaker.")] = False,
    force: ForceOption = False,
    format_: FormatOption = "auto",
    taxonomy: TaxonomyOption = None,
    skip_invalid: SkipOption = False,
    unknown_strategy: UnknownOption = "refuse",
    strict: StrictOption = False,
) -> None:
    """Write a corpus in another layout; say what was normalised, and what that layout cannot hold."""
    from esckit.data.conversion import Access, convert_corpus

    access = Access(path, format_, taxonomy, skip_invalid, unknown_strategy, strict)
    written = convert_corpus(access, out, to=to, mapping=mapping, merge=merge, force=force)
    _echo_written(written, quiet=ctx.obj.quiet)


@app.command()
def split(
    ctx: typer.Context,
    path: PathArgument,
    scheme: Annotated[
        Literal["hub", "ppdpp", "ratio", "files"],
        typer.Option("--scheme", help="hub and ppdpp are the published cuts of ESConv."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    ratios: Annotated[str, typer.Option(metavar="R,R,R", help="Of ratio: train, valid, test.")] = "0.8,0.1,0.1",
    seed: Annotated[int, typer.Option(min=0, help="Of ratio.")] = 13,
    force: ForceOption = False,
    format_: FormatOption = "auto",
    taxonomy: TaxonomyOption = None,
    skip_invalid: SkipOption = False,
    unknown_strategy: UnknownOption = "refuse",
    strict: StrictOption = False,
) -> None:
    """Write a corpus as train, valid and test files, with split.json about them."""
    from esckit.data.conversion import Access, split_corpus

    try:
        shares = tuple(float(part) for part in ratios.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{ratios!r} is not three numbers", param_hint="--ratios") from error
    access = Access(path, format_, taxonomy, skip_invalid, unknown_strategy, strict)
    written = split_corpus(access, out, scheme=scheme, ratios=shares, seed=seed, force=force)
    _echo_written(written, quiet=ctx.obj.quiet)


def _echo_written(written: Written, *, quiet: bool) -> None:
    if not quiet:
        lines = [*(f"note: {note}" for note in written.notes), *(f"warning: {warning}" for warning in written.warnings)]
        for line in lines:
            echo(line, err=True)
    echo(written.summary)
