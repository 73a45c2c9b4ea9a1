"""``esckit search``."""

from __future__ import annotations

import typer

from esckit.cli.common import DryRunOption, JsonOption, OutOption, RecipeArgument, SetOption, echo_facts, echo_plan


def search(
    ctx: typer.Context,
    recipe: RecipeArgument,
    changes: SetOption = None,
    out: OutOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Grow trees of support strategies from real conversations.

    Each seed dialogue gives one tree: a strategist proposes strategies, a supporter words them, a simulated seeker
    answers, a critic rates every supporter turn, and Monte Carlo tree search finds out which strategies pay off.
    `esckit train-flow` trains a strategy policy from the trees.

    A run that was stopped or killed goes on when the same command is given again: every tree is grown once.

    Try it: esckit search smoke/search --out runs/first-search
    """
    from esckit.cli.progress import shown_progress
    from esckit.config.load import load_recipe
    from esckit.config.search import SearchRecipe

    loaded = load_recipe(recipe, SearchRecipe, overrides=changes or ())
    # Only now: a wrong recipe needs none of it, and it takes its time to import.
    from esckit.pipelines.search import plan, run

    if dry_run:
        echo_plan(loaded, out, plan(loaded.recipe).facts(), as_json=as_json)
        return
    with shown_progress("trees", quiet=ctx.obj.quiet) as progress:
        result = run(loaded.recipe, out=out or loaded.default_out(), progress=progress)
    shown = {name: value for name, value in result.summary.items() if as_json or name != "environment"}
    echo_facts({"out": str(result.out), **shown}, as_json=as_json)
