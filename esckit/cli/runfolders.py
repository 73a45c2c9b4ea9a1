"""``esckit runs``: the run folders that are there, listed, looked at, compared and removed.

Not here: how they are found and read (:mod:`esckit.archive`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from esckit.cli.common import JsonOption, echo, echo_facts, echo_json, printable, run_names
from esckit.cli.forecast import duration, echo_table, number, readable_size
from esckit.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="List, show, compare and remove run folders.",
    pretty_exceptions_enable=False,
)

_RUNS = Path("runs")

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", show_default=False, autocompletion=run_names, help="A run folder.")
]

AmongOption = Annotated[
    Path | None,
    typer.Option(
        "--among",
        metavar="FOLDER",
        show_default=False,
        help="Where runs that read this one are looked for; by default in runs/ and beside the run.",
    ),
]


@app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to look.")] = _RUNS,
    as_json: JsonOption = False,
) -> None:
    """List the run folders in and below a folder: command, recipe, status, begin, time, cost, size, and what they read.

    "–" is what is not known. A run that nobody writes any more, though it did not end, is "killed".

    Try it: esckit runs list
    """
    from esckit.archive import entry, run_folders

    found = [entry(path) for path in run_folders(folder)]
    if as_json:
        echo_json([each.facts() for each in found])
        return
    if not found:
        echo(f"no run folders in {folder}")
        return
    head = ("run", "command", "recipe", "status", "begun", "time", "cost", "size", "reads")
    rows = [
        (
            str(each.path),
            each.command or "–",
            each.recipe or "–",
            _told(each.status, each.reason),
            (each.created or "–")[:16].replace("T", " "),
            "–" if each.seconds is None else duration(each.seconds),
            number(each.cost),
            readable_size(each.n_bytes),
            ", ".join(each.inputs) or "–",
        )
        for each in found
    ]
    echo_table(head, rows, left=(0, 1, 2, 3, 4, 8))
    for each in found:
        if each.trouble is not None:
            echo(f"broken: {each.trouble}", err=True)


def _told(status: str, reason: str | None) -> str:
    return status if reason is None else f"{status} ({reason})"


@app.command("show")
def show_run(run: RunArgument, among: AmongOption = None, as_json: JsonOption = False) -> None:
    """Show a run: how it stands, its attempts, what it reads and whether that is unchanged, and who reads it.

    An input is "changed" if anything was written to it after the run began.
    """
    from esckit.archive import entry, inputs_of, readers
    from esckit.lineage import read_run
    from esckit.runs import attempts_of

    manifest = read_run(run)
    each = entry(run)
    reads = inputs_of(manifest)
    read_by = [str(path) for path in readers(run, _among(run, among))]
    attempts = attempts_of(manifest)
    if as_json:
        lineage = {"inputs": [one._asdict() for one in reads], "readers": read_by}
        echo_json({**each.facts(), **lineage, "attempts": attempts, "manifest": manifest})
        return
    facts: dict[str, Any] = {
        "run": str(run),
        "command": each.command,
        "recipe": each.recipe,
        "recipe digest": manifest["recipe_digest"],
        "status": _told(each.status, each.reason),
        "begun": each.created,
        "time": None if each.seconds is None else duration(each.seconds),
        "cost": each.cost,
        "calls": (manifest.get("spent") or {}).get("calls"),
        "size": readable_size(each.n_bytes),
        "determinism": manifest.get("determinism"),
        "versions": manifest.get("versions"),
    }
    echo_facts(facts, as_json=False)
    echo("\nattempts")
    for attempt in attempts:
        ending = _told(attempt["status"], attempt.get("reason"))
        echo(f"  {attempt.get('began') or '–'} to {attempt.get('ended') or '–'}  {ending}")
    echo("\nreads" if reads else "\nreads no other run")
    for one in reads:
        echo(f"  {one.field}: {one.path}  {one.state}")
    echo("\nread by" if read_by else "\nread by no other run")
    for path in read_by:
        echo(f"  {path}")


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", show_default=False, autocompletion=run_names, help="A run folder.")],
    b: Annotated[
        Path,
        typer.Argument(
            metavar="B", show_default=False, autocompletion=run_names, help="Another one of the same command."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Compare two runs: fields of their recipes, what they read, and versions where they differ; numbers side by side.

    Nothing is tested here: `esckit evaluate --against` compares case by case.
    """
    from esckit.archive import differences, input_identities
    from esckit.lineage import read_run
    from esckit.report.numbers import facts_of, first_numbers, text_of
    from esckit.report.source import open_run

    manifests = read_run(a), read_run(b)
    if manifests[0]["command"] != manifests[1]["command"]:
        commands = " and ".join(str(manifest["command"]) for manifest in manifests)
        raise ConfigError(f"runs of {commands}", expected="two runs of one command")
    fields, versions = (
        differences(*(manifest.get(part) or {} for manifest in manifests)) for part in ("recipe", "versions")
    )
    first, second = (first_numbers(open_run(run)) for run in (a, b))
    inputs = differences(*map(input_identities, manifests))
    shown: Callable[[Mapping[str, Any] | None], Any] = facts_of if as_json else text_of
    numbers = {name: (shown(first.get(name)), shown(second.get(name))) for name in {**first, **second}}
    if as_json:
        parts = {"recipe": fields, "inputs": inputs, "versions": versions, "numbers": numbers}
        pairs = {part: {name: list(pair) for name, pair in found.items()} for part, found in parts.items()}
        echo_json({"a": str(a), "b": str(b), **pairs})
        return
    for title, found in (("recipe", fields), ("input", inputs), ("version", versions), ("number", numbers)):
        if found:
            rows = [
                (name, *(value if isinstance(value, str) else _plain(value) for value in pair))
                for name, pair in found.items()
            ]
            echo_table((title, str(a), str(b)), rows, left=(0, 1, 2))
        else:
            echo(f"{title}s: the same" if title != "number" else "no numbers yet")
        echo("")


def _plain(value: Any) -> str:
    from esckit.report.source import plain

    return plain(value)


@app.command("rm")
def remove_runs(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", show_default=False, autocompletion=run_names, help="Run folders.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also what other runs read, and what has a manifest that cannot be read.")
    ] = False,
    among: AmongOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove run folders, and nothing else: what is in use or a link is refused, and what other runs read.

    The folder of a pipeline stands for all runs in it. On a terminal it asks first; elsewhere it takes --yes.
    """
    from esckit.archive import readers, remove, remove_pipeline, require_removable, run_folders, size
    from esckit.runs import PIPELINE

    pipelines = [run for run in runs if not run.is_symlink() and (run / PIPELINE).is_file()]
    named = dict.fromkeys(each for run in runs for each in (run_folders(run) if run in pipelines else [run]))
    runs = list(named)
    leaving = {run.resolve() for run in runs}
    for run in runs:
        require_removable(run, force=force)
        still = [path for path in readers(run, _among(run, among)) if path.resolve() not in leaving]
        if still and not force:
            raise ConfigError(
                f"{run} is read by {', '.join(map(str, still))}",
                hint="Remove these as well, or add --force: they keep their results, and their origin is lost",
            )
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("nothing was removed: there is no terminal to ask on", hint="Add --yes")
        n_bytes = sum(size(run) for run in runs)
        named_runs = ", ".join(map(str, [*runs, *pipelines]))
        if not typer.confirm(printable(f"Remove {named_runs} ({readable_size(n_bytes)})?")):
            echo("nothing was removed", err=True)
            raise typer.Exit(1)
    done = []
    for run in runs:
        remove(run)
        done.append({"folder": str(run), "left": False})
    for folder in pipelines:
        remove_pipeline(folder)
        done.append({"folder": str(folder), "left": folder.exists()})
    if as_json:
        echo_json(done)
        return
    for each in done:
        echo(f"removed {each['folder']}" + (", but for files that are not esckit's" if each["left"] else ""))


def _among(run: Path, among: Path | None) -> list[Path]:
    """Return the run folders that may read a run."""
    from esckit.archive import run_folders

    places = [among] if among is not None else [each for each in (run.absolute().parent, _RUNS) if each.is_dir()]
    return list({path.resolve(): path for place in places for path in run_folders(place)}.values())
