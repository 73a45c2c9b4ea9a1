"""``esckit table``: several evaluations as one table for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from esckit.cli.common import NamedRunsArgument, echo
from esckit.errors import ConfigError, DataError
from esckit.registry import did_you_mean, expand_home

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from esckit.report.source import Run


def table(
    runs: NamedRunsArgument,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            show_default=False,
            help="Columns: names of metrics with commas between, or patterns such as 'response.*'; "
            "by default the headline metrics of every suite.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="The system that the others are tested against."),
    ] = None,
    form: Annotated[
        Literal["md", "latex", "csv", "json"], typer.Option("--to", help="latex needs the package booktabs.")
    ] = "md",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default=False, help="Write the table there, not to stdout.")
    ] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Also show calls, tokens, money and seconds of the systems themselves.")
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Also show published values, apart and with their caveats.")
    ] = False,
    digits: Annotated[
        int | None, typer.Option(min=0, max=8, show_default=False, help="Decimals of every value (md and latex).")
    ] = None,
    unpaired: Annotated[
        bool,
        typer.Option("--unpaired", help="Show runs side by side that met other cases or conditions; without tests."),
    ] = False,
) -> None:
    """Put several evaluations into one table: a row per system, a column per metric, each value with its interval.

    The best value of a column is bold. With --baseline every other system is tested against this one, on the cases that
    both scored, with p-values adjusted over the whole table (Holm). Runs that met other cases, or were judged under
    other conditions, are refused with the fields that differ. Calls no model.

    Try it: esckit table ours=runs/evaluate-aflow runs/evaluate-base --baseline evaluate-base --to latex
    """
    from esckit.evaluate.paired import require_alike, with_tests
    from esckit.records import write_atomic
    from esckit.report.compared import compared
    from esckit.report.table import is_wide, render_table, too_wide

    named = named_evaluations(runs)
    patterns = [part.strip() for part in metrics.split(",")] if metrics else None
    chosen = _columns(named, patterns) if patterns else _shared_headlines(named)
    if unpaired and baseline is not None:
        raise ConfigError("--unpaired with --baseline", expected="one of them: unpaired runs are not tested")
    if not unpaired:
        require_alike(named, chosen, hint="--unpaired shows them side by side, without tests")
    found = compared(named, chosen, is_paired=not unpaired)
    found = with_tests(found, baseline) if baseline is not None else found
    text = render_table(found, form, cost=cost, published=published, digits=digits)
    if form == "latex" and is_wide(found):
        echo(f"note: {too_wide(found)}", err=True)
    if out is None:
        echo(text, nl=False)
    else:
        write_atomic(out, text)
        echo(str(out))


def named_evaluations(words: Sequence[str], *, quotes: bool = False) -> dict[str, Run]:
    """Return the finished evaluations of a command line by name: the one given, else the folder's own.

    Args:
        words: ``RUN`` or ``NAME=RUN``.
        quotes: Texts of their dialogues may be shown.

    Raises:
        ConfigError: If two have one name.
        DataError: If one is no finished evaluation.
    """
    from esckit.report.source import open_run

    found: dict[str, Run] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or Path(word).exists():
            name, path = "", word
        run = open_run(Path(expand_home(path)), quotes=quotes)
        if run.command != "evaluate":
            raise DataError(f"a run of {run.command!r}", path=path, expected="one of 'evaluate'")
        if not run.metric_rows:
            hint = "Give its 'esckit evaluate' command again: it goes on where it stopped"
            raise DataError("an evaluation without metrics.json", path=path, expected="a finished one", hint=hint)
        name = name.strip() or run.name
        if name in found:
            hint = "Give names, such as ours=runs/a base=runs/b"
            raise ConfigError(f"two runs called {name!r}", expected="every system once", hint=hint)
        found[name] = run
    return found


def _columns(runs: Mapping[str, Run], patterns: Sequence[str]) -> list[str]:
    """Return the metrics that the user asked for.

    Raises:
        ConfigError: If no run has a metric that matches.
    """
    from esckit.report.compared import matching, whole_rows

    known = dict.fromkeys(name for run in runs.values() for name in whole_rows(run))
    for pattern in patterns:
        if not matching([pattern], runs.values()):
            hint = did_you_mean(pattern, known) or f"They have {', '.join(known)}"
            raise ConfigError(f"no metric {pattern!r} in these runs", expected="the name of a metric", hint=hint)
    return matching(patterns, runs.values())


def _shared_headlines(runs: Mapping[str, Run]) -> list[str]:
    """Return the headline metrics that all runs have.

    Raises:
        DataError: If there is none.
    """
    from esckit.report.compared import headline_names, whole_rows

    found = [whole_rows(run) for run in runs.values()]
    shared = [name for name in headline_names(list(runs.values())) if all(name in rows for rows in found)]
    if not shared:
        suites = "; ".join(f"{name}: {', '.join(run.object('metrics.json')['suites'])}" for name, run in runs.items())
        raise DataError(f"no suite in common ({suites})", expected="evaluations with a suite in common")
    return shared
