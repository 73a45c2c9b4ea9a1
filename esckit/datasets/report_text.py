"""The inspection report as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Rows = Sequence[Sequence[object]]


def render(report: Mapping[str, Any]) -> str:
    """Return the report as lines of text, without a final line end."""
    sections = (
        _overview(report),
        _sizes(report),
        _strategies(report["strategies"]),
        _lengths(report),
        _runs(report),
        _types(report),
        _ratings(report),
        _duplicates(report["duplicates"]),
        _issues(report["issues"]),
        _refusals(report),
    )
    return "\n\n".join("\n".join(section) for section in sections if section)


def table(rows: Rows, *, indent: int = 2) -> list[str]:
    """Return aligned lines: the first column to the left, numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in cells if column < len(row)) for column in range(max(map(len, cells)))]
    lines = []
    for row in cells:
        first, *others = (
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=False))
        )
        lines.append((" " * indent + "  ".join([first, *others])).rstrip())
    return lines


def _cell(value: object) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _overview(report: Mapping[str, Any]) -> list[str]:
    files = report["files"]
    rows = [(file["name"], file["split"], file["n_records"], file["sha256"]) for file in files["read"]]
    lines = [f"format {report['format']}", *table([("file", "split", "records", "sha256"), *rows])]
    if files["ignored"]:
        lines.append(f"  ignored: {', '.join(files['ignored'])}")
    return [*lines, f"  ids digest {report['ids_digest']}"]


def _sizes(report: Mapping[str, Any]) -> list[str]:
    counts = report["utterances"]
    rows: list[Sequence[object]] = [("", "dialogues", "utterances", "of seekers", "of supporters")]
    for split, found in report["splits"].items():
        turns = found["utterances"]
        rows.append((split, found["dialogues"], turns["n"], turns["seeker"], turns["supporter"]))
    rows.append(("all", report["n_dialogues"], counts["n"], counts["seeker"], counts["supporter"]))
    contexts = counts["contexts"]
    return [
        f"{report['n_records']:,} records, {report['n_dialogues']:,} dialogues, {report['n_refused']:,} refused",
        *table(rows),
        f"  contexts: {contexts['unmerged']:,} unmerged, {contexts['merged']:,} merged",
    ]


def _strategies(strategies: Mapping[str, Any]) -> list[str]:
    labels = strategies["labels"]
    splits = list(next(iter(labels.values()))["splits"]) if labels else []
    rows: list[Sequence[object]] = [("", "n", "%", *splits, "merged first", "merged last")]
    for label, found in labels.items():
        percent = None if found["share"] is None else 100 * found["share"]
        per_split = [found["splits"][split] for split in splits]
        rows.append((label, found["n"], percent, *per_split, found["merged_first"], found["merged_last"]))
    head = f"strategies, taxonomy {strategies['taxonomy'] or 'unknown: labels as in the file'}"
    if strategies["mapping"]:
        head += f", mapping {strategies['mapping']}"
    rest = ("unlabelled", "unknown", "unmapped")
    return [head, *table(rows), "  " + ", ".join(f"{strategies[f'n_{name}']:,} {name}" for name in rest)]


def _spread_row(name: str, values: Mapping[str, Any]) -> Sequence[object]:
    return (name, *(values[key] for key in ("min", "mean", "median", "p95", "max")))


def _lengths(report: Mapping[str, Any]) -> list[str]:
    words, counts = report["words"], report["utterances"]
    return [
        "lengths",
        *table(
            [
                ("", "min", "mean", "median", "p95", "max"),
                _spread_row("words per utterance, seeker", words["utterance"]["seeker"]),
                _spread_row("words per utterance, supporter", words["utterance"]["supporter"]),
                _spread_row("words per merged turn, seeker", words["merged_turn"]["seeker"]),
                _spread_row("words per merged turn, supporter", words["merged_turn"]["supporter"]),
                _spread_row("utterances per dialogue", counts["per_dialogue"]),
                _spread_row("merged turns per dialogue", counts["merged_per_dialogue"]),
            ]
        ),
    ]


def _runs(report: Mapping[str, Any]) -> list[str]:
    runs, first, last = report["runs"], report["speakers_first"], report["speakers_last"]
    rows = [
        ("adjacent pairs of one speaker", runs["pairs"]),
        ("dialogues with such pairs", runs["dialogues"]),
        ("verbatim repeats", runs["repeats"]),
        ("longest run, seeker", runs["longest"]["seeker"]),
        ("longest run, supporter", runs["longest"]["supporter"]),
        ("merged turns", runs["merged_turns"]),
        ("merged supporter turns", runs["merged_supporter_turns"]),
        ("... with two or more strategies", runs["multi_strategy_turns"]),
        ("seeker first / last", f"{first['seeker']:,} / {last['seeker']:,}"),
        ("supporter first / last", f"{first['supporter']:,} / {last['supporter']:,}"),
    ]
    return ["speakers and runs", *table(rows)]


def _types(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for key in ("problem_types", "emotion_types", "experience_types"):
        if report[key]:
            lines += [key.replace("_", " "), *table(list(report[key].items()))]
    return lines


def _ratings(report: Mapping[str, Any]) -> list[str]:
    ratings, feedback = report["ratings"], report["feedback"]
    lines = [f"ratings: {ratings['n_surveys']:,} surveys"]
    if ratings["n_surveys"]:
        lines += table([("", "missing"), *((name.replace("_", " "), n) for name, n in ratings["missing"].items())])
    values = _listed(feedback["values"].items())
    lines.append(f"feedback: {feedback['n']:,} ratings in {feedback['dialogues']:,} dialogues" + values)
    return lines


def _listed(items: Iterable[tuple[str, int]]) -> str:
    shown = ", ".join(f"{name}: {n:,}" for name, n in items)
    return f" ({shown})" if shown else ""


def _duplicates(duplicates: Mapping[str, Any]) -> list[str]:
    return [f"duplicates: {duplicates['dialogues']:,} dialogues, {len(duplicates['situations']):,} situations"]


def _issues(issues: Mapping[str, Any]) -> list[str]:
    if not issues:
        return []
    lines = ["met on the way (N noted, W warned)"]
    for code, found in issues.items():
        lines.append(f"  {found['severity']} {code}: {found['n']:,}")
        lines += [f"      {place}" for place in found["places"]]
    return lines


def _refusals(report: Mapping[str, Any]) -> list[str]:
    if not report["n_refused"]:
        return []
    shown = report["refusals"]
    more = report["n_refused"] - len(shown)
    return [
        f"refused: {report['n_refused']:,}",
        *(f"  {message}" for message in shown),
        *([f"  and {more:,} more (--limit-problems)"] if more else []),
    ]
