"""``esckit train-flow``."""

from __future__ import annotations

import typer

from esckit.cli.common import DryRunOption, JsonOption, OutOption, RecipeArgument, SetOption, echo_facts, echo_plan
from esckit.cli.launch import AccelerateOption, launch, launcher_settings


def train_flow(
    ctx: typer.Context,
    recipe: RecipeArgument,
    changes: SetOption = None,
    out: OutOption = None,
    accelerate: AccelerateOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a strategy policy from search trees, or from the strategies of a corpus.

    The policy chooses the supporter's next strategy and rates all of them. Later recipes name the run folder, as in
    models.strategist: {checkpoint: runs/train-flow-aflow}.

    A run that was stopped or killed goes on from its last checkpoint when the same command is given again.

    Try it: esckit train-flow smoke/train_flow --out runs/first-policy
    """
    from esckit.cli.progress import shown_progress
    from esckit.config.load import load_recipe
    from esckit.config.train_flow import TrainFlowRecipe

    loaded = load_recipe(recipe, TrainFlowRecipe, overrides=changes or ())
    # Only now: a wrong recipe needs none of it, and it takes its time to import.
    from esckit.pipelines.processes import this_process
    from esckit.pipelines.train_flow import plan, run

    if dry_run:
        if accelerate is not None:
            launcher_settings(accelerate)
        echo_plan(loaded, out, plan(loaded.recipe), as_json=as_json)
        return
    if accelerate is not None:
        launch(accelerate)
    is_main = this_process().is_main
    with shown_progress("updates", quiet=ctx.obj.quiet or not is_main) as progress:
        result = run(loaded.recipe, out=out or loaded.default_out(), progress=progress)
    if is_main:
        shown = {name: value for name, value in result.summary.items() if as_json or name != "test"}
        test = {f"test {name}": value for name, value in result.summary.get("test", {}).items() if name != "confusion"}
        echo_facts({"out": str(result.out), **shown, **({} if as_json else test)}, as_json=as_json)
