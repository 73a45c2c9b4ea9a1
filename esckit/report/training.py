"""The report of a training run: its curves, what stands beside them, and how well probabilities are calibrated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from esckit.documents import read_text
from esckit.report.blocks import Block, Code, Facts, Lines, Named, Note, Section, Series, Table, Tile, Tiles
from esckit.report.metric_rows import plain_name, plain_names
from esckit.report.source import ABSENT, Run, flattened, number, plain, section
from esckit.runs import refuse_links

_AXES = ("update", "step", "epoch")
"""What rows of ``metrics.jsonl`` count in, finest first: train-flow counts updates, the other trainers steps."""


_MATTER = (
    "success_share", "loss", "reward/total", "reward/future", "reward/format", "format_share", "auc", "pair_accuracy",
    "accuracy", "macro_f1", "best_action", "token_accuracy", "flow", "rank", "kl", "policy_entropy", "entropy",
    "unscored_share", "completion_tokens/mean", "reward_length_corr", "episode/ended/resolved", "episode/turns",
)  # fmt: skip
"""What says whether a training went well, in reading order; other curves are folded."""

_NAMES = "training_names.yaml"

_HELD_OUT = ("dev", "valid")

_MOST_TILES = 4

_FEWEST_POINTS = 2

_MOST_POINTS = 400


def training_sections(run: Run) -> list[Section]:
    """Return curves, final values, the model card and calibration, as far as they are there."""
    rows = run.lines("metrics.jsonl")
    if not rows:
        return [Section("Training", (Note("The run has logged nothing yet.", "warning"),))]
    matter = _matter(run)
    charts, still = _curves(rows, matter)
    first = [chart for chart in charts if chart.y_label in matter]
    more = [chart for chart in charts if chart.y_label not in matter]
    tiles = _tiles(rows, matter)
    blocks: list[Block] = [tiles] if tiles.tiles else []
    blocks += [*(first or more), *still, _last(rows)]
    cards = sorted(run.path.glob("*/README.md"))
    refuse_links(cards)
    codes = tuple(Code(f"{card.parent.name}/README.md", read_text(card)) for card in cards)
    return [
        Section("Training", tuple(blocks)),
        *([Section("Further curves", tuple(more), folded=True)] if first and more else []),
        *summary_sections(run),
        *(_calibration(run.object("calibration.json")) if not _is_ranker(run) else ()),
        *([Section("Model card", codes)] if codes else []),
    ]


def _is_ranker(run: Run) -> bool:
    """Return whether a reward model orders candidates, so that what it says of one is no probability."""
    return run.command == "train-reward" and section(run.recipe, "objective").get("kind", "classifier") != "classifier"


def _matter(run: Run) -> tuple[str, ...]:
    """Return :data:`_MATTER` with what rankers are made for before what they are not."""
    return ("pair_accuracy", *_MATTER) if _is_ranker(run) else _MATTER


def _title(quantity: str) -> str:
    """Return what a reader is told a quantity is; one that is measured at several τ says at which."""
    stem, _, tau = quantity.partition("@")
    name = plain_names(_NAMES).get(stem) or plain_name(stem).replace("/", " · ")
    return f"{name}, τ = {tau}" if tau else name


def _axis(rows: Sequence[Mapping[str, Any]]) -> str | None:
    return next((axis for axis in _AXES if any(axis in row for row in rows)), None)


def _numbers(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[float | None, dict[str, float]]]:
    """Yield what every row counts (its place in a file without an axis) and its quantities by ``source/quantity``."""
    axis = _axis(rows)
    for place, row in enumerate(rows):
        at = row.get(axis) if axis else place
        numbers = {key: value for key, value in flattened(row).items() if key not in _AXES}
        # A point joins the names of nested quantities; in a name as it was written it is the point of a number.
        found = {key if key in row else key.replace(".", "/"): value for key, value in numbers.items()}
        yield at if isinstance(at, int | float) else None, found


def _tiles(rows: Sequence[Mapping[str, Any]], matter: Sequence[str]) -> Tiles:
    """Return the last value of the first held-out quantities that matter, with the value before training."""
    values: dict[str, list[float]] = defaultdict(list)
    for _, numbers in _numbers(rows):
        for key, value in numbers.items():
            values[key].append(value)
    keys = {f"{source}/{quantity}": (quantity, source) for quantity in matter for source in _HELD_OUT}
    tiles = [
        Tile(
            f"{_title(quantity)} · {source}",
            number(values[key][-1]),
            f"last of {len(values[key])}; first {number(values[key][0])}",
        )
        for key, (quantity, source) in keys.items()
        if len(values[key]) >= _FEWEST_POINTS
    ]
    return Tiles(tuple(tiles[:_MOST_TILES]))


def _parts(key: str) -> tuple[str, str]:
    """Return the source and the quantity that a name such as ``dev/reward/total`` is made of."""
    source, _, quantity = key.partition("/")
    return (source, quantity) if quantity else ("train", key)


def _curves(rows: Sequence[Mapping[str, Any]], matter: Sequence[str]) -> tuple[list[Lines], list[Note]]:
    """Return one chart per quantity that moves, and what never moved: ``train/loss`` and ``dev.loss`` share one."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for x, numbers in _numbers(rows):
        if x is None:
            continue
        for key, value in numbers.items():
            source, quantity = _parts(key)
            lines[quantity][source].append((float(x), value))
    charts: list[Lines] = []
    still = []
    for quantity, by_source in sorted(lines.items(), key=lambda item: (_place(item[0], matter), len(item[0]), item[0])):
        known = {source: points for source, points in by_source.items() if len(points) >= _FEWEST_POINTS}
        if known and all(len({y for _, y in points}) == 1 for points in known.values()):
            still += [f"{source}/{quantity} {number(points[0][1])}" for source, points in known.items()]
        elif known:
            series = tuple(Series(source, *zip(*_thinned(points), strict=True)) for source, points in known.items())
            charts.append(Lines(f"curve_{quantity}", _title(quantity), _axis(rows) or "line", quantity, series))
    return charts, [Note(f"Never changed, so without a chart: {', '.join(still)}.")] if still else []


def _place(name: str, matter: Sequence[str]) -> int:
    """Return where a quantity stands: what one looks at first comes first."""
    return matter.index(name) if name in matter else len(matter)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points of a line, thinned out evenly where there are more than a page can show."""
    # Several points of one x stay in the order in which they were logged.
    ordered = sorted(points, key=lambda point: point[0])
    return [*ordered[: -1 : -(-len(ordered) // _MOST_POINTS)], ordered[-1]]


def _named(key: str) -> Named:
    source, quantity = _parts(key)
    return Named(f"{_title(quantity)} · {source}", key)


def _last(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the last value of every quantity."""
    last: dict[str, tuple[str, float]] = {}
    for at, numbers in _numbers(rows):
        last |= {key: (number(at), value) for key, value in numbers.items()}
    found = tuple((_named(key), number(value), at) for key, (at, value) in sorted(last.items()))
    return Table(("quantity", "last value", f"at {_axis(rows) or 'line'}"), found, title="Last values", folded=True)


def summary_sections(run: Run) -> list[Section]:
    """Return ``summary.json``: what it warns of, plain facts, and its columns of metrics beside each other."""
    summary = run.object("summary.json")
    warned = summary.get("warnings")
    blocks: list[Block] = [Note(str(text), "warning") for text in warned] if isinstance(warned, list) else []
    columns = {
        str(name): flattened(value)
        for name, value in summary.items()
        if isinstance(value, Mapping) and name != "usage" and flattened(value)
    }
    metrics = columns.get("dev", {})
    shared = [name for name in metrics if sum(name in column for column in columns.values()) > 1]
    beside = [name for name, column in columns.items() if any(key in column for key in shared)]
    rows = tuple((Named(_title(key), key), *(number(columns[name].get(key)) for name in beside)) for key in metrics)
    if rows and beside:
        blocks.append(Table(("metric", *beside), rows, title="On dev, beside what needs no training"))
    facts = tuple(
        (plain_names(_NAMES).get(str(name)) or str(name).replace("_", " "), plain(value))
        for name, value in summary.items()
        if name not in ("schema", "warnings", "usage", *beside) and plain(value) != ABSENT
    )
    if facts:
        blocks.append(Facts(facts))
    return [Section("Summary", tuple(blocks))] if blocks else []


def _calibration(found: Mapping[str, Any]) -> list[Section]:
    """Return the reliability curve of ``calibration.json``, no section without one."""
    bins = [each for each in found.get("bins") or () if isinstance(each, Mapping) and {"mean_p", "mean_y"} <= {*each}]
    if not bins:
        return []
    ends = [each.get("y_interval") for each in bins]
    bounded = all(isinstance(end, list) and len(end) == 2 for end in ends)
    low, high = (tuple(float(end[i]) for end in ends if end) if bounded else () for i in (0, 1))
    shares = tuple((float(each["mean_p"]), float(each["mean_y"])) for each in bins)
    counts = tuple(int(each.get("n", 0)) for each in bins)
    series = Series("dev", tuple(p for p, _ in shares), tuple(y for _, y in shares), low, high, counts)
    labels = ("calibration", "Calibration", "mean predicted probability", "share of positives")
    chart = Lines(*labels, (series,), (0.0, 1.0), band="95 % interval of the share", diagonal=True)
    facts = tuple((name.replace("_", " "), number(value)) for name, value in flattened(found).items())
    return [Section("Calibration", (chart, *((Facts(facts),) if facts else ())))]
