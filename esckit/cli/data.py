"""``esckit data``: look at a corpus, convert it, split it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from esckit.cli.common import JsonOption, echo, echo_json

if TYPE_CHECKING:
    from esckit.config.data import Side
    from esckit.data.conversion import Access, Written
    from esckit.sft.recipe import ReplySource


app = typer.Typer(
    name="data", help="Look at a corpus, convert it, split it.", no_args_is_help=True, add_completion=False
)


Format = Literal["auto", "esconv", "esconv-hub", "ppdpp", "multiesc", "extes", "jsonl", "messages", "sharegpt", "table"]

Target = Literal["esckit", "jsonl", "messages", "sharegpt", "esconv-hub", "prompt-completion"]

Unknown = Literal["refuse", "keep"]


PathArgument = Annotated[
    str, typer.Argument(metavar="PATH", help=r"File, folder, sample:NAME or hub:OWNER/NAME\[@REVISION].")
]

FormatOption = Annotated[Format, typer.Option("--format", help="Layout of the records.")]

RoleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--role", metavar="NAME=SIDE", help="A speaker's name is the seeker, supporter, situation, or one to ignore."
    ),
]

ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column", metavar="WHAT=NAME", help="Column or key of dialogue, speaker, text, strategy, situation …"
    ),
]

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
    as_json: JsonOption = False,
    merge: Annotated[bool, typer.Option("--merge", help="Count turns with runs of one speaker joined.")] = False,
    limit_problems: Annotated[int, typer.Option(min=0, help="Refusals to show in full.")] = 20,
    format_: FormatOption = "auto",
    role: RoleOption = None,
    column: ColumnOption = None,
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

    access = Access(
        path, format_, taxonomy, skip_invalid, unknown_strategy, strict, _roles(role or ()), _columns(column or ())
    )
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
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help=r"File, folder, sample:NAME, hub:OWNER/NAME\[@REVISION], or a run of simulate or search.",
        ),
    ],
    to: Annotated[
        Target,
        typer.Option("--to", help="Layout to write; jsonl is esckit, prompt-completion has one reply a line, for SFT."),
    ],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    mapping: Annotated[
        str | None, typer.Option("--map", metavar="NAME|FILE", help="Map the strategies into another taxonomy.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Join runs of one speaker.")] = False,
    min_score: Annotated[
        str | None,
        typer.Option(
            metavar="X",
            help="Of a run: futures with a reward above X, paths of at least the value X.",
            show_default="futures that reached the goal, all paths",
        ),
    ] = None,
    reasoning: Annotated[
        bool, typer.Option("--reasoning", help="Of replies: write the reasoning before each, in <think>.")
    ] = False,
    strategy: Annotated[
        Literal["none", "tag", "prompt"],
        typer.Option("--strategy", help="Of replies: name the strategy in <think> (tag), or in the prompt."),
    ] = "none",
    prompt: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Of replies: supporter's prompt, as system message.")
    ] = None,
    force: ForceOption = False,
    format_: FormatOption = "auto",
    role: RoleOption = None,
    column: ColumnOption = None,
    taxonomy: TaxonomyOption = None,
    skip_invalid: SkipOption = False,
    unknown_strategy: UnknownOption = "refuse",
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a corpus in another layout, or the replies of a run as SFT data.

    Says what was normalised, and what that layout cannot hold. The replies of a run are those that train-sft learns.
    """
    from esckit.data.conversion import Access, convert_corpus
    from esckit.errors import ConfigError
    from esckit.runs import MANIFEST
    from esckit.sft.lines import write_replies

    access = Access(
        path, format_, taxonomy, skip_invalid, unknown_strategy, strict, _roles(role or ()), _columns(column or ())
    )
    is_run = (Path(path) / MANIFEST).is_file()
    if is_run or to == "prompt-completion":
        if to not in ("prompt-completion", "messages", "sharegpt"):
            raise ConfigError(f"--to {to} for replies of a run", expected="prompt-completion, messages or sharegpt")
        source = _reply_source(
            access, mapping, min_score, {"reasoning": reasoning, "strategy": strategy}, is_run=is_run
        )
        written = write_replies(source, out, to=to, prompt=prompt, force=force)
    elif reasoning or strategy != "none" or prompt or min_score:
        raise ConfigError(
            "--min-score, --reasoning, --strategy or --prompt for whole dialogues",
            expected="a run folder of simulate or search",
            hint="For the replies of a corpus use --to prompt-completion",
        )
    else:
        written = convert_corpus(access, out, to=to, mapping=mapping, merge=merge, force=force)
    _echo_written(written, out, quiet=ctx.obj.quiet, as_json=as_json)


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
    role: RoleOption = None,
    column: ColumnOption = None,
    taxonomy: TaxonomyOption = None,
    skip_invalid: SkipOption = False,
    unknown_strategy: UnknownOption = "refuse",
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a corpus as train, valid and test files, with split.json about them."""
    from esckit.data.conversion import Access, split_corpus

    try:
        shares = tuple(float(part) for part in ratios.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{ratios!r} is not three numbers", param_hint="--ratios") from error
    access = Access(
        path, format_, taxonomy, skip_invalid, unknown_strategy, strict, _roles(role or ()), _columns(column or ())
    )
    written = split_corpus(access, out, scheme=scheme, ratios=shares, seed=seed, force=force)
    _echo_written(written, out, quiet=ctx.obj.quiet, as_json=as_json)


def _reply_source(
    access: Access, mapping: str | None, min_score: str | None, form: dict[str, Any], *, is_run: bool
) -> ReplySource:
    """Return which replies of a corpus or of a run are written, in the words of the train-sft recipe."""
    from pydantic import ValidationError

    from esckit.documents import complaint, dotted
    from esckit.errors import ConfigError
    from esckit.runs import read_manifest
    from esckit.sft.recipe import ReplySource

    if min_score is not None and not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", min_score):
        raise typer.BadParameter(f"{min_score!r} is no decimal number", param_hint="--min-score")
    given: dict[str, Any] = {"seed": 0, "form": form, "dev": {"share": 0.0}}
    if is_run:
        command = read_manifest(Path(access.path))["command"]
        if access != type(access)(access.path) or mapping:
            raise ConfigError(
                "options of a corpus for a run", expected="--min-score, --reasoning, --strategy or --prompt"
            )
        given["inputs"] = (access.path,)
        if command == "simulate":
            keep = {"rule": "goal"} if min_score is None else {"rule": "threshold", "delta": min_score}
            given |= {"source": "futures", "futures": {"keep": keep}}
        elif command == "search":
            given |= {"source": "trees", "trees": {"min_value": min_score}}
        else:
            raise ConfigError(
                f"{access.path} is a run of {command}", expected="a run of simulate or search, or a corpus"
            )
    else:
        if min_score is not None or access.strict:
            raise ConfigError(
                f"{'--strict' if access.strict else '--min-score'} for the replies of a corpus",
                expected="--min-score with runs of simulate or search; data inspect --strict for a corpus",
            )
        given |= {"source": "corpus", "taxonomy": access.taxonomy, "data": access.section(mapping)}
    try:
        return ReplySource.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{dotted(first['loc'])}: {complaint(first)}") from error


def _pairs(given: Iterable[str], option: str, form: str, *, last: bool = False) -> dict[str, str]:
    """Return the pairs of an option that may be repeated; the name in ``NAME=SIDE`` may hold ``=`` itself."""
    found: dict[str, str] = {}
    for word in given:
        left, equals, right = word.rpartition("=") if last else word.partition("=")
        if not (equals and left.strip() and right.strip()):
            raise typer.BadParameter(f"{word!r} is not {form}", param_hint=option)
        if found.setdefault(left.strip(), right.strip()) != right.strip():
            raise typer.BadParameter(f"{left.strip()!r} is given twice", param_hint=option)
    return found


def _roles(given: Iterable[str]) -> dict[str, Side]:
    from esckit.config.data import Side

    found: dict[str, Side] = {}
    for word, named in _pairs(given, "--role", "NAME=SIDE", last=True).items():
        side = next((side for side in get_args(Side) if side == named), None)
        if side is None:
            raise typer.BadParameter(f"{named!r} is not one of {', '.join(get_args(Side))}", param_hint="--role")
        found[word] = side
    return found


def _columns(given: Iterable[str]) -> dict[str, str]:
    return _pairs(given, "--column", "WHAT=NAME")


def _echo_written(written: Written, out: Path, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        echo_json({"out": str(out), "summary": written.summary, "warnings": written.warnings, "notes": written.notes})
        return
    if not quiet:
        lines = [*(f"note: {note}" for note in written.notes), *(f"warning: {warning}" for warning in written.warnings)]
        for line in lines:
            echo(line, err=True)
    echo(written.summary)
