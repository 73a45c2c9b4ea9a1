"""The report of an ``evaluate`` run: every value with n, coverage and interval; safety first; references beside."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from esckit.report.blocks import ABSENT, Block, Heat, Lines, Note, Section, Series, Table
from esckit.report.explorers import episodes_explorer, episodes_of
from esckit.report.flows import flow_of, transitions
from esckit.report.numbers import interval, measured, number, p_value, plain, share, signed
from esckit.report.references import Reference, reference_blocks
from esckit.report.source import Run, section
from esckit.report.spread import mean_and_quartiles

_ARROWS = {True: "↑", False: "↓", None: ""}
_FLAGS = {
    "low_coverage": "fewer cases were scored than asked for: gates on it fail",
    "small_sample": "fewer than 30 dialogues",
    "cross_family": "trained and tested under split schemes of different families",
    "overlap": "some test dialogues were seen in training",
    "self_judged": "one model both judges and plays",
    "position_bias": "the judge prefers a position",
    "smoothed": "pseudo-counts were added",
}
_MOST_COUNTS = 2
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
SAFETY_NOTE = (
    "A small screening in our own wording (crisis probes, sycophancy probes where they were run), no clinical "
    "validation: passing it does not show that a system is safe."
)

Row = Mapping[str, Any]


class HarmfulReply(NamedTuple):
    """A reply to a crisis probe that may make harm easier."""

    probe: str
    category: str
    text: str


def evaluation_sections(
    run: Run, other: Run | None = None, references: Sequence[Reference] = (), harmful: Sequence[HarmfulReply] = ()
) -> list[Section]:
    """Return the sections of an evaluation in reading order."""
    metrics = run.json("metrics.json")
    if not isinstance(metrics, Mapping):
        return [Section("Results", (Note("The evaluation is not finished: it has no metrics.json.", "warning"),))]
    rows = [row for row in metrics.get("metrics") or () if isinstance(row, Mapping)]
    suites = list(dict.fromkeys(suite_of(row) for row in rows))
    suites.sort(key=lambda suite: suite != "safety")
    named = [reference for reference in references if reference.id in (metrics.get("references") or ())]
    sections = [_suite(run, suite, rows, harmful) for suite in suites]
    sections[1 if "safety" in suites else 0 : 0] = _gates(metrics)
    sections += _comparisons(metrics)
    if named:
        sections.append(Section("Published numbers", tuple(reference_blocks(named, rows, run.recipe))))
    transcripts = episodes_explorer(run, other)
    if transcripts is not None:
        sections.append(Section("Dialogues", (*_played(run), transcripts)))
    return sections


def suite_of(row: Row) -> str:
    """Return the suite that a metric belongs to."""
    return str(row.get("name", "")).partition(".")[0]


def _suite(run: Run, suite: str, rows: Sequence[Row], harmful: Sequence[HarmfulReply]) -> Section:
    mine = [row for row in rows if suite_of(row) == suite]
    whole = [row for row in mine if not row.get("group")]
    blocks: list[Block] = [Note(SAFETY_NOTE), *_harm(harmful)] if suite == "safety" else []
    # What every row carries is said once.
    shared = frozenset.intersection(*(frozenset(map(str, row.get("flags") or ())) for row in whole or mine))
    if whole:
        blocks.append(metric_table(whole, title=_conditions(run, suite), shared=shared))
    for flag in sorted({str(flag) for row in mine for flag in row.get("flags") or ()}):
        where = "every row" if flag in shared else "where it stands"
        blocks.append(Note(f"{flag} ({where}): {_FLAGS.get(flag, 'see the documentation')}.", "warning"))
    blocks += _by_turn([row for row in mine if "turn" in (row.get("group") or {})])
    blocks += _by_group([row for row in mine if row.get("group") and "turn" not in row["group"]], shared)
    if suite == "strategy":
        blocks += _confusion(run, mine)
    if suite == "reward":
        blocks += _calibration([row for row in mine if "bin" in (row.get("group") or {})])
    return Section(f"{suite.replace('_', ' ').capitalize()}", tuple(blocks))


def _conditions(run: Run, suite: str) -> str:
    """Return what the values of a suite depend on, so that they are not compared across it."""
    suite, _, expanded = suite.partition("_")
    settings, models = section(section(run.recipe, "settings"), suite), section(run.recipe, "models")
    pieces = []
    if suite == "strategy" and settings:
        pieces.append("main line of search trees" if expanded else f"gold labels by {settings.get('unit')}")
        pieces += ["openings included"] if settings.get("include_openings") else []
        pieces += [f"without {plain(settings['exclude'])}"] if settings.get("exclude") else []
    elif suite == "response" and settings:
        pieces.append(f"strategy told: {settings.get('strategy')}")
        if models.get("scorer"):
            pieces.append(f"ppl under {run.manifest.get('scorer') or section(models, 'scorer').get('backbone')}")
    elif suite == "dialogue" and settings:
        pieces += [f"strategy told: {settings.get('strategy')}", f"at most {settings.get('max_turns')} turns"]
    elif suite == "pairwise" and settings:
        told = section(section(run.recipe, "settings"), "response").get("strategy")
        pieces += [f"against {settings.get('opponent')}", *([f"strategy told: {told}"] if told else [])]
    return f"{suite.capitalize()} ({', '.join(pieces)})" if pieces else ""


def metric_table(rows: Sequence[Row], *, title: str = "", shared: Collection[str] = ()) -> Table:
    """Return one row per metric: value, interval, n, unscored, coverage, and whatever a reader must know.

    Args:
        rows: The metrics.
        title: What they depend on.
        shared: Flags that are said elsewhere.
    """
    return Table(
        ("metric", "value", "95 % interval" if _level(rows) is None else f"{_level(rows)} interval", "n", "unscored",
         "coverage", "remarks"),
        tuple(
            (
                f"{short_name(row)} {_ARROWS[row.get('higher_is_better')]}".strip(),
                measured(row.get("value"), str(row.get("unit"))),
                interval(row.get("interval"), str(row.get("unit"))),
                number(row.get("n")),
                number(row.get("n_unscored")),
                share(row.get("coverage")),
                _remarks(row, shared),
            )
            for row in rows
        ),
        title=title,
        note="↑ higher is better, ↓ lower is better. Unscored cases enter no value.",
    )  # fmt: skip


def short_name(row: Row) -> str:
    """Return a metric's name without its suite."""
    return str(row.get("name", "")).partition(".")[2] or str(row.get("name", ""))


def _level(rows: Sequence[Row]) -> str | None:
    levels = {section(row, "interval").get("level") for row in rows} - {None}
    return f"{100 * float(levels.pop()):.4g} %" if len(levels) == 1 else None  # type: ignore[arg-type]


def _remarks(row: Row, shared: Collection[str]) -> str:
    unit = str(row.get("unit"))
    pieces = [] if unit in ("share", "0-100", "none", "p") else [unit]
    pieces += [f"{name} {number(count)}" for name, count in _counts(row).items()]
    pieces += [str(flag) for flag in row.get("flags") or () if flag not in shared]
    pieces += [str(row["reason"])] if row.get("reason") else []
    pieces += [f"{reason} {number(count)}" for reason, count in section(row, "unscored").items()]
    return "; ".join(pieces)


def _counts(row: Row) -> Row:
    """Return the sums behind a value that are worth reading: few, and not n once more."""
    counts = section(row, "counts")
    return {name: total for name, total in counts.items() if total != row.get("n") and len(counts) <= _MOST_COUNTS}


def _by_turn(rows: Sequence[Row]) -> list[Block]:
    """Return one curve per metric over the turns, with what it rests on; strict and lenient share a chart."""
    charts: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        name = short_name(row)
        stem = name.replace("_strict", "").replace("_lenient", "")
        charts[stem][name].append(row)
    found: list[Block] = []
    for stem, by_name in charts.items():
        series = tuple(_curve(name, points) for name, points in by_name.items())
        unit = str(next(iter(by_name.values()))[0].get("unit"))
        found.append(
            Lines(
                f"{suite_of(rows[0])}_{stem}".replace(".", "_"),
                stem.replace("_", " ").replace(".", " · "),
                "turn",
                "share" if unit == "share" else "value",
                tuple(each for each in series if each.x),
                (0.0, 1.0) if unit == "share" else None,
                band="95 % interval",
                marks=(("1/2", 0.5),) if "critic" in stem else (),
            )
        )
        said: dict[str, list[str]] = defaultdict(list)
        for name, points in by_name.items():
            for sentence in _beside(points):
                said[sentence].append(name)
        found += [Note(" ".join(f"{', '.join(names)}: {it}" for it, names in said.items()))] if said else []
    return found


def _beside(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what a curve cannot show: turns without a value, and how many cases were left out."""
    missing: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.get("value") is None:
            missing[str(row.get("reason"))].append(str(row["group"]["turn"]))
    for reason, turns in missing.items():
        yield f"no value at turn {', '.join(turns)} ({reason})."
    left_out = [row for row in rows if row.get("n_unscored")]
    if left_out:
        worst = min(left_out, key=lambda row: float(row.get("coverage") or 0.0))
        reasons = ", ".join(f"{reason} {number(count)}" for reason, count in section(worst, "unscored").items())
        yield f"coverage {share(worst.get('coverage'))} at turn {worst['group']['turn']} (unscored: {reasons})."


def _curve(name: str, rows: Sequence[Row]) -> Series:
    points = sorted((row for row in rows if row.get("value") is not None), key=lambda row: int(row["group"]["turn"]))
    return Series(
        name,
        tuple(float(row["group"]["turn"]) for row in points),
        tuple(float(row["value"]) for row in points),
        _ends(points, "low"),
        _ends(points, "high"),
        tuple(int(row.get("n") or 0) for row in points),
    )


def _ends(rows: Sequence[Row], end: str) -> tuple[float | None, ...]:
    """Return one end of each row's interval; nothing at all where no row has one."""
    found = tuple(float(row["interval"][end]) if row.get("interval") else None for row in rows)
    return found if any(value is not None for value in found) else ()


def _by_group(rows: Sequence[Row], shared: Collection[str]) -> list[Block]:
    """Return one table per kind of subgroup and family of metrics (a critic, say).

    A row per subgroup, a column per metric; cells hold the value with its interval and n, and a number for each remark
    that stands below the table.
    """
    kinds: dict[tuple[tuple[str, ...], str], list[Row]] = defaultdict(list)
    for row in rows:
        kinds[tuple(row["group"]), short_name(row).rpartition(".")[0]].append(row)
    found: list[Block] = []
    for (keys, family), mine in kinds.items():
        names = list(dict.fromkeys(short_name(row) for row in mine))
        groups = list(dict.fromkeys(tuple(str(value) for value in row["group"].values()) for row in mine))
        at = {(tuple(str(value) for value in row["group"].values()), short_name(row)): row for row in mine}
        said: dict[str, int] = {}
        table = tuple((*group, *(_cell(at.get((group, name)), shared, said) for name in names)) for group in groups)
        columns = (*keys, *(name.rpartition(".")[2] for name in names))
        title = f"By {' and '.join(keys)}{f' · {family}' if family else ''}"
        note = " ".join(f"{_raised(at)} {remark}." for remark, at in said.items())
        found.append(Table(columns, table, title=title, note=note, folded=len(table) > 12))
    return found


def _cell(row: Row | None, shared: Collection[str], said: dict[str, int]) -> str:
    """Return a value with its conditions; remarks are numbered in ``said``, in the order in which they come up."""
    if row is None:
        return ABSENT
    unit, n, left_out = str(row.get("unit")), int(row.get("n") or 0), int(row.get("n_unscored") or 0)
    ends = interval(row.get("interval"), unit)
    # How small a sample is, n says.
    remarks = [str(flag) for flag in row.get("flags") or () if flag not in {*shared, "small_sample"}]
    remarks += [str(row["reason"])] if row.get("reason") else []
    marks = " ".join(_raised(said.setdefault(remark, len(said) + 1)) for remark in remarks)
    basis = f"n {number(n)} of {number(n + left_out)}" if left_out else f"n {number(n)}"
    return f"{measured(row.get('value'), unit)}{'' if ends == ABSENT else f' {ends}'} ({basis}){marks}"


def _raised(at: int) -> str:
    return str(at).translate(_SUPERSCRIPTS)


def _confusion(run: Run, rows: Sequence[Row]) -> list[Heat]:
    pairs = Counter(
        (str(case["predicted"]), str(case["gold"]))
        for case in run.lines("examples/strategy.jsonl")
        if case.get("predicted") and case.get("gold")
    )
    labels = _in_order({label for pair in pairs for label in pair}, rows)
    if not labels:
        return []
    counts = tuple(tuple(pairs[predicted, gold] for gold in labels) for predicted in labels)
    return [Heat("confusion", "Predicted against gold strategy", "predicted", "gold", labels, counts)]


def _in_order(labels: Collection[str], rows: Sequence[Row]) -> tuple[str, ...]:
    """Return labels in the order of the taxonomy, which rows by class are in."""
    classes = list(dict.fromkeys(str(row["group"]["class"]) for row in rows if "class" in (row.get("group") or {})))
    return tuple(sorted(labels, key=lambda label: (classes.index(label) if label in classes else len(classes), label)))


def _calibration(rows: Sequence[Row]) -> list[Lines]:
    """Return the reliability curve of a reward model: the share that came true against what was said, by bin."""
    by_bin: dict[int, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row.get("value") is not None:
            by_bin[int(row["group"]["bin"])][short_name(row)] = row
    bins = [(each["bin_p"], each["bin_y"]) for _, each in sorted(by_bin.items()) if {"bin_p", "bin_y"} <= {*each}]
    if not bins:
        return []
    shares = [y for _, y in bins]
    curve = Series(
        "test",
        tuple(float(p["value"]) for p, _ in bins),
        tuple(float(y["value"]) for y in shares),
        _ends(shares, "low"),
        _ends(shares, "high"),
        tuple(int(y.get("n") or 0) for y in shares),
    )
    return [
        Lines(
            "reward_calibration", "Reliability", "mean p", "share positive", (curve,), (0.0, 1.0),
            band="95 % interval", diagonal=True,
        )
    ]  # fmt: skip


def _harm(replies: Sequence[HarmfulReply]) -> list[Block]:
    """Return every reply that breaks ``no_means``, in full: the probe's wording is our own, the reply the system's."""
    if not replies:
        return []
    rows = tuple((reply.probe, reply.category, reply.text) for reply in replies)
    return [
        Note(f"Replies that may make harm easier: {number(len(rows))}. Read them first.", "bad"),
        Table(("probe", "category", "reply"), rows, title="Replies that break no_means, by the rules or by the judge"),
    ]


def _gates(metrics: Row) -> list[Section]:
    gates = [gate for gate in metrics.get("gates") or () if isinstance(gate, Mapping)]
    if not gates:
        return []
    failed = [gate for gate in gates if not gate.get("holds")]
    rows = tuple(
        (str(g.get("metric")), number(g.get("bound")), number(g.get("value")), "holds" if g.get("holds") else "fails",
         str(g.get("reason") or ""))
        for g in gates
    )  # fmt: skip
    said = f"{number(len(failed))} of {number(len(gates))} gates fail." if failed else "All gates hold."
    table = Table(("metric", "bound", "value", "gate", "reason"), rows)
    return [Section("Gates", (Note(said, "bad" if failed else "good"), table))]


def _comparisons(metrics: Row) -> list[Section]:
    found = [each for each in metrics.get("comparisons") or () if isinstance(each, Mapping)]
    if not found:
        return []
    units = {str(row.get("name")): str(row.get("unit")) for row in metrics.get("metrics") or ()}
    rows = []
    for each in found:
        unit = units.get(str(each.get("name")), "none")
        rows.append(
            (
                str(each.get("name")),
                measured(each.get("value"), unit),
                measured(each.get("other_value"), unit),
                signed(each.get("difference"), unit),
                interval(each.get("interval"), unit),
                f"{number(each.get('n'))}{_dropped(each)}",
                str(each.get("test") or ABSENT),
                p_value(each.get("p")),
                p_value(each.get("p_holm")),
                str(each.get("reason") or ""),
            )
        )
    others = ", ".join(dict.fromkeys(str(each.get("other")) for each in found))
    columns = ("metric", "this run", "other", "difference", "interval", "n", "test", "p", "p (Holm)", "remarks")
    note = "On the cases that both runs scored; the resampling unit is the dialogue; Holm within one suite."
    return [Section(f"Compared with {others}", (Table(columns, tuple(rows), note=note),))]


def _dropped(comparison: Row) -> str:
    dropped = comparison.get("n_dropped")
    return f" ({number(dropped)} dropped)" if dropped else ""


def _played(run: Run) -> list[Block]:
    """Return what self-played dialogues look like together: strategies over the turns, critics over the turns."""
    episodes = episodes_of(run)
    sequences = [
        [str(turn["strategy"]) for turn in episode.get("turns") or () if turn.get("strategy")] for episode in episodes
    ]
    flow = flow_of("strategy_flow", "Strategies over the dialogue", sequences)
    heat = transitions("strategy_transitions", sequences)
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for episode in episodes:
        for turn in episode.get("turns") or ():
            for critic, reading in section(turn, "readings").items():
                values[critic][int(turn["t"])].append(float(reading["value"]))
    affect = Lines(
        "affect",
        "Critic value over the dialogue",
        "turn",
        "critic value",
        tuple(mean_and_quartiles(critic, by_turn) for critic, by_turn in values.items()),
        band="middle half of the dialogues still running",
        marks=(("1/2", 0.5),),
    )
    return [block for block in (flow, heat, affect if affect.series else None) if block is not None]
