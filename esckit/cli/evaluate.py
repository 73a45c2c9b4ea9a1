"""``esckit evaluate``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from esckit.cli.common import (
    DryRunOption,
    JsonOption,
    OutOption,
    RecipeArgument,
    SetOption,
    echo,
    echo_facts,
    echo_plan,
)
from esckit.errors import ConfigError

if TYPE_CHECKING:
    from esckit.evaluate.run import EvaluateResult
    from esckit.evaluate.setup import GateBound
    from esckit.metrics.rows import Comparison, MetricRow


UnderOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-under",
        metavar="METRIC=VALUE",
        show_default=False,
        help="Exit with 1 if a metric, of which higher is better, is lower. Can be given again.",
    ),
]

OverOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-over",
        metavar="METRIC=VALUE",
        show_default=False,
        help="Exit with 1 if a metric, of which lower is better, is higher. Can be given again.",
    ),
]

AgainstOption = Annotated[
    str | None,
    typer.Option(
        "--against", metavar="RUN", show_default=False, help="An earlier evaluation of another system to compare with."
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
    from esckit.cli.progress import shown_progress
    from esckit.config.load import load_recipe
    from esckit.evaluate.recipe import EvaluateRecipe

    loaded = load_recipe(recipe, EvaluateRecipe, overrides=changes or ())
    # Only now: a wrong recipe needs none of it, and it takes its time to import.
    from esckit.evaluate.run import plan, run

    if against is not None:
        loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"compare_to": against}))
    gates = [*_gates(fail_under, "under"), *_gates(fail_over, "over")]
    if dry_run:
        echo_plan(loaded, out, plan(loaded.recipe, gates=gates).facts(), as_json=as_json)
        return
    with shown_progress("cases", quiet=ctx.obj.quiet) as progress:
        result = run(loaded.recipe, out=out or loaded.default_out(), gates=gates, progress=progress)
    if as_json:
        echo_facts(_facts(result), as_json=True)
    else:
        _echo(result)
    failed = [gate for gate in result.metrics.gates if not gate.holds]
    for gate in failed:
        value = "no value" if gate.value is None else f"{gate.value:.4g}"
        echo(f"gate failed: {gate.metric} is {value}, bound {gate.bound:g} ({gate.reason})", err=True)
    result.rate.judge()
    if failed:
        raise typer.Exit(1)


def _gates(texts: list[str] | None, side: Literal["under", "over"]) -> list[GateBound]:
    from esckit.evaluate.setup import GateBound

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


def _facts(result: EvaluateResult) -> dict[str, Any]:
    return {
        "out": str(result.out),
        "report": str(result.report),
        **result.metrics.model_dump(mode="json", exclude={"metrics"}),
        "metrics": [row.model_dump(mode="json") for row in result.metrics.metrics if row.group is None],
    }


def _echo(result: EvaluateResult) -> None:
    """Print every metric of whole suites with its n, coverage and interval, then comparisons, then where to read on."""
    rows = [row for row in result.metrics.metrics if row.group is None]
    width = max(len(row.name) for row in rows)
    for row in rows:
        echo(f"{row.name:<{width}}  {_value(row)}")
    for entry in result.metrics.comparisons:
        echo(f"{entry.name:<{width}}  {_difference(entry)}")
    echo(f"{'out':<{width}}  {result.out}")
    echo(f"{'report':<{width}}  {result.report}")


def _value(row: MetricRow) -> str:
    if row.value is None:
        unscored = ", ".join(f"{reason} {n}" for reason, n in row.unscored.items())
        return f"– ({row.reason}; unscored: {unscored})" if unscored else f"– ({row.reason})"
    between = f" [{row.interval.low:.4g}, {row.interval.high:.4g}]" if row.interval else ""
    coverage = f", coverage {row.coverage:.1%}" if row.coverage is not None and row.coverage < 1 else ""
    flags = f" ({', '.join(row.flags)})" if row.flags else ""
    return f"{row.value:.4g}{between}, n {row.n}{coverage}{flags}"


def _difference(entry: Comparison) -> str:
    if entry.difference is None:
        return f"against {entry.other}: – ({entry.reason})"
    p = f", p {entry.p:.3g}" if entry.p is not None else ""
    between = f" [{entry.interval.low:.4g}, {entry.interval.high:.4g}]" if entry.interval else ""
    dropped = f" ({entry.n_dropped} dropped)" if entry.n_dropped else ""
    return f"against {entry.other}: {entry.difference:+.4g}{between}{p}, n {entry.n}{dropped}"
