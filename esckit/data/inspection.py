"""What a corpus holds, counted: the inspection report as plain data, ready for JSON, and as text for a terminal.

Keys, labels, types and counts only; never an utterance or a situation.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from esckit.data.contexts import contexts, feedback_targets, merge_runs, turn_parts
from esckit.data.corpus import SPLITS, Corpus
from esckit.errors import DataError
from esckit.protocols import Issue
from esckit.text import ids_digest, n_words, quoted
from esckit.types import Dialogue, Speaker, Turn, TurnPart

SCHEMA = "esckit.data_report/1"

SPEAKERS: tuple[Speaker, ...] = ("seeker", "supporter")

RATINGS = ("initial_intensity", "final_intensity", "empathy", "relevance", "supporter_relevance")

_PLACES_SHOWN = 3

# ESConv has one problem type under two names.
_SAME_PROBLEM = {"issues with parents": "conflict with parents"}


Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """A corpus as it was read: with resolved labels and every problem found.

    Attributes:
        corpus: The corpus as read, labels unresolved.
        dialogues: Its dialogues with labels resolved; those refused for a label are missing.
        taxonomy: Taxonomy of the labels; None if they are shown as the file has them.
        labels: Its names in order.
        mapping: Mapping by which the labels got there.
        issues: Everything noted or warned about.
        refusals: Everything refused.
    """

    corpus: Corpus
    dialogues: tuple[Dialogue, ...]
    taxonomy: str | None
    labels: tuple[str, ...]
    mapping: str | None
    issues: Sequence[Issue]
    refusals: Sequence[DataError]


def build_report(reading: Reading, *, merge: bool = False, limit_problems: int = 20) -> Report:
    """Return the report of a corpus; its keys and their order are fixed.

    Args:
        reading: What was read.
        merge: Count utterances, strategies and feedback over merged turns.
        limit_problems: How many refusals to quote; ``n_refused`` has the number of all.
    """
    dialogues = reading.dialogues
    merged = tuple(merge_runs(dialogue) for dialogue in dialogues)
    shown = merged if merge else dialogues
    surveys = [dialogue.survey.model_dump() for dialogue in dialogues if dialogue.survey is not None]
    rated = [list(feedback_targets(dialogue)) for dialogue in shown]
    ratings = [one for of_dialogue in rated for one in of_dialogue]
    by_situation: dict[str, list[str]] = defaultdict(list)
    for dialogue in dialogues:
        if dialogue.scenario.situation:
            by_situation[dialogue.scenario.situation.casefold()].append(dialogue.id)
    return {
        "schema": SCHEMA,
        "format": reading.corpus.format,
        "files": {
            "read": [
                {"name": file.name, "split": file.split, "n_records": file.n_records, "sha256": file.sha256}
                for file in reading.corpus.files
            ],
            "ignored": list(reading.corpus.ignored_files),
        },
        "names": {
            "roles": {word: {"side": side, "n": n} for (word, side), n in sorted(reading.corpus.names.spoken.items())},
            "columns": dict(reading.corpus.names.found),
        },
        "n_records": reading.corpus.n_records,
        "n_dialogues": len(dialogues),
        "n_refused": len(reading.refusals),
        "splits": {
            split: {"dialogues": len(members), "utterances": _count_turns(members), "ids_digest": ids_digest(members)}
            for split, members in _by_split(dialogues).items()
        },
        "utterances": {
            **_count_turns(shown),
            "per_dialogue": spread([len(dialogue.turns) for dialogue in dialogues]),
            "merged_per_dialogue": spread([len(dialogue.turns) for dialogue in merged]),
            "contexts": {
                name: sum(1 for dialogue in cut for _ in contexts(dialogue))
                for name, cut in (("unmerged", dialogues), ("merged", merged))
            },
        },
        "strategies": _strategies(reading, shown),
        "words": {"utterance": _words(dialogues), "merged_turn": _words(merged)},
        "runs": _runs(dialogues, merged),
        "speakers_first": _speakers(turn for dialogue in dialogues for turn in dialogue.turns[:1]),
        "speakers_last": _speakers(turn for dialogue in dialogues for turn in dialogue.turns[-1:]),
        "problem_types": _types(dialogue.scenario.problem_type for dialogue in dialogues),
        "emotion_types": _types(dialogue.scenario.emotion_type for dialogue in dialogues),
        "experience_types": _types(dialogue.scenario.experience_type for dialogue in dialogues),
        "ratings": {
            "n_surveys": len(surveys),
            "missing": {name: sum(1 for survey in surveys if survey[name] is None) for name in RATINGS},
            "values": {name: _number_counts(survey[name] for survey in surveys) for name in RATINGS},
        },
        "feedback": {
            "n": len(ratings),
            "dialogues": sum(1 for of_dialogue in rated if of_dialogue),
            "values": _number_counts(one.rating for one in ratings),
            "without_target": sum(1 for one in ratings if not one.targets),
        },
        "duplicates": {
            "dialogues": sum(1 for issue in reading.issues if issue.code == "duplicate_dialogue"),
            "situations": [ids for ids in by_situation.values() if len(ids) > 1],
        },
        "issues": _issues(reading.issues),
        "refusals": [str(error) for error in reading.refusals[:limit_problems]],
        "ids_digest": ids_digest(dialogues),
    }


def spread(values: Sequence[int]) -> dict[str, float | None]:
    """Return min, mean, median, p95 (nearest rank) and max; None each where there is no value."""
    if not values:
        return dict.fromkeys(("min", "mean", "median", "p95", "max"))
    ordered = sorted(values)
    return {
        "min": ordered[0],
        "mean": statistics.fmean(ordered),
        "median": statistics.median(ordered),
        "p95": ordered[math.ceil(0.95 * len(ordered)) - 1],
        "max": ordered[-1],
    }


def _by_split(dialogues: Iterable[Dialogue]) -> dict[str, list[Dialogue]]:
    """Return the dialogues per split, those without one left out."""
    found: dict[str, list[Dialogue]] = defaultdict(list)
    for dialogue in dialogues:
        if dialogue.source is not None and dialogue.source.split is not None:
            found[dialogue.source.split].append(dialogue)
    return {split: found[split] for split in (*SPLITS, *sorted(set(found) - {*SPLITS})) if split in found}


def _count_turns(dialogues: Iterable[Dialogue]) -> dict[str, int]:
    """Return the number of turns, in all and per speaker."""
    counts = _speakers(turn for dialogue in dialogues for turn in dialogue.turns)
    return {"n": sum(counts.values()), **counts}


def _shown_label(turn: Turn | TurnPart, resolved: bool) -> str | None:
    """Return the label a turn is counted under, None without one."""
    return turn.strategy if resolved or turn.strategy is not None else turn.source_strategy or None


def _supporter_turns(dialogues: Iterable[Dialogue]) -> list[Turn]:
    return [turn for dialogue in dialogues for turn in dialogue.turns if turn.speaker == "supporter"]


def _label_counts(dialogues: Iterable[Dialogue], resolved: bool) -> Counter[str | None]:
    return Counter(_shown_label(turn, resolved) for turn in _supporter_turns(dialogues))


def _strategies(reading: Reading, shown: Sequence[Dialogue]) -> Report:
    resolved = reading.taxonomy is not None
    counts = _label_counts(shown, resolved)
    per_split = {split: _label_counts(members, resolved) for split, members in _by_split(shown).items()}
    first = _label_counts((merge_runs(dialogue, label="first") for dialogue in reading.dialogues), resolved)
    last = _label_counts((merge_runs(dialogue, label="last") for dialogue in reading.dialogues), resolved)
    unresolved = [turn for turn in _supporter_turns(shown) if _shown_label(turn, resolved) is None]
    n_without = sum(1 for turn in unresolved if not (turn.source_strategy or "").strip())
    known = [*reading.labels, *sorted(label for label in counts if label is not None and label not in reading.labels)]
    n_labelled = counts.total() - counts[None]
    return {
        "taxonomy": reading.taxonomy,
        "mapping": reading.mapping,
        "labels": {
            label: {
                "n": counts[label],
                "share": counts[label] / n_labelled if n_labelled else None,
                "splits": {split: found[label] for split, found in per_split.items()},
                "merged_first": first[label],
                "merged_last": last[label],
            }
            for label in known
        },
        "n_labelled": n_labelled,
        "n_unlabelled": n_without,
        "n_unknown": 0 if reading.mapping else len(unresolved) - n_without,
        "n_unmapped": len(unresolved) - n_without if reading.mapping else 0,
    }


def _words(dialogues: Iterable[Dialogue]) -> Report:
    lengths: dict[str, list[int]] = {speaker: [] for speaker in SPEAKERS}
    for dialogue in dialogues:
        for turn in dialogue.turns:
            lengths[turn.speaker].append(n_words(turn.text))
    return {speaker: spread(values) for speaker, values in lengths.items()}


def _runs(dialogues: Sequence[Dialogue], merged: Sequence[Dialogue]) -> Report:
    pairs = [[pair for pair in pairwise(d.turns) if pair[0].speaker == pair[1].speaker] for d in dialogues]
    longest = dict.fromkeys(SPEAKERS, 0)
    for dialogue in merged:
        for turn in dialogue.turns:
            longest[turn.speaker] = max(longest[turn.speaker], len(turn_parts(turn)))
    distinct = Counter(
        len({part.strategy or part.source_strategy for part in turn_parts(turn)} - {None, ""})
        for turn in _supporter_turns(merged)
    )
    return {
        "pairs": sum(len(found) for found in pairs),
        "dialogues": sum(1 for found in pairs if found),
        "repeats": sum(1 for found in pairs for left, right in found if left.text == right.text),
        "longest": longest,
        "merged_turns": sum(len(dialogue.turns) for dialogue in merged),
        "merged_supporter_turns": distinct.total(),
        "multi_strategy_turns": sum(n for n_strategies, n in distinct.items() if n_strategies > 1),
        "distinct_strategies": {str(n_strategies): distinct[n_strategies] for n_strategies in sorted(distinct)},
    }


def _speakers(turns: Iterable[Turn]) -> dict[str, int]:
    counts = Counter(turn.speaker for turn in turns)
    return {speaker: counts[speaker] for speaker in SPEAKERS}


def _types(found: Iterable[str | None]) -> dict[str, int]:
    """Count types case-folded, the most frequent first, each under its most frequent spelling."""
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for name in found:
        if name:
            key = name.casefold()
            spellings[_SAME_PROBLEM.get(key, key)][name] += 1
    groups = sorted(spellings.values(), key=lambda group: -group.total())
    return {group.most_common(1)[0][0]: group.total() for group in groups}


def _number_counts(values: Iterable[int | None]) -> dict[str, int]:
    counts = Counter(value for value in values if value is not None)
    return {str(value): counts[value] for value in sorted(counts)}


def _issues(issues: Iterable[Issue]) -> Report:
    """Count issues per code, warnings first, with the first places."""
    by_code: dict[str, list[Issue]] = defaultdict(list)
    for issue in issues:
        by_code[issue.code].append(issue)
    ordered = sorted(by_code.items(), key=lambda item: (item[1][0].severity != "W", item[0]))
    return {
        code: {
            "severity": found[0].severity,
            "n": len(found),
            "places": [
                f"{issue.file}: " + ", ".join(filter(None, (f"record {issue.record}", issue.field, issue.detail)))
                for issue in found[:_PLACES_SHOWN]
            ],
        }
        for code, found in ordered
    }


def totals(report: Mapping[str, Any]) -> tuple[int, int]:
    """Return the numbers of refusals and of warnings in a report."""
    warnings = sum(entry["n"] for entry in report["issues"].values() if entry["severity"] == "W")
    return report["n_refused"], warnings


Rows = Sequence[Sequence[object]]


def render(report: Mapping[str, Any]) -> str:
    """Return the report as lines of text, without a final line end."""
    runs, first, last = report["runs"], report["speakers_first"], report["speakers_last"]
    surveys, feedback, duplicates = report["ratings"], report["feedback"], report["duplicates"]
    values = ", ".join(f"{value}: {n:,}" for value, n in feedback["values"].items())
    n_refused, shown = report["n_refused"], report["refusals"]
    missing = [(name.replace("_", " "), n) for name, n in surveys["missing"].items()]
    sections = (
        _overview(report),
        _names(report["names"]),
        _sizes(report),
        _strategies_text(report["strategies"]),
        _lengths(report),
        [
            "speakers and runs",
            *table(
                [
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
            ),
        ],
        [
            line
            for key in ("problem_types", "emotion_types", "experience_types")
            if report[key]
            for line in (key.replace("_", " "), *table(list(report[key].items())))
        ],
        [
            f"ratings: {surveys['n_surveys']:,} surveys",
            *(table([("", "missing"), *missing]) if surveys["n_surveys"] else ()),
            f"feedback: {feedback['n']:,} ratings in {feedback['dialogues']:,} dialogues"
            + (f" ({values})" if values else ""),
        ],
        [f"duplicates: {duplicates['dialogues']:,} dialogues, {len(duplicates['situations']):,} situations"],
        _issues_text(report["issues"]),
        [f"refused: {n_refused:,}", *(f"  {message}" for message in shown)] if n_refused else [],
    )
    text = "\n\n".join("\n".join(section) for section in sections if section)
    return text + (f"\n  and {n_refused - len(shown):,} more (--limit-problems)" if n_refused > len(shown) else "")


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


def _names(names: Mapping[str, Any]) -> list[str]:
    """Return which names of the file stand for which side, and which of its columns for what."""
    roles = [(quoted(word)[1:-1], found["side"], found["n"]) for word, found in names["roles"].items()]
    lines = ["names in the files", *table([("speaker", "is the", "turns"), *roles])] if roles else []
    if names["columns"]:
        lines += ["  columns: " + ", ".join(f"{what} is {quoted(name)}" for what, name in names["columns"].items())]
    return lines


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


def _strategies_text(strategies: Mapping[str, Any]) -> list[str]:
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


def _lengths(report: Mapping[str, Any]) -> list[str]:
    columns = ("min", "mean", "median", "p95", "max")
    found = {
        f"words per {what.replace('_', ' ')}, {speaker}": values
        for what, by_speaker in report["words"].items()
        for speaker, values in by_speaker.items()
    }
    found["utterances per dialogue"] = report["utterances"]["per_dialogue"]
    found["merged turns per dialogue"] = report["utterances"]["merged_per_dialogue"]
    rows = [(name, *(values[column] for column in columns)) for name, values in found.items()]
    return ["lengths", *table([("", *columns), *rows])]


def _issues_text(issues: Mapping[str, Any]) -> list[str]:
    if not issues:
        return []
    lines = ["found while reading (N noted, W warned)"]
    for code, found in issues.items():
        lines.append(f"  {found['severity']} {code}: {found['n']:,}")
        lines += [f"      {place}" for place in found["places"]]
    return lines
