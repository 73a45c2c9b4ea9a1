"""The results of a study as tables for a paper, and as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from esckit.metrics.rows import SMALL_SAMPLE, Comparison, Interval, MetricRow
from esckit.report.compared import adjustment
from esckit.report.grid import Cell, Grid, Line, Notes
from esckit.report.source import ABSENT, number, p_value
from esckit.study.results import StudyResults

_MARKS = ((0.01, "‡"), (0.05, "†"))

_INTERVALS = "In brackets: 95 % intervals (bootstrap over dialogues)."

_SMALL = "Fewer than 30 dialogues: the intervals may be too narrow."


def study_grids(found: StudyResults) -> Iterator[Grid]:
    """Yield the tables of a study: preferences or means with their tests, agreement, and the raters."""
    if found.key.kind == "ab":
        yield _preferences(found)
    else:
        yield _means(found)
        if found.differences:
            yield _differences(found)
    yield _agreement(found)
    yield _raters(found)


def _cell(row: MetricRow | None, notes: Notes, *, is_best: bool = False) -> Cell:
    if row is None:
        return Cell(ABSENT)
    reason = "" if row.reason is None else f"no interval: {row.reason}." if row.value is not None else f"{row.reason}."
    ends = "" if row.interval is None else _ends(row.interval, row.unit)
    numbers = (notes.number(f"{reason[:1].upper()}{reason[1:]}"),) if reason else ()
    return Cell(_value(row.value, row.unit), ends, is_best=is_best, notes=numbers)


def _value(value: float | None, unit: str, *, is_signed: bool = False) -> str:
    """Return a share as per cent, a rating with two decimals, and any other number with three."""
    if value is None:
        return ABSENT
    scaled, digits = (100 * value, 1) if unit == "share" else (value, 2 if unit == "rating" else 3)
    return f"{scaled:{'+' if is_signed else ''}.{digits}f}".replace("-", "−")


def _ends(ends: Interval, unit: str) -> str:
    return f"[{_value(ends.low, unit)}, {_value(ends.high, unit)}]"


def _difference(test: Comparison, unit: str) -> Cell:
    ends = "" if test.interval is None else _ends(test.interval, unit)
    return Cell(_value(test.difference, unit, is_signed=True), ends, _mark(test.p_holm))


def _mark(p: float | None) -> str:
    return next((mark for bound, mark in _MARKS if p is not None and p < bound), "")


def _preferences(found: StudyResults) -> Grid:
    notes = Notes()
    rows: list[Line] = []
    for each in found.preferences:
        shares = [_cell(each.rows[label], notes) for label in ("first", "tie", "second")]
        label = f"{each.first} / {each.second}: {each.dimension}"
        tested = (_difference(each.net, "share"), Cell(p_value(each.net.p_holm)), Cell(number(each.net.n)))
        rows.append((label, (), (*shares, *tested)))
    columns = ("first / second: dimension", "first preferred (%)", "tie (%)", "second preferred (%)")
    return Grid(
        (*columns, "first − second (points)", "p (Holm)", "cases"),
        (tuple(rows),),
        (f"Preferences of {_people(found)}, by answers.", _INTERVALS, *_small(found), *_tests(found)),
        tuple(notes.texts),
        "preferences",
    )


def _tests(found: StudyResults) -> Iterator[str]:
    yield (
        "† p < 0.05, ‡ p < 0.01: sign flips of the differences between the two systems, dialogue by dialogue, "
        f"{adjustment(found.n_tests, 'this study')}."
    )


def _small(found: StudyResults) -> Iterator[str]:
    if len({each.dialogue_id for each in found.key.questions.values()}) < SMALL_SAMPLE:
        yield _SMALL


def _people(found: StudyResults) -> str:
    n = len(found.counted)
    return f"{n} raters" if n != 1 else "1 rater"


def _means(found: StudyResults) -> Grid:
    notes = Notes()
    rows: list[Line] = []
    for system in found.key.systems:
        cells = []
        for name in found.key.dimensions:
            values = {each.system: each.row for each in found.means if each.dimension == name}
            known = [row.value for row in values.values() if row.value is not None]
            is_best = len(set(known)) > 1 and values[system].value == max(known)
            cells.append(_cell(values[system], notes, is_best=is_best))
        rows.append((system, (), tuple(cells)))
    caption = (
        f"Mean ratings from 1 to 5 by {_people(found)}. Bold: the best of a column, before rounding.",
        _INTERVALS,
        *_small(found),
    )
    return Grid(("system", *found.key.dimensions), (tuple(rows),), caption, tuple(notes.texts), "ratings")


def _differences(found: StudyResults) -> Grid:
    rows: list[Line] = []
    for first, dimension, test in found.differences:
        cells = (_difference(test, "rating"), *map(Cell, (p_value(test.p), p_value(test.p_holm), number(test.n))))
        rows.append((f"{first} − {test.other}: {dimension}", (), cells))
    columns = ("systems: dimension", "difference", "p", "p (Holm)", "cases")
    caption = ("Differences of mean ratings.", _INTERVALS, *_tests(found))
    return Grid(columns, (tuple(rows),), caption, label="differences")


_AGREEMENT = {
    "alpha_humans": "Krippendorff's α",
    "fleiss_kappa": "Fleiss' κ",
    "pairs_equal": "pairs of raters who agree (%)",
    "alpha_judge": "α of judge and majority",
    "agreement_judge": "judge equals majority (%)",
    "judge_equals_rater": "judge equals a rater (%)",
}


def _agreement(found: StudyResults) -> Grid:
    notes = Notes()
    by_name = {
        dimension: {row.name.rpartition(".")[2]: row for row in rows if row.group is None}
        for dimension, rows in found.agreement.items()
    }
    shown = [name for name in _AGREEMENT if any(name in rows for rows in by_name.values())]
    rows: list[Line] = [
        (dimension, (), tuple(_cell(of.get(name), notes) for name in shown)) for dimension, of in by_name.items()
    ]
    level = "nominal" if found.key.kind == "ab" else "ordinal"
    caption = [f"Agreement of the raters; α is {level}. In brackets: 95 % intervals (bootstrap over questions)."]
    for row in found.judge:
        cell = _cell(row, notes)
        automatic, of = row.name.removeprefix("judge.").split(".spearman_")
        caption.append(
            f"Spearman's ρ of people's mean on {of} and {automatic}: {cell.value} {cell.ends}".rstrip() + "."
        )
    return Grid(
        ("dimension", *map(_AGREEMENT.__getitem__, shown)),
        (tuple(rows),),
        tuple(caption),
        tuple(notes.texts),
        "agreement",
    )


def _raters(found: StudyResults) -> Grid:
    key = found.key
    rows: list[Line] = []
    for rater, asked in key.raters.items():
        whole, missing = len(asked) * len(key.dimensions), found.answers.missing[rater]
        failed, checks = len(found.answers.failed_checks[rater]), sum(each.expected is not None for each in asked)
        has_answers = found.answers.has_any(rater)
        numbers = (f"{number(whole - missing)} of {number(whole)}", f"{failed} of {checks}" if has_answers else ABSENT)
        counted = "yes" if rater in found.counted else "no" if has_answers else "no answers"
        rows.append((rater, (), (*map(Cell, numbers), Cell(counted))))
    columns = ("rater", "answers given", "attention checks failed", "counted")
    return Grid(
        columns, (tuple(rows),), ("The raters. A rater is left out only if --max-failed says so.",), label="raters"
    )


def study_data(found: StudyResults) -> dict[str, Any]:
    """Return the results as plain data; nothing is rounded."""
    key, answers = found.key, found.answers

    def rows(of: Any) -> list[dict[str, Any]]:
        return [row.model_dump(mode="json") for row in of]

    return {
        "schema": "esckit.study-results/1",
        "study": key.study,
        "kind": key.kind,
        "suite": key.suite,
        "systems": list(key.systems),
        "raters": {
            rater: {
                "missing": answers.missing[rater],
                "failed_checks": list(answers.failed_checks[rater]),
                "counted": rater in found.counted,
            }
            for rater in key.raters
        },
        "adjustment": {"method": "holm", "tests": found.n_tests},
        "preferences": [
            {
                "first": each.first,
                "second": each.second,
                "dimension": each.dimension,
                **{label: row.model_dump(mode="json") for label, row in each.rows.items()},
                "net": each.net.model_dump(mode="json"),
            }
            for each in found.preferences
        ],
        "means": [
            {"system": each.system, "dimension": each.dimension, **each.row.model_dump(mode="json")}
            for each in found.means
        ],
        "differences": [
            {"system": first, "dimension": dimension, **test.model_dump(mode="json")}
            for first, dimension, test in found.differences
        ],
        "agreement": {name: rows(of) for name, of in found.agreement.items()},
        "judge": rows(found.judge),
    }
