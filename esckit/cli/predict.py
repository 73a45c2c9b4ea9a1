"""``esckit predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esckit.cli.common import DryRunOption, JsonOption, OutOption, SetOption, echo_facts, echo_plan, recipe_names
from esckit.errors import ConfigError

_RecipeArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RECIPE]",
        show_default=False,
        autocompletion=recipe_names,
        help="Name of a shipped recipe or a file; or use --input without one.",
    ),
]
_InputOption = Annotated[
    Path | None,
    typer.Option(
        "--input", metavar="FILE", show_default=False, help="Dialogues of your own, in any layout that esckit reads."
    ),
]
_ModelOption = typer.Option(
    metavar="MODEL", show_default=False, help="A backbone, or a run folder with a trained model."
)


def predict(
    ctx: typer.Context,
    recipe: _RecipeArgument = None,
    input_file: _InputOption = None,
    strategist: Annotated[str | None, _ModelOption] = None,
    supporter: Annotated[str | None, _ModelOption] = None,
    changes: SetOption = None,
    out: OutOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write what a strategist and a supporter say to dialogues of your own.

    One JSON line for every supporter turn (or, with --set predict.at=end, for what comes next): the strategy with its
    probabilities, the reply, or both. `esckit evaluate` reads the file.

    Try it: esckit predict --input sample:esconv --supporter smollm2-135m-instruct --set data.limit=1
    """
    from esckit.cli.progress import shown_progress
    from esckit.config.load import load_recipe
    from esckit.config.predict import PredictRecipe

    if recipe is None and (input_file is None or (strategist is None and supporter is None)):
        raise ConfigError("nothing to predict", expected="a recipe, or --input with --strategist, --supporter or both")
    speakers = {"strategist": strategist, "supporter": supporter}
    own = [f"models.{role}={_binding(model)}" for role, model in speakers.items() if model is not None]
    # Who speaks of the recipe stays, but where there is none only who is named speaks.
    own = ["models={}", *own] if recipe is None else own
    own += ["data={dataset: auto, path: " + _quoted(str(input_file)) + "}"] if input_file is not None else []
    loaded = load_recipe(recipe or "predict/own", PredictRecipe, overrides=[*own, *(changes or ())])
    # Only now: a wrong recipe needs none of it, and it takes its time to import.
    from esckit.pipelines.predict import plan, run

    if dry_run:
        echo_plan(loaded, out, plan(loaded.recipe).facts(), as_json=as_json)
        return
    with shown_progress("places", quiet=ctx.obj.quiet) as progress:
        result = run(loaded.recipe, out=out or loaded.default_out(), progress=progress)
    echo_facts({"out": str(result.out), **result.summary}, as_json=as_json)


def _binding(model: str) -> str:
    kind = "checkpoint" if (Path(model) / "manifest.json").is_file() else "backbone"
    return "{" + f"{kind}: {_quoted(model)}" + "}"


def _quoted(text: str) -> str:
    """Return a text as YAML that means this text, whatever stands in it."""
    return "'" + text.replace("'", "''") + "'"
