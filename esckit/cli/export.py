"""``esckit export``: a trained model for other tools, in a folder or on the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from esckit.cli.common import JsonOption, echo, echo_facts, run_names
from esckit.errors import ConfigError


def export(
    ctx: typer.Context,
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", show_default=False, autocompletion=run_names, help="Run folder of a finished training."
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False, help="New folder to write.")],
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Of a policy: the adapter alone, for peft. Loads no weights.")
    ] = False,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Type of the weights; auto: a policy's as its backbone is stored, else float32."),
    ] = "auto",
    evaluation: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            show_default=False,
            autocompletion=run_names,
            help="Evaluation of this model, for the card's metrics.",
        ),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", show_default=False, help="Upload it to the Hugging Face hub.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: let everybody see it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --push: upload without asking.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything that needs no weights, write nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a trained model as a folder that transformers, peft and vLLM load without esckit.

    A policy becomes a causal language model (or, with --adapter, its adapter), a reward model a sequence classification
    model whose sigmoid is p, a strategy policy its backbone with heads.safetensors beside it. The card says how the
    model is used, with code that needs no esckit; that code's numbers are compared with esckit's before the folder gets
    its name.

    Try it: esckit export runs/train-rl-smoke exported/policy
    """
    from esckit.export.hub import check_name, planned_upload
    from esckit.export.hub import push as upload_folder
    from esckit.export.run import export as write
    from esckit.export.run import plan

    if push is None and (public or yes):
        raise ConfigError(f"{'--public' if public else '--yes'} without --push", expected="--push OWNER/NAME beside it")
    if push is not None:
        check_name(push)
        if not yes and not dry_run and not sys.stdin.isatty():
            raise ConfigError("--push where nobody can be asked", expected="--yes beside it, or a terminal")
    planned = plan(run, folder, adapter=adapter, dtype=dtype, evaluation=evaluation)
    if dry_run:
        echo_facts(planned.facts(), as_json=as_json)
        return
    facts = write(planned)
    if push is not None:
        upload = planned_upload(folder, push, private=not public)
        for line in upload.lines():
            echo(line, err=True)
        if yes or typer.confirm("Upload?", err=True):
            upload_folder(folder, upload)
            facts |= {"pushed": push, "private": upload.private}
        else:
            echo("Not uploaded.", err=True)
    echo_facts(facts, as_json=as_json)
