"""A comparison as a table for a paper: Markdown, LaTeX (booktabs), CSV or JSON.

Markdown and LaTeX show the same grid: a row per system, a column per metric; what a number needs to be read stands in
the caption, or in numbered notes. CSV has a column for each part of a value, JSON all of it; both are not rounded.
Published values stand below a rule, are never tested and never the best.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from esckit.metrics.metric import suite_measuring
from esckit.records import dump_json
from esckit.report.compared import HIGHLY_SIGNIFICANT, PRACTICE_NOTE, SIGNIFICANT, Compared, System, adjustment
from esckit.report.evaluation import FLAGS, SUITE_NOTES
from esckit.report.grid import Cell, Grid, Line, Notes, latex, markdown
from esckit.report.metric_rows import ReferenceTable, Row, is_same_test, load_references, plain_name, suite_of
from esckit.report.source import ABSENT, measured, number, plain, section
from esckit.text import without_formulas

Form = Literal["md", "latex", "csv", "json"]

SYSTEM_ROLES = ("supporter", "strategist")
"""Whose calls are the system's own; the others play its surroundings or judge it."""

COSTS: Mapping[str, str] = {"calls": "calls", "tokens": "tokens", "cost": "money", "seconds": "seconds"}
"""What a system's own roles used, by name, with the heading of the column."""

_METHODS = {"wilson": "Wilson", "bootstrap": "bootstrap over dialogues", "jackknife": "jackknife over dialogues"}

_SUITE_NOTES = {"practice": PRACTICE_NOTE, **SUITE_NOTES}

_ARROWS = {True: "↑", False: "↓", None: ""}


def render_table(
    found: Compared, form: Form, *, cost: bool = False, published: bool = False, digits: int | None = None
) -> str:
    """Return a comparison as a text that ends with a line end.

    Args:
        found: The comparison.
        form: What to write.
        cost: Also show what the systems themselves used.
        published: Also show published values of the same test, and published tables of other tests apart.
        digits: Decimals of every value in Markdown and LaTeX; None takes as many as each unit deserves.
    """
    if form == "json":
        return dump_json(as_data(found, cost=cost, published=published), indent=2) + "\n"
    if form == "csv":
        return _csv(found, cost=cost, published=published)
    grids = [_grid(found, cost=cost, published=published, digits=digits)]
    grids += [_other_test(table) for table in (_published(found)[1] if published else ())]
    if form == "latex" and is_wide(found):
        return f"% {too_wide(found)}\n" + "\n".join(map(latex, grids))
    return "\n".join(map(markdown if form == "md" else latex, grids))


_MOST_COLUMNS = 6
"""Metrics with intervals that fit beside each other across a page."""


def is_wide(found: Compared) -> bool:
    """Return whether a comparison has more metrics than fit on a page."""
    return len(found.metrics) > _MOST_COLUMNS


def too_wide(found: Compared) -> str:
    """Return what to do about a table that fits on no page."""
    return f"{len(found.metrics)} metrics are wider than a page: choose about {_MOST_COLUMNS} with --metrics NAMES"


# ---------------------------------------------------------------- the grid


def _grid(found: Compared, *, cost: bool, published: bool, digits: int | None) -> Grid:
    notes = Notes()
    bases = {name: _shared_n(found, name) for name in found.metrics}
    n = bases[found.metrics[0]] if len(set(bases.values())) == 1 else None
    decimals = {name: _decimals(found, name) if digits is None else digits for name in found.metrics}
    columns = [_heading(found, name, None if n is not None else bases[name]) for name in found.metrics]
    columns += list(COSTS.values()) if cost else []
    blocks: list[tuple[Line, ...]] = []
    for is_reference in (False, True):
        rows: list[Line] = []
        for system in (each for each in found.systems if each.is_reference is is_reference):
            cells = [
                _cell(found, system, name, notes, decimals[name], shows_n=bases[name] is None) for name in found.metrics
            ]
            cells += [Cell(number(used)) for used in own_cost(system).values()] if cost else []
            rows.append((system.name, (), tuple(cells)))
        blocks.append(tuple(rows))
    if published:
        blocks.append(tuple(_published_lines(found, notes, n_more=len(COSTS) if cost else 0)))
    caption = [*_caption(found, n), *([COST_SENTENCE] if cost else []), *found.remarks]
    return Grid(("system", *columns), tuple(filter(None, blocks)), tuple(caption), tuple(notes.texts))


COST_SENTENCE = (
    "Calls, tokens, money and seconds are what the supporter and the strategist used in the evaluation; simulators, "
    "critics, judges and trainings are not counted."
)


def _heading(found: Compared, name: str, n: int | None) -> str:
    """Return a metric's plain name, its unit, direction and n."""
    row = found.facts(name)
    unit = {"share": "%", "nats": "nats"}.get(str(row.get("unit")), "")
    pieces = (
        plain_name(name),
        f"({unit})" if unit else "",
        _ARROWS[row.get("higher_is_better")],
        f"n {number(n)}" if n is not None else "",
    )
    return " ".join(filter(None, pieces))


def _cell(found: Compared, system: System, name: str, notes: Notes, digits: int | None, *, shows_n: bool) -> Cell:
    row = system.rows.get(name)
    if row is None:
        return Cell(ABSENT, notes=(notes.number("Not measured for this row."),))
    reason = str(row.get("reason") or "")
    reason = f"no interval: {reason}" if reason and row.get("value") is not None else reason
    texts = [_sentence(reason)] if reason else []
    if row.get("n_unscored"):
        texts.append(f"{number(row['n_unscored'])} of {number(row['n'] + row['n_unscored'])} cases unscored.")
    texts += [_flag(flag) for flag in row.get("flags") or () if flag not in _shared_flags(found)]
    shown = _value(row.get("value"), row, digits)
    ends = section(row, "interval")
    between = "" if not ends else f"[{_value(ends.get('low'), row, digits)}, {_value(ends.get('high'), row, digits)}]"
    if shows_n:
        between = f"{between} n {number(row.get('n'))}".strip()
    marks = (found.mark(system, name), found.is_best(system, name))
    return Cell(shown, between, *marks, notes=tuple(notes.number(text) for text in texts))


def _decimals(found: Compared, name: str) -> int | None:
    """Return the decimals of a column, in which some numbers may be whole; None leaves each number to itself."""
    rows = [each.rows[name] for each in found.systems if name in each.rows]
    numbers = [
        value for row in rows for value in (row.get("value"), *(section(row, "interval").get(end) for end in _ENDS))
    ]
    shown = [_value(value, rows[0], None) for value in numbers if value is not None]
    if any("e" in text for text in shown):
        return None
    return max((len(text.partition(".")[2]) for text in shown), default=0) or None


_ENDS = ("low", "high")


def _value(value: float | None, row: Row, digits: int | None) -> str:
    unit = str(row.get("unit"))
    if value is None or digits is None:
        return measured(value, unit).removesuffix(" %")
    return f"{100 * value if unit == 'share' else value:.{digits}f}".replace("-", "−")


def _flag(name: str) -> str:
    return _sentence(FLAGS.get(name, name))


def _shared_n(found: Compared, name: str) -> int | None:
    """Return the number of cases of a metric if it is the same in all rows."""
    counts = {each.rows[name].get("n") for each in found.systems if name in each.rows}
    return counts.pop() if len(counts) == 1 else None


def _shared_flags(found: Compared) -> set[str]:
    """Return the flags that every value carries, which the caption names once."""
    rows = [row for each in found.systems for name, row in each.rows.items() if name in found.metrics]
    return set.intersection(*(set(map(str, row.get("flags") or ())) for row in rows))


def _caption(found: Compared, n: int | None) -> Iterator[str]:
    recipe = found.systems[0].run.recipe
    data = section(recipe, "data")
    where = [plain(data.get("path")), f"split {plain(data.get('split'))}"] if data else []
    where += [f"n = {number(n)}"] if n is not None else []
    if found.is_paired:
        yield f"Systems on the same cases ({', '.join(where)})." if where else "Systems on the same cases."
    else:
        yield "Runs side by side, whose cases and conditions may differ: not compared, not tested, no best value."
    rows = [row for each in found.systems for name, row in each.rows.items() if name in found.metrics]
    ends = [section(row, "interval") for row in rows if row.get("interval")]
    if ends:
        levels = " and ".join(sorted({f"{100 * float(each['level']):g} %" for each in ends}))
        methods = ", ".join(_METHODS.get(name, name) for name in sorted({str(each["method"]) for each in ends}))
        yield f"In brackets: {levels} intervals ({methods}), which cover the choice of cases, not training seeds."
    if any(found.is_best(system, name) for system in found.systems for name in found.metrics):
        yield "Bold: the best system of a column, before rounding."
    if found.family:
        yield (
            f"† p < {SIGNIFICANT:g}, ‡ p < {HIGHLY_SIGNIFICANT:g} against {found.baseline} (paired, two-sided tests on "
            f"the cases that both scored; {adjustment(found.family, 'this table')})."
        )
    elif found.is_paired:
        yield "No system was tested against another."
    if any(system.is_reference for system in found.systems):
        yield "Systems in parentheses met the same seekers and stand for reference: not tested, never bold."
    yield from (f"Of every value: {FLAGS.get(flag, flag)}." for flag in sorted(_shared_flags(found)))
    suites = {suite_of(found.facts(name)) for name in found.metrics}
    yield from (note for suite, note in _SUITE_NOTES.items() if suite in suites)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


# ---------------------------------------------------------------- cost and published values


def own_cost(system: System) -> dict[str, float | None]:
    """Return what a system's own roles used in its evaluation; None is unknown, and a reference row has no cost."""
    whole = section(system.run.manifest, "spent")
    roles = section(whole, "roles")
    spent = [section(roles, role) for role in SYSTEM_ROLES if role in roles]
    if system.is_reference or not spent:
        is_free = not system.is_reference and whole.get("calls") == 0  # no model was asked anything
        return dict.fromkeys(COSTS, 0.0 if is_free else None)

    def total(*names: str) -> float | None:
        values = [role.get(name) for role in spent for name in names]
        return None if any(value is None for value in values) else float(sum(values))  # type: ignore[arg-type]

    tokens = total("prompt_tokens", "completion_tokens")
    return {"calls": total("calls"), "tokens": tokens, "cost": total("cost"), "seconds": total("seconds")}


def _published(found: Compared) -> tuple[list[ReferenceTable], list[ReferenceTable]]:
    """Return the published tables of the same test, and those of other tests that the evaluations show."""
    recipe, same, other = found.systems[0].run.recipe, [], []
    suites = {suite_measuring(name) for name in found.metrics}
    named = {name for each in found.systems for name in each.run.object("metrics.json").get("references") or ()}
    for table in load_references().tables:
        if table.suite not in suites:
            continue
        if is_same_test(table, recipe) and any(row.metric in found.metrics for row in table.rows):
            same.append(table)
        elif table.id in named:
            other.append(table)
    return same, other


def _published_values(found: Compared) -> Iterator[tuple[ReferenceTable, str, dict[str, float]]]:
    """Yield published tables of the same test: the table, who it speaks of, and what it prints by our metric."""
    for table in _published(found)[0]:
        for place, source in enumerate(table.columns):
            printed = {row.metric: row.values[place] for row in table.rows if row.metric in found.metrics}
            values = {str(name): value for name, value in printed.items() if value is not None}
            if values:
                yield table, source, values


def _published_lines(found: Compared, notes: Notes, *, n_more: int) -> Iterator[Line]:
    caveats = load_references().caveats
    for table, source, values in _published_values(found):
        texts = [f"{table.source}: published, not tested here.", *(_sentence(caveats[name]) for name in table.caveats)]
        shown = [f"{values[name]:g}" if name in values else ABSENT for name in found.metrics] + [ABSENT] * n_more
        yield f"{source} (published)", tuple(map(notes.number, texts)), tuple(map(Cell, shown))


def _other_test(table: ReferenceTable) -> Grid:
    rows = tuple(
        (row.name, (), tuple(Cell(ABSENT if value is None else f"{value:g}") for value in row.values))
        for row in table.rows
    )
    known = load_references().caveats
    caption = (
        f"{table.title}. Source: {table.source}. Another test than that of our systems: not to be compared with them.",
    )
    return Grid(
        ("as published", *table.columns), (rows,), caption, tuple(_sentence(known[x]) for x in table.caveats), table.id
    )


# ---------------------------------------------------------------- CSV and JSON


def as_data(found: Compared, *, cost: bool = False, published: bool = False) -> dict[str, Any]:
    """Return a comparison as plain data; nothing is rounded, and what is unknown is null."""
    systems = [
        {
            "name": each.name,
            "run": str(each.run.path),
            "policy": each.policy,
            "metrics": {name: _data_of(found, each, name) for name in found.metrics},
            **({"cost": own_cost(each)} if cost else {}),
        }
        for each in found.systems
    ]
    shown: dict[str, Any] = {}
    if published:
        same, other = _published(found)
        known = load_references().caveats
        shown["published"] = [
            {
                **table.model_dump(mode="json"),
                "is_same_test": table in same,
                "caveats": [known[name] for name in table.caveats],
            }
            for table in (*same, *other)
        ]
    return {
        "schema": "esckit.table/1",
        "metrics": list(found.metrics),
        "baseline": found.baseline,
        "adjustment": {"method": "holm", "tests": found.family} if found.family else None,
        "remarks": list(found.remarks),
        "systems": systems,
        **shown,
    }


def _data_of(found: Compared, system: System, name: str) -> dict[str, Any] | None:
    row, test = system.rows.get(name), found.tests.get((system.name, name))
    if row is None:
        return None
    facts = ("value", "unit", "higher_is_better", "n", "n_unscored", "interval", "reason", "flags")
    against = None if test is None else test.model_dump(mode="json", exclude={"name"})
    return {**{key: row.get(key) for key in facts}, "is_best": found.is_best(system, name), "against_baseline": against}


def _csv(found: Compared, *, cost: bool, published: bool) -> str:
    """Return one row per system; of each metric its value, interval, n, difference, p and reason in columns."""
    parts = ("", "_low", "_high", "_n", "_difference", "_p", "_p_holm", "_reason")
    columns = ["system", "kind", *(f"{name}{part}" for name in found.metrics for part in parts)]
    columns += [f"cost_{name}" for name in (COSTS if cost else ())]
    rows: list[Mapping[str, Any]] = [{name: name for name in columns}]
    for system in found.systems:
        line: dict[str, Any] = {"system": system.name, "kind": "reference" if system.is_reference else "system"}
        for name in found.metrics:
            row, test = system.rows.get(name, {}), found.tests.get((system.name, name))
            ends = section(row, "interval")
            parted = (row.get("value"), ends.get("low"), ends.get("high"), row.get("n"))
            against = (None, None, None) if test is None else (test.difference, test.p, test.p_holm)
            whole = (*parted, *against, row.get("reason") if row else "not measured")
            line |= {f"{name}{part}": value for part, value in zip(parts, whole, strict=True)}
        line |= {f"cost_{name}": value for name, value in own_cost(system).items()} if cost else {}
        rows.append(line)
    for table, source, values in _published_values(found) if published else ():
        # As in the other rows, shares are in [0, 1]; they are printed times 100.
        units = {name: found.facts(name).get("unit") for name in values}
        shown = {name: value / 100 if units[name] == "share" else value for name, value in values.items()}
        rows.append({"system": source, "kind": f"published: {table.source}", **shown})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        cells = (row.get(name) for name in columns)
        writer.writerow([without_formulas(cell) if isinstance(cell, str) else cell for cell in cells])
    return text.getvalue()
