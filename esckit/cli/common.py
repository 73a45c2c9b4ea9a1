"""Arguments and options that several commands share."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esckit.cli.logs import echo

if TYPE_CHECKING:
    from esckit.config.load import LoadedRecipe


def recipe_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the shipped recipes of the command, and the YAML files, that complete a word."""
    from esckit.config.catalogue import shipped_recipes

    shipped = shipped_recipes()
    command = ctx.command.name
    wanted = [each for each in shipped if each.command == command] or shipped
    files = glob.glob(f"{glob.escape(incomplete)}*.yaml")
    return [*(each.name for each in wanted if each.name.startswith(incomplete)), *sorted(files)]


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        show_default=False,
        autocompletion=recipe_names,
        help="Name of a shipped recipe (see 'esckit recipes list') or a file.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        show_default=False,
        help="Change a field of the recipe, such as data.limit=4; the value is YAML. Can be given again.",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", show_default=False, help="Run folder; by default runs/<command>-<name of the recipe>."
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and print how much work it would be; call no model.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def echo_json(value: Any, *, indent: int | None = 2) -> None:
    """Print plain data on stdout as JSON, which knows no NaN and no infinity.

    Raises:
        NotFiniteError: If a number is not finite.
    """
    from esckit.records import dump_json

    echo(dump_json(value, indent=indent))


def echo_facts(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print results on stdout: one JSON object, or a line for each fact."""
    if as_json:
        echo_json(facts)
        return
    shown = {name: value for name, value in facts.items() if name != "schema"}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        echo(f"{name.replace('_', ' '):<{width}}  {_plain(value)}")


def _plain(value: Any) -> str:
    """Return a value for reading: four digits for measures, ``–`` for what there is none of."""
    if value is None or value == {}:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_nested(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_plain(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _nested(value: Any) -> str:
    return f"({_plain(value)})" if isinstance(value, Mapping) else _plain(value)


def echo_plan(loaded: LoadedRecipe[Any], out: Path | None, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what ``--dry-run`` found.

    Raises:
        ConfigError: If a run would refuse its folder, since that belongs to another recipe.
    """
    from esckit.runs import require_own

    echo_facts(facts, as_json=as_json)
    recipe = loaded.recipe
    require_own(
        out or loaded.default_out(),
        command=recipe.command,
        recipe=recipe.resolved(),
        operational=recipe.OPERATIONAL,
    )
