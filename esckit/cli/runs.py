"""The commands that make run folders from recipes, and ``report``, which reads them.

All run commands take one path: load the recipe, import the room that plays it (only then, since a wrong recipe needs no
torch), show what it would do (``--dry-run``) or do it, and print the summary. A function that is decorated with
:class:`RunCommand` only says what of its summary to show; its docstring is the command's help. Not here: what a run
does (the rooms' ``run`` modules) and how processes are started (:mod:`esckit.cli.launch`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from esckit.cli.common import JsonOption, RecipeArgument, SetOption, echo, echo_facts, recipe_argument, run_names
from esckit.cli.forecast import echo_forecast, echo_pilot, forecast_of
from esckit.cli.launch import AccelerateOption, ProcessesOption, launch, planned_processes
from esckit.cli.openmp import choose_waiting
from esckit.errors import ConfigError, EsckitError

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from esckit.config.load import LoadedRecipe
    from esckit.metrics.metric import GateBound
    from esckit.report.systems import Tested

OutOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", show_default=False, help="Run folder; by default runs/<command>-<name of the recipe>."
    ),
]

DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and print how much work it would be; call no model.")
]

RateOption = Annotated[
    float | None,
    typer.Option(
        "--rate",
        metavar="CALLS",
        min=0.0,
        show_default=False,
        help="With --dry-run: calls a second that the servers or this machine manage, for the hours.",
    ),
]

PilotOption = Annotated[
    int | None,
    typer.Option(
        "--pilot",
        metavar="N",
        min=2,
        show_default=False,
        help="Play N units of the run only, drawn by its seed, and print what the whole run will take.",
    ),
]

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunCommand:
    """Makes a command out of a function that returns what of a summary is printed; ``--json`` prints all of it.

    Attributes:
        units: Plural noun of what the progress counts.
        trains: Whether several processes may share a run, so that the command takes ``--accelerate``.
        plays: Whether a run plays units, so that a dry run forecasts their cost.
        planned: Returns what a dry run prints of a plan, given whether as JSON.
    """

    units: str
    trains: bool = False
    plays: bool = True
    planned: Callable[[Any, bool], Facts] = lambda plan, as_json: plan.facts()

    def __call__(self, shown: Callable[[dict[str, Any]], Facts]) -> Callable[..., None]:
        """Return the command."""

        def command(
            ctx: typer.Context,
            recipe: RecipeArgument,
            changes: SetOption = None,
            out: OutOption = None,
            accelerate: AccelerateOption = None,
            processes: ProcessesOption = None,
            dry_run: DryRunOption = False,
            rate: RateOption = None,
            pilot: PilotOption = None,
            as_json: JsonOption = False,
        ) -> None:
            check_forecast(rate, pilot, dry_run)
            if processes is not None and not dry_run:
                raise ConfigError("--processes without --dry-run", hint="Processes are started by --accelerate")
            loaded, room = _load(ctx, recipe, changes)
            if dry_run:
                plan = room.plan(loaded.recipe, **(planned_processes(accelerate, processes) if self.trains else {}))
                found = forecast_of(plan, rate) if self.plays else {}
                _echo_plan(loaded, out, self.planned(plan, as_json), found, as_json=as_json)
                _raise_refusal(plan)
                return
            if accelerate is not None:
                launch(accelerate, lambda planned: _raise_refusal(room.plan(loaded.recipe, **planned)))
            is_main = not self.trains or _is_main()
            options = {} if self.trains else {"pilot": pilot}
            result = _play(ctx, loaded, room, out, self.units if is_main else None, as_json=as_json, **options)
            if is_main and result is not None:
                summary = result.summary if as_json else shown(result.summary)
                echo_facts({"out": str(result.out), **summary}, as_json=as_json)

        signature = inspect.signature(command, eval_str=True)
        left_out = {"pilot"} if self.trains else {"accelerate", "processes"}
        if not self.plays:
            left_out.add("rate")
        options = [option for name, option in signature.parameters.items() if name not in left_out]
        command.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
        command.__doc__ = shown.__doc__
        return command


def _raise_refusal(plan: Any) -> None:
    """Raise why the run would be refused, if the plan of a training says so."""
    if isinstance(plan, dict) and isinstance(plan.get("refusal"), EsckitError):
        raise plan["refusal"]


def _load(ctx: typer.Context, recipe: str, changes: list[str] | None) -> tuple[LoadedRecipe[Any], Any]:
    """Return a recipe of the command that was called, and the module that plans and runs it."""
    from esckit.config.load import RECIPES, load_recipe

    kind = RECIPES.resolve(str(ctx.command.name))
    loaded = load_recipe(recipe, kind, overrides=changes or ())
    return loaded, import_module(f"{kind.__module__.rpartition('.')[0]}.run")


def check_forecast(rate: float | None, pilot: int | None, dry_run: bool) -> None:
    """Refuse options of forecasts that do not go together."""
    if rate is not None and rate <= 0:
        raise ConfigError(f"--rate {rate:g}", expected="calls a second, above 0")
    if rate is not None and not dry_run:
        raise ConfigError("--rate without --dry-run", expected="both, for a forecast")
    if pilot is not None and dry_run:
        raise ConfigError("--pilot with --dry-run", expected="one of them: a pilot calls models, a dry run calls none")


def _echo_plan(
    loaded: LoadedRecipe[Any], out: Path | None, facts: Facts, forecast: Facts = MappingProxyType({}), *, as_json: bool
) -> None:
    """Print what a dry run found; refuse a folder of ``--out`` that belongs to another recipe, as the run would.

    Of the default folder it only says so: what was asked for is how much work the recipe is.
    """
    from esckit.prompts.prompt import prompt_names
    from esckit.roles.example import named_prompts
    from esckit.runs import require_own

    if as_json:
        echo_facts({**facts, **({"forecast": forecast} if forecast else {})}, as_json=True)
    else:
        echo_facts(facts, as_json=False)
        echo_forecast(forecast)
    recipe, folder = loaded.recipe, out or loaded.default_out()
    if own := [field for field, name, _ in named_prompts(recipe) if name not in prompt_names()]:
        echo(
            f"{', '.join(own)}: 'esckit prompts check RECIPE', with the same --set, shows what the models read",
            err=True,
        )
    try:
        require_own(folder, command=recipe.command, recipe=recipe.resolved(), operational=recipe.OPERATIONAL)
    except ConfigError as error:
        if out is not None:
            raise
        log.warning("the run needs another folder (--out): %s", error)


def _play(
    ctx: typer.Context,
    loaded: LoadedRecipe[Any],
    room: Any,
    out: Path | None,
    units: str | None,
    *,
    as_json: bool,
    **options: Any,
) -> Any:
    """Run a recipe and return the result; without a noun for its units no progress is shown.

    Of a pilot, what the whole run will take is printed, and None returned.
    """
    from esckit.cli.progress import shown_progress
    from esckit.play.pilot import PilotPlayed

    choose_waiting(loaded.recipe.executor.threads)
    folder = out or loaded.default_out()
    try:
        with shown_progress(units or "", quiet=ctx.obj.quiet or units is None) as progress:
            return room.run(loaded.recipe, out=folder, progress=progress, **options)
    except PilotPlayed as played:
        echo_pilot(played.estimate, folder, as_json=as_json)
        return None


def _is_main() -> bool:
    from esckit.training.run import this_process

    return this_process().is_main


@RunCommand("futures")
def simulate(summary: dict[str, Any]) -> Facts:
    """Play simulated futures of real conversations and value them.

    Each context of the corpus gets several candidate replies; each candidate is continued by a simulated seeker and
    supporter until a critic finds the seeker's issue solved, or the horizon is reached.

    A run that was stopped or killed goes on when the same command is given again: every future is played once.

    Try it: esckit simulate smoke/simulate --out runs/first
    """
    return summary


@RunCommand("trees")
def search(summary: dict[str, Any]) -> Facts:
    """Grow trees of support strategies from real conversations.

    Each seed dialogue gives one tree: a strategist proposes strategies, a supporter words them, a simulated seeker
    answers, a critic rates every supporter turn, and Monte Carlo tree search finds out which strategies pay off.
    `esckit train-flow` trains a strategy policy from the trees.

    A run that was stopped or killed goes on when the same command is given again: every tree is grown once.

    Try it: esckit search smoke/search --out runs/first-search
    """
    return {name: value for name, value in summary.items() if name != "environment"}


def sized(plan: Any, as_json: bool) -> Facts:
    """Return what to print of a training's plan: its memory in words; refusal and forecast follow by themselves."""
    from esckit.training.memory import readable

    if as_json:
        shown = {name: value for name, value in plan.items() if name != "staged"}
        return {name: str(value) if isinstance(value, EsckitError) else value for name, value in shown.items()}
    return {name: value for name, value in readable(plan).items() if name not in ("refusal", "staged")}


@RunCommand("updates", trains=True, plays=False, planned=sized)
def train_flow(summary: dict[str, Any]) -> Facts:
    """Train a strategy policy from search trees, or from the strategies of a corpus.

    The policy chooses the supporter's next strategy and rates all of them. Later recipes name the run folder, as in
    models.strategist: {checkpoint: runs/train-flow-aflow}.

    A run that was stopped or killed goes on from its last checkpoint when the same command is given again.

    Try it: esckit train-flow smoke/train_flow --out runs/first-policy
    """
    test = {f"test {name}": value for name, value in summary.get("test", {}).items() if name != "confusion"}
    return {name: value for name, value in summary.items() if name != "test"} | test


def _labels(plan: Any, as_json: bool) -> Facts:
    """Return what to print of a reward model's plan."""
    found = sized(plan, as_json)
    return found if as_json else {**found, "warnings": "; ".join(plan["warnings"]) or None}


@RunCommand("steps", trains=True, plays=False, planned=_labels)
def train_reward(summary: dict[str, Any]) -> Facts:
    """Train a reward model that tells good replies without simulating their future.

    The futures of `esckit simulate` are labelled good or not by a rule that the recipe names (--dry-run shows how each
    rule would split them), and a language model learns to predict the label from conversation and reply. It is judged
    on held-out dialogues, beside the majority class, an untrained head and the length of the reply.

    A run that was stopped or killed goes on when the same command is given again.

    Try it: esckit train-reward smoke/train_reward --out runs/first-reward
    """
    # Warnings were logged already.
    return {name: value for name, value in summary.items() if name != "warnings"}


@RunCommand("steps", trains=True, plays=False, planned=_labels)
def train_sft(summary: dict[str, Any]) -> Facts:
    """Train a supporter on replies: of a corpus, of good futures, or of the best paths of search trees.

    A language model learns to write what the source's supporter wrote, with or without the reasoning and the strategy
    before it. The run folder can be named as `models.supporter: {checkpoint: RUN}` in every other recipe, and as
    `models.policy: {checkpoint: RUN}` of `esckit train-rl`, which then begins with it.

    A run that was stopped or killed goes on when the same command is given again.

    Try it: esckit train-sft smoke/train_sft --out runs/first-supporter
    """
    return summary


@RunCommand("steps", trains=True, planned=sized)
def train_rl(summary: dict[str, Any]) -> Facts:
    """Train a supporter that reasons before it answers, by reinforcement learning.

    The policy answers conversations of the corpus several times each; a reward model says how good each reply is for
    the conversation's future, and GRPO makes the better ones likelier. Only an adapter is trained. The run folder can
    be named as `models.supporter: {checkpoint: RUN}` in every other recipe.

    A run that was stopped or killed goes on when the same command is given again.

    Try it: esckit train-rl smoke/train_rl --out runs/first-policy
    """
    return summary


_RecipeArgument = Annotated[
    str | None, recipe_argument("[RECIPE]", "Name of a shipped recipe or a file; or use --input without one.")
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
    rate: RateOption = None,
    pilot: PilotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what a strategist and a supporter say to dialogues of your own.

    One JSON line for every supporter turn (or, with --set predict.at=end, for what comes next): the strategy with its
    probabilities, the reply, or both. `esckit evaluate` reads the file.

    Try it: esckit predict --input sample:esconv --supporter smollm2-135m-instruct --set data.limit=1
    """
    from esckit.lineage import means_run

    check_forecast(rate, pilot, dry_run)
    if recipe is None and (input_file is None or (strategist is None and supporter is None)):
        raise ConfigError("nothing to predict", expected="a recipe, or --input with --strategist, --supporter or both")
    speakers = {"strategist": strategist, "supporter": supporter}
    own = []
    for role, model in speakers.items():
        if model is not None:
            kind = "checkpoint" if means_run(model) else "backbone"
            own.append(f"models.{role}={{{kind}: {_quoted(model)}}}")
    # Who speaks of the recipe stays, but where there is none only who is named speaks.
    own = ["models={}", *own] if recipe is None else own
    own += [f"data={{dataset: auto, path: {_quoted(str(input_file))}}}"] if input_file is not None else []
    loaded, room = _load(ctx, recipe or "predict/own", [*own, *(changes or ())])
    if dry_run:
        plan = room.plan(loaded.recipe)
        _echo_plan(loaded, out, plan.facts(), forecast_of(plan, rate), as_json=as_json)
        return
    result = _play(ctx, loaded, room, out, "places", as_json=as_json, pilot=pilot)
    if result is not None:
        echo_facts({"out": str(result.out), **result.summary}, as_json=as_json)


def _quoted(text: str) -> str:
    """Return a text as YAML that means this text, whatever stands in it."""
    return "'" + text.replace("'", "''") + "'"


def _gate_option(side: str, better: str, worse: str) -> Any:
    text = f"Exit with 1 if a metric, of which {better} is better, is {worse}. Can be given again."
    return typer.Option(f"--fail-{side}", metavar="METRIC=VALUE", show_default=False, help=text)


UnderOption = Annotated[list[str] | None, _gate_option("under", "higher", "lower")]

OverOption = Annotated[list[str] | None, _gate_option("over", "lower", "higher")]

AgainstOption = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="RUN",
        show_default=False,
        autocompletion=run_names,
        help="An earlier evaluation of another system to compare with.",
    ),
]


def evaluate(
    ctx: typer.Context,
    recipe: RecipeArgument,
    changes: SetOption = None,
    out: OutOption = None,
    against: AgainstOption = None,
    fail_under: UnderOption = None,
    fail_over: OverOption = None,
    dry_run: DryRunOption = False,
    rate: RateOption = None,
    pilot: PilotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a strategist, a supporter or a predictions file on the same cases as every other system.

    Suites: next-strategy prediction, replies to gold contexts, self-played dialogues, pairwise comparison, reward
    models, and screenings for crisis and sycophancy. Every value comes with its number of cases and an interval; what
    a model did not answer readably is unscored, never a value. A report is written beside the numbers.

    Cases that are there are not played again: the same command goes on where it stopped, and recomputes a finished run.

    Exits with 1 if a gate fails, with 3 if more cases are unscored than max_failure_rate allows.

    Try it: esckit evaluate smoke/evaluate --out runs/first-evaluation
    """
    check_forecast(rate, pilot, dry_run)
    loaded, room = _load(ctx, recipe, changes)
    if against is not None:
        loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"compare_to": against}))
    gates = [*_gates(fail_under, "under"), *_gates(fail_over, "over")]
    if dry_run:
        plan = room.plan(loaded.recipe, gates=gates)
        _echo_plan(loaded, out, plan.facts(), forecast_of(plan, rate), as_json=as_json)
        return
    result = _play(ctx, loaded, room, out, "cases", as_json=as_json, gates=gates, pilot=pilot)
    if result is None:
        return
    if as_json:
        found = result.metrics
        whole = [row.model_dump(mode="json") for row in found.metrics if row.group is None]
        facts = {"out": str(result.out), "report": str(result.report), **found.model_dump(mode="json")}
        echo_facts(facts | {"metrics": whole}, as_json=True)
    else:
        from esckit.cli.evaluated import echo_evaluation

        echo_evaluation(result)
    failed = [gate for gate in result.metrics.gates if not gate.holds]
    for gate in failed:
        value = "without value" if gate.value is None else f"{gate.value:.4g}"
        end = "" if gate.end is None else f", the worse end of its interval {gate.end:.4g}"
        echo(f"gate failed: {gate.metric} is {value}{end}; asked for {gate.bound:g} ({gate.reason})", err=True)
    result.rate.judge()
    if failed:
        raise typer.Exit(1)


def _gates(texts: list[str] | None, side: Literal["under", "over"]) -> list[GateBound]:
    from esckit.metrics.metric import GateBound

    found = []
    for text in texts or ():
        metric, equals, value = text.partition("=")
        try:
            bound = float(value)
        except ValueError:
            equals = ""
        if not (metric and equals):
            raise ConfigError(f"--fail-{side} {text}", expected="METRIC=VALUE, such as response.bleu_2=10")
        found.append(GateBound(metric.strip(), bound, side))
    return found


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", show_default=False, autocompletion=run_names, help="Run folders.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="The page; by default report.html in the run's folder, of several runs beside the first one's folder.",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            show_default=False,
            autocompletion=run_names,
            help="A run to show side by side with the others.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Of several evaluations: the one that the others are tested against; by default the first.",
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", show_default=False, help="Also write every chart there."),
    ] = None,
    plot_width: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTH",
            show_default=False,
            help="With --plots, for a paper: column (77 mm), page (160 mm) or a width such as 84mm; text is 8 pt high.",
        ),
    ] = None,
    font: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="With --plots: sans, serif or the name of a font."),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="KINDS", show_default=False, help="With --plots: svg, png, pdf; by default svg,png."
        ),
    ] = None,
    quotes: Annotated[
        bool,
        typer.Option("--quotes", help="Show dialogue texts also where the corpus may be for research use only."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a page of any run: what was run, its numbers, and its dialogues, trees or futures to walk through.

    The page is one HTML file that needs no network; the same tables stand beside it as Markdown. Calls no model.

    Try it: esckit report runs/simulate-smoke
    """
    from esckit.report.plots import plot_style
    from esckit.report.run import write_report

    if baseline is not None and baseline not in (names := [run.resolve().name for run in runs]):
        raise ConfigError(f"--baseline {baseline}", expected=f"one of {', '.join(names)}")
    chosen = {"--plot-width": plot_width, "--font": font, "--format": formats}
    given = [name for name, value in chosen.items() if value is not None]
    if given and plots is None:
        raise ConfigError(f"{given[0]} without --plots", expected="--plots FOLDER beside it")
    style = plot_style(formats, plot_width, font) if given else None
    tested = _tested(baseline) if len(runs) > 1 else None
    result = write_report(runs, out=out, against=against, plots=plots, quotes=quotes, tested=tested, plot_style=style)
    facts = {"page": str(result.page), "markdown": str(result.markdown)}
    if plots is not None:
        facts["plots"] = f"{len(result.plots)} files in {plots}"
    echo_facts(facts, as_json=as_json)


def _tested(baseline: str | None) -> Tested:
    """Return what tests the systems of a comparison: against the one of this name if it is in it, else the first."""
    from esckit.evaluate.paired import with_tests

    return lambda found: with_tests(
        found, baseline if baseline is not None and found.system(baseline) else found.systems[0].name
    )
