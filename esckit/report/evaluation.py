"""The report of an ``evaluate`` run: every value with n, coverage and interval; safety first; references beside."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from esckit.report.blocks import (
    Bars,
    Block,
    Heat,
    Lines,
    Named,
    Note,
    Section,
    Table,
    flow_of,
    mean_and_quartiles,
    transitions,
)
from esckit.report.compared import BASELINES_DRAW
from esckit.report.explorers import EPISODES, episodes_explorer
from esckit.report.metric_rows import (
    Row,
    comparison_cells,
    curves_by_turn,
    marked_flags,
    metric_table,
    plain_name,
    reference_blocks,
    reliability_curve,
    suite_of,
    tables_by_group,
)
from esckit.report.source import ABSENT, Run, at, measured, number, p_value, plain, section

FLAGS = {
    "low_coverage": "fewer cases were scored than asked for: gates on it fail",
    "small_sample": "fewer than 30 dialogues",
    "cross_family": "trained and tested under split schemes of different families",
    "lost_input": "a run that a system was made from is not there any more: what that has seen is unknown",
    "overlap": "some test dialogues were seen in training",
    "self_judged": "one model both judges and plays",
    "position_bias": "the two orders of a pair name the same winner in less than 70 % of the cases",
    "smoothed": "pseudo-counts were added",
}

SAFETY_NOTE = (
    "A small screening in our own wording (crisis probes, sycophancy probes where they were run), no clinical "
    "validation: passing it does not show that a system is safe."
)

INJECTION_NOTE = (
    "Texts in our own wording that try to steer the judge, no validation: a judge that withstands them may still give "
    "way to others. Compare how often attacks move it with how often harmless sentences do."
)

SUITE_NOTES = {"safety": SAFETY_NOTE, "injection": INJECTION_NOTE}
"""What a reader must know of a suite before its numbers."""


_TOKENIZERS = {"words_and_characters/1": "words, and single characters in scripts without spaces"}


def evaluation_sections(run: Run, other: Run | None = None) -> list[Section]:
    """Return the sections of an evaluation in reading order."""
    metrics = run.json("metrics.json")
    if not isinstance(metrics, Mapping):
        return [Section("Results", (Note("The evaluation is not finished: it has no metrics.json.", "warning"),))]
    rows = run.metric_rows
    suites = list(dict.fromkeys(suite_of(row) for row in rows))
    suites.sort(key=lambda suite: suite != "safety")
    sections = [_suite(run, suite, rows) for suite in suites]
    sections[1 if "safety" in suites else 0 : 0] = _gates(metrics)
    sections += _comparisons(metrics)
    if metrics.get("references"):
        published = tuple(reference_blocks(metrics["references"], rows, run.recipe))
        sections.append(Section("Published numbers", published))
    transcripts = episodes_explorer(run, other)
    if transcripts is not None:
        sections.append(Section("Dialogues", (*_played(run), transcripts)))
    return sections


def _suite(run: Run, suite: str, rows: Sequence[Row]) -> Section:
    mine = [row for row in rows if suite_of(row) == suite]
    whole = [row for row in mine if not row.get("group")]
    blocks: list[Block] = [Note(SUITE_NOTES[suite])] if suite in SUITE_NOTES else []
    blocks += _harm(run) if suite == "safety" else []
    # What every row carries is shown once.
    shared = frozenset.intersection(*(frozenset(map(str, row.get("flags") or ())) for row in whole or mine))
    if whole and suite == "pairwise":
        blocks += [*_verdicts(whole), *_by_dimension(run, whole, shared)]
    elif whole:
        blocks.append(metric_table(whole, title=_conditions(run, suite), shared=shared))
    for tokenizer in sorted({str(row["tokenizer"]) for row in mine if row.get("tokenizer")}):
        blocks.append(Note(f"Tokens and words are cut by {tokenizer}: {_TOKENIZERS.get(tokenizer, 'see the manual')}."))
    by_group = [row for row in mine if row.get("group") and "turn" not in row["group"]]
    # A table of one metric a row lists every flag; one of subgroups or of dimensions marks cells.
    listed, marked = ([], [*whole, *by_group]) if suite == "pairwise" else (whole, by_group)
    flags = {str(flag) for row in listed for flag in row.get("flags") or ()} | shared
    for flag in sorted(flags | {flag for row in marked for flag in marked_flags(row)}):
        where = "every row" if flag in shared else "where it stands"
        blocks.append(Note(f"{flag} ({where}): {FLAGS.get(flag, 'see the documentation')}.", "warning"))
    if any("policy" in row["group"] for row in by_group):
        blocks.append(Note(BASELINES_DRAW))
    blocks += curves_by_turn([row for row in mine if "turn" in (row.get("group") or {})])
    blocks += tables_by_group(by_group, shared)
    if suite == "strategy":
        blocks += _confusion(run, mine)
    if suite == "reward":
        blocks += reliability_curve([row for row in mine if "bin" in (row.get("group") or {})])
    return Section(f"{suite.replace('_', ' ').capitalize()}", tuple(blocks))


def _conditions(run: Run, suite: str) -> str:
    """Return what the values of a suite depend on, so that they are not compared across it."""
    suite, _, expanded = suite.partition("_")
    settings, models = section(run.recipe, f"settings.{suite}"), section(run.recipe, "models")
    pieces = []
    if suite == "strategy" and settings:
        pieces.append("main line of search trees" if expanded else f"gold labels by {settings.get('unit')}")
        pieces += ["openings included"] if settings.get("include_openings") else []
        pieces += [f"without {plain(settings['exclude'])}"] if settings.get("exclude") else []
    elif suite == "response" and settings:
        pieces.append(f"strategy given: {settings.get('strategy')}")
        if models.get("scorer"):
            pieces.append(f"ppl under {run.manifest.get('scorer') or section(models, 'scorer').get('backbone')}")
    elif suite == "dialogue" and settings:
        pieces += [f"strategy given: {settings.get('strategy')}", f"at most {settings.get('max_turns')} turns"]
    elif suite == "pairwise" and settings:
        strategy = at(run.recipe, "settings.response.strategy")
        pieces += [f"against {settings.get('opponent')}", *([f"strategy given: {strategy}"] if strategy else [])]
    return f"{suite.capitalize()} ({', '.join(pieces)})" if pieces else ""


def _verdicts(rows: Sequence[Row]) -> list[Bars]:
    """Return how often this system won, tied and lost, by dimension."""
    shares: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        _, dimension, outcome = str(row["name"]).split(".")
        if outcome in ("win", "tie", "lose") and row.get("value") is not None:
            shares[dimension][outcome] = float(row["value"])
    known = {dimension: found for dimension, found in shares.items() if len(found) == 3}
    if not known:
        return []
    series = tuple((outcome, tuple(found[outcome] for found in known.values())) for outcome in ("win", "tie", "lose"))
    return [Bars("verdicts", "This system wins, ties and loses", "dimension", "share", tuple(known), series)]


def _by_dimension(run: Run, rows: Sequence[Row], shared: frozenset[str]) -> list[Block]:
    """Return one table with a row for each dimension, instead of one metric of one dimension after the other."""
    parts = [str(row["name"]).split(".") for row in rows]
    pivoted = [
        {**row, "name": f"{suite}.{metric}", "group": {"dimension": dimension}}
        for row, (suite, dimension, metric) in zip(rows, parts, strict=True)
    ]
    return [replace(table, title=_conditions(run, "pairwise")) for table in tables_by_group(pivoted, shared)]


def _confusion(run: Run, rows: Sequence[Row]) -> list[Heat]:
    pairs = Counter(
        (str(case["predicted"]), str(case["gold"]))
        for case in run.lines("examples/strategy.jsonl")
        if case.get("predicted") and case.get("gold")
    )
    # In the order of the taxonomy, which rows by class are in.
    classes = list(dict.fromkeys(str(row["group"]["class"]) for row in rows if "class" in (row.get("group") or {})))
    place = {label: index for index, label in enumerate(classes)}
    found = {label for pair in pairs for label in pair}
    labels = tuple(sorted(found, key=lambda label: (place.get(label, len(place)), label)))
    if not labels:
        return []
    counts = tuple(tuple(pairs[predicted, gold] for gold in labels) for predicted in labels)
    return [Heat("confusion", "Predicted against gold strategy", "predicted", "gold", labels, counts)]


def _harm(run: Run) -> list[Block]:
    """Return every reply that breaks ``no_means``, in full: the probe's wording is our own, the reply the system's."""
    rows = tuple(
        (str(case["id"]), str(case["category"]), str(case["reply"]))
        for case in run.lines("examples/safety.jsonl")
        if case.get("kind") == "crisis" and case.get("reply") is not None and not case.get("unscored")
        if section(case, "statistics").get("no_means") == [0.0] or section(case, "judge").get("no_means") is False
    )
    if not rows:
        return []
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
        (str(g.get("metric")), number(g.get("bound")), number(g.get("value")),
         number(g.get("end")), "holds" if g.get("holds") else "fails",
         str(g.get("reason") or ""))
        for g in gates
    )  # fmt: skip
    result = f"{number(len(failed))} of {number(len(gates))} gates fail." if failed else "All gates hold."
    table = Table(("metric", "asked for", "value", "worse end of its interval", "gate", "reason"), rows)
    return [Section("Gates", (Note(result, "bad" if failed else "good"), table))]


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
                Named(plain_name(str(each.get("name"))), str(each.get("name"))),
                *(measured(each.get(value), unit) for value in ("value", "other_value")),
                *comparison_cells(each, unit),
                str(each.get("test") or ABSENT),
                *(p_value(each.get(p)) for p in ("p", "p_holm")),
                str(each.get("reason") or ""),
            )
        )
    others = ", ".join(dict.fromkeys(str(each.get("other")) for each in found))
    columns = ("metric", "this run", "other", "difference", "interval", "n", "test", "p", "p (Holm)", "remarks")
    note = "On the cases that both runs scored; the resampling unit is the dialogue; Holm within one suite."
    return [Section(f"Compared with {others}", (Table(columns, tuple(rows), note=note),))]


def _played(run: Run) -> list[Block]:
    """Return what self-played dialogues look like together: strategies over the turns, critics over the turns."""
    episodes = run.lines(EPISODES)
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
