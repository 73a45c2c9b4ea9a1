"""``esckit simulate``.

``esckit search``.

``esckit train-flow``.

``esckit train-reward``.

``esckit train-rl``.

``esckit predict``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esckit.cli.common import (
    DryRunOption,
    JsonOption,
    OutOption,
    RecipeArgument,
    SetOption,
    echo_facts,
    echo_plan,
    recipe_names,
)
from esckit.cli.launch import AccelerateOption, launch, launcher_settings, planned_processes
from esckit.errors import ConfigError


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
    from esckit.simulate.recipe import SimulateRecipe

    loaded = load_recipe(recipe, SimulateRecipe, overrides=changes or ())
    # Only now: a wrong recipe needs none of it, and it takes its time to import.
    from esckit.simulate.run import plan, run

    if dry_run:
        echo_plan(loaded, out, plan(loaded.recipe).facts(), as_json=as_json)
        return
    with shown_progress("futures", quiet=ctx.obj.quiet) as progress:
        result = run(loaded.recipe, out=out or loaded.default_out(), progress=progress)
    echo_facts({"out": str(result.out), **result.summary}, as_json=as_json)


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
    from esckit.search.recipe import SearchRecipe

    loaded = load_recipe(recipe, SearchRecipe, overrides=changes or ())
    # Only now: a wrong recipe needs none of it, and it takes its time to import.
    from esckit.search.run import plan, run

    if dry_run:
        echo_plan(loaded, out, plan(loaded.recipe).facts(), as_json=as_json)
        return
    with shown_progress("trees", quiet=ctx.obj.quiet) as progress:
        result = run(loaded.recipe, out=out or loaded.default_out(), progress=progress)
    shown = {name: value for name, value in result.summary.items() if as_json or name != "environment"}
    echo_facts({"out": str(result.out), **shown}, as_json=as_json)


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
    from esckit.flow.recipe import TrainFlowRecipe

    loaded = load_recipe(recipe, TrainFlowRecipe, overrides=changes or ())
    # Only now: a wrong recipe needs none of it, and it takes its time to import.
    from esckit.flow.run import plan, run
    from esckit.processes import this_process

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
    from esckit.reward.recipe import TrainRewardRecipe

    loaded = load_recipe(recipe, TrainRewardRecipe, overrides=changes or ())
    # Only now: a wrong recipe needs none of it, and it takes its time to import.
    from esckit.processes import this_process
    from esckit.reward.run import plan, run

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
    from esckit.rl.recipe import TrainRlRecipe

    loaded = load_recipe(recipe, TrainRlRecipe, overrides=changes or ())
    # Only now: a wrong recipe needs none of it, and it takes its time to import.
    from esckit.processes import this_process
    from esckit.rl.run import plan, run

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
    from esckit.predict.recipe import PredictRecipe

    if recipe is None and (input_file is None or (strategist is None and supporter is None)):
        raise ConfigError("nothing to predict", expected="a recipe, or --input with --strategist, --supporter or both")
    speakers = {"strategist": strategist, "supporter": supporter}
    own = [f"models.{role}={_binding(model)}" for role, model in speakers.items() if model is not None]
    # Who speaks of the recipe stays, but where there is none only who is named speaks.
    own = ["models={}", *own] if recipe is None else own
    own += ["data={dataset: auto, path: " + _quoted(str(input_file)) + "}"] if input_file is not None else []
    loaded = load_recipe(recipe or "predict/own", PredictRecipe, overrides=[*own, *(changes or ())])
    # Only now: a wrong recipe needs none of it, and it takes its time to import.
    from esckit.predict.run import plan, run

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
