"""What an evaluation found, before anything else on its page: the first metric of each suite, and what won by how much.

A difference counts as shown where its Holm-adjusted p is below :data:`~esckit.report.compared.SIGNIFICANT`. All other
differences are called not shown, whatever their size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from esckit.report.blocks import Block, Note, Section, Tile, Tiles
from esckit.report.compared import SIGNIFICANT, headline_names, headlines, whole_rows
from esckit.report.metric_rows import Row, comparison_cells, headed, plain_name, value_cells
from esckit.report.source import ABSENT, Run, p_value, share

_PER_SUITE = 2


def in_short(run: Run) -> list[Section]:
    """Return the opening of an evaluation's page; nothing before it is finished."""
    rows = whole_rows(run)
    if not rows:
        return []
    tiles = [_tile(rows[name]) for _, names in headlines([run]) for name in names[:_PER_SUITE]]
    metrics = run.object("metrics.json")
    blocks: list[Block] = [Tiles(tuple(tiles))] if tiles else []
    blocks += _harm(rows)
    blocks += _gates(metrics)
    blocks += _compared(metrics, rows, headline_names([run]))
    return [Section("In short", tuple(blocks))] if blocks else []


def _tile(row: Row) -> Tile:
    value, ends, n = value_cells(row)
    covered = row.get("coverage")
    missing = "" if covered is None or covered == 1 else f", {share(covered)} of the cases scored"
    basis = str(row.get("reason") or "no value") if value == ABSENT else f"{'' if ends == ABSENT else ends + ', '}n {n}"
    return Tile(headed(row), value, f"{basis}{missing}")


def _harm(rows: Mapping[str, Row]) -> Iterator[Note]:
    if rows.get("safety.harm_count", {}).get("value"):
        yield Note("Some replies to crisis probes make harm easier. Read them first: they stand below.", "bad")


def _gates(metrics: Mapping[str, Any]) -> Iterator[Note]:
    failed = [str(gate.get("metric")) for gate in metrics.get("gates") or () if not gate.get("holds")]
    if failed:
        yield Note(f"Gates fail: {', '.join(map(plain_name, failed))}.", "bad")
    elif metrics.get("gates"):
        yield Note("All gates hold.", "good")


def _compared(metrics: Mapping[str, Any], rows: Mapping[str, Row], names: list[str]) -> Iterator[Note]:
    """Yield a sentence for each headline metric on which another run differs, and one for all on which none does."""
    for other in dict.fromkeys(str(each.get("other")) for each in metrics.get("comparisons") or ()):
        found = {str(each.get("name")): each for each in metrics["comparisons"] if str(each.get("other")) == other}
        alike, untested = [], []
        for name in (name for name in names if name in found):
            p = _p(found[name])
            if p is None or found[name].get("difference") is None:
                untested.append(plain_name(name))
            elif p >= SIGNIFICANT:
                alike.append(plain_name(name))
            else:
                yield _difference(found[name], rows[name], p)
        if alike:
            yield Note(f"Not shown to differ from {other}, after Holm's correction: {'; '.join(alike)}.")
        if untested:
            yield Note(f"Not tested against {other}; the reasons stand below: {'; '.join(untested)}.")


def _p(each: Mapping[str, Any]) -> float | None:
    return each.get("p") if each.get("p_holm") is None else each["p_holm"]


def _difference(each: Mapping[str, Any], row: Row, p: float) -> Note:
    difference, ends, n = comparison_cells(each, str(row.get("unit")))
    better, rises = row.get("higher_is_better"), float(each["difference"]) > 0
    kind: Literal["info", "good", "bad"] = "info" if better is None else "good" if rises == better else "bad"
    word = {"info": "differs from", "good": "better than", "bad": "worse than"}[kind]
    facts = f"{'' if ends == ABSENT else ends + ', '}n {n}, p {p_value(p)}"
    return Note(f"{plain_name(str(row['name']))}: {word} {each.get('other')} by {difference} ({facts}).", kind)
