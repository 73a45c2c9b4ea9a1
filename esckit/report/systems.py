"""The first page of a report of several evaluations: all systems that met the same cases, in one comparison.

Systems stand together where the conditions of a suite are equal: the same cases, simulator, critics and settings. The
comparison is the one of ``esckit table`` (:mod:`esckit.report.compared`); here it becomes tables and charts of a page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, groupby

from esckit.metrics.metric import suite_measuring
from esckit.report.blocks import Block, Intervals, Note, Part, Section, Table
from esckit.report.compared import (
    GOLD_LABELS,
    PRACTICE_NOTE,
    Compared,
    System,
    adjustment,
    compared,
    conditions_of,
    headlines,
    matching,
    value_of,
)
from esckit.report.metric_rows import comparison_cells, headed, plain_name, value_cells
from esckit.report.source import ABSENT, Run, p_value, section

Tested = Callable[[Compared], Compared]
"""Adds paired tests to a comparison."""


def systems(runs: Sequence[Run], tested: Tested | None = None) -> list[Part]:
    """Return the comparison of evaluations that share the cases of at least one suite; nothing if none do.

    Args:
        runs: Runs of any command.
        tested: What tests the systems; None shows their values without tests.
    """
    evaluated = [run for run in runs if run.command == "evaluate" and run.object("metrics.json")]
    sections = []
    for prefix, names in headlines(evaluated) if len(evaluated) > 1 else ():
        for together in _alike(evaluated, names):
            found = compared({run.name: run for run in together}, matching(names, together))
            found = tested(found) if tested is not None else found
            title = f"{prefix.capitalize()}: {', '.join(run.name for run in together)}"
            sections.append(Section(title, _blocks(found, prefix)))
    return [Part("All systems", "comparison", "", tuple(sections))] if sections else []


def _alike(runs: Sequence[Run], metrics: Sequence[str]) -> Iterator[list[Run]]:
    """Yield the groups of at least two runs that have some of the metrics under equal conditions."""
    suite = suite_measuring(metrics[0])

    def conditions(run: Run) -> str:
        found = conditions_of(run, metrics)
        unlabelled = {name: value for name, value in section(found, suite).items() if name != GOLD_LABELS}
        return json.dumps({**found, suite: unlabelled}, sort_keys=True)

    able = [run for run in runs if suite in section(run.manifest, "conditions") and matching(metrics, [run])]
    for _, group in groupby(sorted(able, key=conditions), key=conditions):
        by_labels: dict[object, list[Run]] = {}
        for run in sorted(group, key=runs.index):
            by_labels.setdefault(section(conditions_of(run, metrics), suite).get(GOLD_LABELS), []).append(run)
        if len(by_labels.keys() - {None}) <= 1:
            # Runs of an earlier version do not tell their labels; a remark says so.
            by_labels = {None: sorted(chain(*by_labels.values()), key=runs.index)}
        yield from (together for together in by_labels.values() if len(together) > 1)


def _blocks(found: Compared, prefix: str) -> tuple[Block, ...]:
    blocks: list[Block | None] = [
        Note(PRACTICE_NOTE) if prefix == "practice" else None,
        _chart(found),
        _table(found),
        *map(Note, found.remarks),
        _tests(found),
    ]
    return tuple(block for block in blocks if block is not None)


def _chart(found: Compared) -> Intervals | None:
    name = found.metrics[0]
    points = []
    for system in found.systems:
        value, ends = value_of(system, name), section(system.rows.get(name, {}), "interval")
        if value is not None:
            points.append((system.name, value, ends.get("low"), ends.get("high"), system.is_reference))
    if not points:
        return None
    facts = found.facts(name)
    unit = str(facts.get("unit"))
    title = f"{plain_name(name)}: all systems, with intervals"
    x_range = (0.0, 1.0) if unit == "share" else None
    return Intervals(f"systems_{name}".replace(".", "_"), title, tuple(points), x_range, unit)


def _table(found: Compared) -> Table:
    names = found.metrics
    lines = tuple(
        (
            system.name,
            *(_cell(found, system, name) for name in names),
            value_cells(system.rows.get(names[0]))[2],
        )
        for system in found.systems
    )
    notes = ["★ the best system. ↑ higher is better, ↓ lower is better."]
    if any(system.is_reference for system in found.systems):
        notes.append("In parentheses: played beside the systems for comparison, with the same seekers.")
    notes += [sentence] if (sentence := marks_sentence(found)) else []
    return Table(("system", *(headed(found.facts(name)) for name in names), "n"), lines, note=" ".join(notes))


def marks_sentence(found: Compared) -> str:
    """Return how the marks of a comparison were found; nothing without a test."""
    if not found.family:
        return ""
    return (
        f"† p < 0.05, ‡ p < 0.01 against {found.baseline}: two-sided tests on the cases that both scored, dialogue by "
        f"dialogue, {adjustment(found.family, 'this table')}."
    )


def _cell(found: Compared, system: System, name: str) -> str:
    value, ends, _ = value_cells(system.rows.get(name))
    shown = f"{value}{found.mark(system, name)}" + ("" if ends == ABSENT else f" {ends}")
    return f"{shown} ★" if found.is_best(system, name) else shown


def _tests(found: Compared) -> Table | None:
    """Return every test of a comparison, folded."""
    shown = []
    for (system, name), each in found.tests.items():
        cells = comparison_cells(each.model_dump(), str(found.facts(name).get("unit")))
        p_values = (p_value(each.p), p_value(each.p_holm))
        shown.append((system, name, *cells, each.test or ABSENT, *p_values, each.reason or ""))
    if not shown:
        return None
    columns = ("system", "metric", "difference", "interval", "n", "test", "p", "p (Holm)", "remarks")
    return Table(columns, tuple(shown), title=f"Tests against {found.baseline}", folded=True)
