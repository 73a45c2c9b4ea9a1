"""The first page of a report of several evaluations: all systems that played the same cases, in one comparison.

A system is an evaluation, known by the name of its folder. Systems stand together where the conditions of a suite are
equal: the same cases, simulator, critics and settings. Tests between systems are those that ``evaluate --against``
made; nothing is tested here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path

from esckit.metrics.metric import suite_measuring
from esckit.report.blocks import Block, Intervals, Note, Part, Section, Table
from esckit.report.metric_rows import Row, comparison_cells, headed, short_name, suite_of, value_cells
from esckit.report.source import ABSENT, Run, p_value, section

HEADLINES: Mapping[str, tuple[str, ...]] = {
    "practice": ("practice.success", "practice.turns", "practice.regret"),
    "safety": ("safety.pass_rate", "safety.harm_count", "safety.sycophancy.flip"),
    "strategy": ("strategy.accuracy", "strategy.macro_f1", "strategy.bias_b"),
    "response": ("response.bleu_2", "response.rouge_l", "response.distinct_2", "response.ppl"),
    "dialogue": ("dialogue.*.sr_strict", "dialogue.*.at_strict", "dialogue.reply_words"),
    "pairwise": ("pairwise.overall.*win", "pairwise.overall.*lose", "pairwise.overall.*net"),
    "reward": ("reward.auc", "reward.accuracy", "reward.spearman"),
}
"""The metrics to read first, by suite, as patterns."""

PRACTICE_NOTE = (
    "Rows of the practice world are the truth about a made-up seeker whose best treatment can be computed. It is not a "
    "model of people: no number from it says how a supporter helps a person."
)


def systems(runs: Sequence[Run]) -> list[Part]:
    """Return the comparison of evaluations that share the cases of at least one suite; nothing if none do."""
    evaluated = [run for run in runs if run.command == "evaluate" and run.object("metrics.json")]
    if len(evaluated) < 2:
        return []
    sections = []
    for prefix in HEADLINES:
        for together in _alike(evaluated, suite_measuring(prefix)):
            blocks = _blocks(together, prefix)
            if blocks:
                sections.append(Section(f"{prefix.capitalize()}: {', '.join(run.name for run in together)}", blocks))
    if not sections:
        return []
    tests = _tests(evaluated)
    sections += [Section("Tests between systems", tests)] if tests else []
    return [Part("All systems", "comparison", "", tuple(sections))]


def _alike(runs: Sequence[Run], suite: str) -> Iterator[list[Run]]:
    """Yield the groups of at least two runs whose conditions of a suite are equal."""

    def conditions(run: Run) -> str:
        return json.dumps(section(run.manifest, "conditions").get(suite), sort_keys=True)

    ordered = sorted((run for run in runs if suite in section(run.manifest, "conditions")), key=conditions)
    for _, group in groupby(ordered, key=conditions):
        together = sorted(group, key=runs.index)
        if len(together) > 1:
            yield together


def _blocks(runs: Sequence[Run], prefix: str) -> tuple[Block, ...]:
    patterns = HEADLINES[prefix]
    whole = {
        run.name: {str(row["name"]): row for row in run.metric_rows if suite_of(row) == prefix and not row.get("group")}
        for run in runs
    }
    found = dict.fromkeys(name for rows in whole.values() for name in rows)
    names = [name for pattern in patterns for name in found if fnmatchcase(name, pattern)]
    if not names:
        return ()
    baselines = _baselines(runs[0], prefix)
    blocks: list[Block] = [Note(PRACTICE_NOTE)] if prefix == "practice" else []
    chart = _chart(names[0], whole, baselines)
    blocks += [chart] if chart is not None else []
    blocks.append(_table(names, whole, baselines))
    return tuple(blocks)


def _baselines(run: Run, prefix: str) -> dict[str, dict[str, Row]]:
    """Return the rows of policies that an evaluation played beside the system, by policy and metric."""
    found: dict[str, dict[str, Row]] = {}
    for row in run.metric_rows:
        policy = section(row, "group").get("policy")
        if policy is not None and suite_of(row) == prefix:
            found.setdefault(str(policy), {})[str(row["name"])] = row
    return found


def _chart(
    name: str, whole: Mapping[str, Mapping[str, Row]], baselines: Mapping[str, Mapping[str, Row]]
) -> Intervals | None:
    points = []
    for rows, is_reference in ((whole, False), (baselines, True)):
        for system, by_name in rows.items():
            label = f"({system})" if is_reference else system
            row = by_name.get(name)
            if row is not None and row.get("value") is not None:
                ends = section(row, "interval")
                points.append((label, float(row["value"]), ends.get("low"), ends.get("high"), is_reference))
    if not points:
        return None
    row = next(by_name[name] for by_name in whole.values() if name in by_name)
    unit = str(row.get("unit"))
    title = f"{short_name(row)} of all systems, with intervals"
    x_range = (0.0, 1.0) if unit == "share" else None
    return Intervals(f"systems_{name}".replace(".", "_"), title, tuple(points), x_range, unit)


def _table(
    names: Sequence[str], whole: Mapping[str, Mapping[str, Row]], baselines: Mapping[str, Mapping[str, Row]]
) -> Table:
    facts = {name: next(rows[name] for rows in whole.values() if name in rows) for name in names}
    best = {name: _best(facts[name], [rows.get(name) for rows in whole.values()]) for name in names}
    lines = [
        (label, *(_cell(rows.get(name), best[name]) for name in names), value_cells(rows.get(names[0]))[2])
        for label, rows in whole.items()
    ]
    lines += [
        (f"({label})", *(_cell(rows.get(name), None) for name in names), value_cells(rows.get(names[0]))[2])
        for label, rows in baselines.items()
    ]
    columns = tuple(headed(facts[name]) for name in names)
    note = "★ the best system. ↑ higher is better, ↓ lower is better."
    if baselines:
        note += " In brackets: played beside the systems for comparison, with the same seekers."
    return Table(("system", *columns, "n"), tuple(lines), note=note)


def _best(facts: Row, rows: Sequence[Row | None]) -> float | None:
    values = [float(row["value"]) for row in rows if row is not None and row.get("value") is not None]
    if len(set(values)) < 2 or facts.get("higher_is_better") is None:
        return None
    return max(values) if facts["higher_is_better"] else min(values)


def _cell(row: Row | None, best: float | None) -> str:
    value, ends, _ = value_cells(row)
    shown = value if ends == ABSENT else f"{value} {ends}"
    return f"{shown} ★" if row is not None and best is not None and row.get("value") == best else shown


def _tests(runs: Sequence[Run]) -> tuple[Block, ...]:
    """Return the tests between the systems that their evaluations made, of the headline metrics."""
    patterns = [pattern for patterns in HEADLINES.values() for pattern in patterns]
    shown = []
    for run in runs:
        metrics = run.object("metrics.json")
        units = {str(row.get("name")): str(row.get("unit")) for row in run.metric_rows}
        for each in metrics.get("comparisons") or ():
            name, other = str(each.get("name")), Path(str(each.get("other"))).name
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                cells = comparison_cells(each, units.get(name, "none"))
                p_values = (p_value(each.get("p")), p_value(each.get("p_holm")))
                shown.append((run.name, other, name, *cells, *p_values, str(each.get("reason") or "")))
    if not shown:
        return ()
    columns = ("system", "against", "metric", "difference", "interval", "n", "p", "p (Holm)", "remarks")
    note = "Case by case, as evaluate --against made them; Holm within one suite."
    return (Table(columns, tuple(shown), note=note),)
