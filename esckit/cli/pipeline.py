"""``esckit run``: a whole method in one command, stage by stage, each the very command that a user could type.

Not here: what a pipeline's page may say (:mod:`esckit.pipeline.page`), and which stages run
(:mod:`esckit.pipeline.sequence`).
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esckit.cli.common import JsonOption, Settings, echo, echo_facts, echo_json, recipe_argument
from esckit.cli.forecast import duration, echo_table, number, readable_size
from esckit.cli.launch import planned_processes, run_launcher
from esckit.cli.runs import DryRunOption, RateOption, check_forecast, sized
from esckit.errors import ConfigError
from esckit.registry import did_you_mean

if TYPE_CHECKING:
    from esckit.pipeline.page import Pipeline, Stage
    from esckit.pipeline.plan import StagePlan
    from esckit.pipeline.sequence import PipelineFolder


def run(
    ctx: typer.Context,
    pipeline: Annotated[str, recipe_argument("PIPELINE", "aflow, rlff, mixed, practice or smoke; or a file.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.FIELD=VALUE",
            show_default=False,
            help="Change a field of a stage's recipe, such as search.data.limit=4. Can be given again.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            show_default=False,
            help="Folder with the stages' run folders; by default runs/<name of the pipeline>.",
        ),
    ] = None,
    first: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="STAGE", show_default=False, help="Begin with this stage; leave out those before."
        ),
    ] = None,
    last: Annotated[
        str | None, typer.Option("--until", metavar="STAGE", show_default=False, help="End after this stage.")
    ] = None,
    accelerate: Annotated[
        list[str] | None,
        typer.Option(
            "--accelerate",
            metavar="[STAGE=]NAME|FILE",
            show_default=False,
            help="Start trainings, or that of one stage, under accelerate's launcher. Can be given again.",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    rate: RateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a whole method: the stages that a page lists, each into a run folder, and one report over all of them.

    Each stage is a command of its own, which is printed before it runs. Everything is checked before the first stage
    begins. Stages that are finished are not run again: the same command goes on where it stopped.

    The exit code is that of the stage that did not succeed; with 1, a check of an evaluation failed.

    Try it: esckit run smoke
    """
    from esckit.pipeline.page import load_pipeline
    from esckit.pipeline.plan import plan_stages
    from esckit.pipeline.sequence import PipelineFolder, chosen, is_checked, require_own_folder

    check_forecast(rate, None, dry_run)
    loaded = load_pipeline(pipeline, out=out, changes=changes or ())
    wanted = chosen(loaded.stages, first, last)
    launchers = _launchers(loaded.stages, accelerate or ())
    require_own_folder(loaded.out, loaded.name)
    options = {stage.name: planned_processes(launchers.get(stage.name)) for stage in wanted if stage.trains}
    plans = plan_stages(wanted, options, rate=rate, forecasts=dry_run)
    if dry_run:
        _echo_plans(plans, as_json=as_json)
        return
    teller = _Teller(wanted, err=as_json)
    with PipelineFolder.open(loaded.out, loaded.name) as folder:
        code, stage = _run(wanted, folder, launchers, teller, ctx.obj)
        report = _report(loaded, teller, ctx.obj) if stage is None or is_checked(stage, code) else None
    if as_json:
        echo_json({"pipeline": loaded.name, "out": str(loaded.out), "stages": teller.results, "report": report})
    elif report is not None:
        echo_facts({"out": str(loaded.out), "report": report}, as_json=False)
    if code:
        raise typer.Exit(code)


# ---------------------------------------------------------------- running


@dataclass(slots=True)
class _Teller:
    """Says what each stage does and what came out.

    Attributes:
        stages: The stages that run.
        err: Whether to print on stderr, where stdout is for JSON.
        results: What came out of the stages that are done, in order.
    """

    stages: Sequence[Stage]
    err: bool
    results: list[dict[str, Any]] = field(default_factory=list)

    def begins(self, stage: Stage, words: Sequence[str], *, done: bool) -> None:
        """Print which stage it is, and its command."""
        number_of = [each.name for each in self.stages].index(stage.name) + 1
        about = f": {stage.section.about}" if stage.section.about else ""
        echo(f"\n{number_of}/{len(self.stages)}  {stage.name}{about}", err=self.err)
        echo(f"     $ {shlex.join(('esckit', *words))}" + ("  (done before)" if done else ""), err=self.err)

    def ended(self, stage: Stage, seconds: float | None) -> None:
        """Print what came out of a stage."""
        from esckit.report.numbers import facts_of, first_numbers, numbers, text_of
        from esckit.report.source import open_run

        run = open_run(stage.out)
        found = first_numbers(run, stage.section.show)
        status = "done before" if seconds is None else f"done in {duration(seconds)}"
        facts = {name: facts_of(row) for name, row in found.items()}
        self.results.append({"name": stage.name, "out": str(stage.out), "status": status, "numbers": facts})
        if seconds is not None:
            echo(f"     {status}", err=self.err)
        width = max((len(name) for name in found), default=0)
        for name, row in found.items():
            echo(f"       {name:<{width}}  {text_of(row)}", err=self.err)
        for label, name in stage.section.show.items():
            if found[label] is None:
                advice = f"; {close}" if (close := did_you_mean(name, numbers(run))) else ""
                echo(f"warning: stages.{stage.name}.show: no number {name!r} in {stage.out}{advice}", err=True)


def _run(
    stages: Sequence[Stage], folder: PipelineFolder, launchers: Mapping[str, str], teller: _Teller, settings: Settings
) -> tuple[int, Stage | None]:
    """Run the stages and say how they ended; return the exit code, and the stage that did not succeed."""
    from esckit.archive import PRINTED
    from esckit.pipeline.sequence import run_stages

    def more(stage: Stage) -> list[str]:
        return ["--accelerate", launchers[stage.name]] if stage.name in launchers else []

    def begins(stage: Stage, done: bool) -> None:
        teller.begins(stage, stage.words(*more(stage)), done=done)

    def start(words: Sequence[str]) -> int:
        log = folder.path / PRINTED / f"{Path(words[words.index('--out') + 1]).name}.txt"
        return _esckit(words, log, settings)

    try:
        code, stage = run_stages(stages, folder, start, more=more, begins=begins, ended=teller.ended)
    except KeyboardInterrupt:
        echo("the stage was stopped, and what is done stays; the same command goes on from there", err=True)
        raise
    if stage is not None:
        teller.results.append({"name": stage.name, "out": str(stage.out), "status": f"exit code {code}"})
        _explain(code, stage, stages, folder.path / PRINTED / f"{stage.name}.txt")
    return code, stage


def _esckit(words: Sequence[str], log: Path, settings: Settings) -> int:
    """Run a command in a process of its own, which prints into a file, and return its exit code."""
    from esckit.storage import storage_error

    options = ["--quiet"] if settings.quiet else ["--verbose"] * settings.verbose
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as printed:
            code = run_launcher([sys.executable, "-m", "esckit", *words, *options], os.environ, stdout=printed)
    except OSError as error:
        raise storage_error(error, log) from error
    return code if code >= 0 else 128 - code  # as a shell shows a process that a signal ended


def _explain(code: int, stage: Stage, stages: Sequence[Stage], printed: Path) -> None:
    """Say what the exit code of a stage means for the pipeline, and how to go on."""
    from esckit.pipeline.sequence import is_checked

    names = [each.name for each in stages]
    after = names[names.index(stage.name) + 1 :]
    if is_checked(stage, code):
        go_on = f"; --from {after[0]} goes on all the same" if after else ""
        echo(f"stage {stage.name}: a check found something (see {printed}){go_on}", err=True)
    elif code in (3, 130):
        asked = f"; a --set that it asks for is here --set {stage.name}.FIELD=VALUE" if code == 3 else ""
        echo(f"stage {stage.name} stopped (exit code {code}); the same command goes on from there{asked}", err=True)
    elif code > 128:
        echo(
            f"stage {stage.name} was ended by signal {code - 128} (9 is often a lack of memory); the same command goes "
            "on from there",
            err=True,
        )
    else:
        echo(f"stage {stage.name} failed (exit code {code}); mend the cause and give the same command again", err=True)


def _report(pipeline: Pipeline, teller: _Teller, settings: Settings) -> str | None:
    """Write the report over all finished stages, evaluations first, and return its page; None without any."""
    from esckit.archive import PRINTED
    from esckit.pipeline.sequence import is_complete

    done = [stage for stage in pipeline.stages if is_complete(stage)]
    done.sort(key=lambda stage: stage.recipe.command != "evaluate")
    if not done:
        return None
    page = pipeline.out / "report.html"
    words = ["report", *(str(stage.out) for stage in done), "--out", str(page)]
    echo(f"\n     $ {shlex.join(('esckit', *words))}\n", err=teller.err)
    code = _esckit(words, pipeline.out / PRINTED / "report.txt", settings)
    if code:
        raise typer.Exit(code)
    return str(page)


def _launchers(stages: Sequence[Stage], given: Sequence[str]) -> dict[str, str]:
    """Return the launcher settings of each training that has some.

    Raises:
        ConfigError: If one is for a stage that does not train.
    """
    trainings = [stage.name for stage in stages if stage.trains]
    names = {stage.name for stage in stages}
    found: dict[str, str] = {}
    for text in given:
        name, equals, settings = text.partition("=")
        if not equals or name not in names:
            found = dict.fromkeys(trainings, text) | found
        elif name in trainings:
            found[name] = settings
        else:
            raise ConfigError(
                f"--accelerate {text}: stage {name} does not train", expected=f"one of {', '.join(trainings) or 'none'}"
            )
    return found


# ---------------------------------------------------------------- planning


def _echo_plans(plans: Sequence[StagePlan], *, as_json: bool) -> None:
    """Print what each stage would take, and the sum."""
    from esckit.pipeline.plan import sum_of

    whole = sum_of(plans)
    if as_json:
        rows = [
            {
                "name": plan.stage.name,
                "command": plan.stage.line(),
                "status": plan.status,
                "waits_for": list(plan.waits_for),
                "stands_in": list(plan.stands_in),
                "plan": sized(plan.facts, True) if plan.stage.trains else plan.facts,
                "forecast": plan.forecast or None,
            }
            for plan in plans
        ]
        echo_json({"stages": rows, "sum": whole})
        return
    for plan in plans:
        echo(f"{plan.stage.name}: {plan.stage.line()}")
        for line in _remarks(plan):
            echo(f"  {line}")
    cells = [(plan.stage.name, *_cells(plan.forecast, plan.status)) for plan in plans]
    cells.append(("in all known" if whole["unknown"] else "in all", *_cells(whole, "planned")))
    echo("\nat most, without retries:")
    echo_table(("stage", "calls", "prompt tokens", "completion tokens", "cost", "hours", "disk"), cells)
    if whole["unknown"]:
        echo(f"not in the sum: {', '.join(whole['unknown'])}")


def _remarks(plan: StagePlan) -> Iterator[str]:
    earlier = ", ".join(plan.waits_for)
    if plan.status == "done":
        yield "done before"
    elif plan.status == "waits":
        yield f"can only be planned after {earlier}"
    elif plan.stands_in:
        writers = ", ".join(dict.fromkeys(plan.stands_in.values()))
        yield f"planned with a scripted {' and '.join(plan.stands_in)} in place of what {writers} will write"
    if plan.status == "planned" and plan.stage.trains:
        told = sized(plan.facts, False)
        wanted = ("steps_at_most", "memory_per_device", "memory_not_counted")
        yield from (f"{name.replace('_', ' ')}: {_plain(told[name])}" for name in wanted if told.get(name) is not None)


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cells(forecast: Mapping[str, Any], status: str) -> list[str]:
    if not forecast:
        return ["done" if status == "done" else "–", *["–"] * 5]
    disk = forecast["disk_bytes"]
    amounts = ("calls", "prompt_tokens", "completion_tokens", "cost", "hours")
    return [*(number(forecast[name]) for name in amounts), "–" if disk is None else readable_size(disk)]
