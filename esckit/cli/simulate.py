"""``esckit simulate``."""

from __future__ import annotations

import typer

from esckit.cli.common import DryRunOption, JsonOption, OutOption, RecipeArgument, SetOption, echo_facts, echo_plan


def simulate(
    ctx: typer.Context,
    recipe: RecipeArgument,
    changes: SetOption = None,
    out: OutOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Play simulated futures of real conversations and value them.

    Each context of the corpus gets several candidate replies; each candidate is continued by a simulated seeker and
    supporter until a critic finds the seeker's issue solved, or the horizon is reached.

    A run that was stopped or killed goes on when the same command is given again: every future is played once.

    Try it: esckit simulate smoke/simulate --out runs/first
    """
    from esckit.cli.progress import shown_progress
    from esckit.config.load import load_recipe
    from esckit.config.simulate import SimulateRecipe

    loaded = load_recipe(recipe, SimulateRecipe, overrides=changes or ())
    # Only now: a wrong recipe needs none of it, and it takes its time to import.
    from esckit.pipelines.simulate import plan, run

    if dry_run:
        echo_plan(loaded, out, plan(loaded.recipe).facts(), as_json=as_json)
        return
    with shown_progress("futures", quiet=ctx.obj.quiet) as progress:
        result = run(loaded.recipe, out=out or loaded.default_out(), progress=progress)
    echo_facts({"out": str(result.out), **result.summary}, as_json=as_json)
