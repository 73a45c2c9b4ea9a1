"""``esckit train-rl``."""

from __future__ import annotations

import typer

from esckit.cli.common import DryRunOption, JsonOption, OutOption, RecipeArgument, SetOption, echo_facts, echo_plan
from esckit.cli.launch import AccelerateOption, launch, planned_processes


def train_rl(
    ctx: typer.Context,
    recipe: RecipeArgument,
    changes: SetOption = None,
    out: OutOption = None,
    accelerate: AccelerateOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a supporter that reasons before it answers, by reinforcement learning.

    The policy answers conversations of the corpus several times each; a reward model says how good each reply is for
    the conversation's future, and GRPO makes the better ones likelier. Only an adapter is trained. The run folder can
    be named as `models.supporter: {checkpoint: RUN}` in every other recipe.

    A run that was stopped or killed goes on when the same command is given again.

    Try it: esckit train-rl smoke/train_rl --out runs/first-policy
    """
    from esckit.cli.progress import shown_progress
    from esckit.config.load import load_recipe
    from esckit.config.train_rl import TrainRlRecipe

    loaded = load_recipe(recipe, TrainRlRecipe, overrides=changes or ())
    # Only now: a wrong recipe needs none of it, and it takes its time to import.
    from esckit.pipelines.processes import this_process
    from esckit.pipelines.train_rl import plan, run

    if dry_run:
        echo_plan(loaded, out, plan(loaded.recipe, n_processes=planned_processes(accelerate)).facts(), as_json=as_json)
        return
    if accelerate is not None:
        launch(accelerate, lambda n_processes: plan(loaded.recipe, n_processes=n_processes))
    is_main = this_process().is_main
    with shown_progress("steps", quiet=ctx.obj.quiet or not is_main) as progress:
        result = run(loaded.recipe, out=out or loaded.default_out(), progress=progress)
    if is_main:
        echo_facts({"out": str(result.out), **result.summary}, as_json=as_json)
