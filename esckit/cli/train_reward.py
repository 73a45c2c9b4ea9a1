"""``esckit train-reward``."""

from __future__ import annotations

import typer

from esckit.cli.common import DryRunOption, JsonOption, OutOption, RecipeArgument, SetOption, echo_facts, echo_plan
from esckit.cli.launch import AccelerateOption, launch, planned_processes


def train_reward(
    ctx: typer.Context,
    recipe: RecipeArgument,
    changes: SetOption = None,
    out: OutOption = None,
    accelerate: AccelerateOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a reward model that tells good replies without simulating their future.

    The futures of `esckit simulate` are labelled good or not by a rule that the recipe names (--dry-run shows how each
    rule would split them), and a language model learns to predict the label from conversation and reply. It is judged
    on held-out dialogues, beside the majority class, an untrained head and the length of the reply.

    A run that was stopped or killed goes on when the same command is given again.

    Try it: esckit train-reward smoke/train_reward --out runs/first-reward
    """
    from esckit.cli.progress import shown_progress
    from esckit.config.load import load_recipe
    from esckit.config.train_reward import TrainRewardRecipe

    loaded = load_recipe(recipe, TrainRewardRecipe, overrides=changes or ())
    # Only now: a wrong recipe needs none of it, and it takes its time to import.
    from esckit.pipelines.processes import this_process
    from esckit.pipelines.train_reward import plan, run

    if dry_run:
        planned = plan(loaded.recipe, n_processes=planned_processes(accelerate))
        facts = planned.facts()
        if not as_json:
            # What speaks against it in one line each; a refusal is the error below.
            facts = {**facts, "warnings": "; ".join(planned.warnings) or None}
            del facts["refusal"]
        echo_plan(loaded, out, facts, as_json=as_json)
        if planned.refusal is not None:
            raise planned.refusal
        return
    if accelerate is not None:
        launch(accelerate, lambda n_processes: plan(loaded.recipe, n_processes=n_processes))
    is_main = this_process().is_main
    with shown_progress("steps", quiet=ctx.obj.quiet or not is_main) as progress:
        result = run(loaded.recipe, out=out or loaded.default_out(), progress=progress)
    if is_main:
        # Warnings were logged already.
        shown = {name: value for name, value in result.summary.items() if as_json or name != "warnings"}
        echo_facts({"out": str(result.out), **shown}, as_json=as_json)
