"""How far human raters agree with each other and with the automatic judge, on the cases that they labelled.

Dimensions of a label file are those of the pairwise judge (``win``, ``tie``, ``lose`` of the system under test), the
presets of critics (level names; the case is the dialogue), and the turn judge's criteria (1-5; the case is
``<dialogue>@<turn>``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esckit.dialogue.levels import PRESETS, Preset
from esckit.errors import DataError
from esckit.evaluate.cases import Episode, PairCase, TurnRatings
from esckit.evaluate.measure import Measurement
from esckit.evaluate.metric import Unscored
from esckit.evaluate.pairwise import decide
from esckit.evaluate.reliability import Label, LabelScale, ReliabilityScale, read_units, reliability_rows
from esckit.evaluate.rows import MetricRow
from esckit.pipelines.evaluate_metrics import Files, Scales
from esckit.records import read_records
from esckit.types import CriticReading

_VERDICTS = {"A": "win", "tie": "tie", "B": "lose"}


def reliability(scales: Scales, files: Files, labels_file: Path) -> list[MetricRow]:
    """Return the rows of every dimension in a label file.

    Raises:
        DataError: If the file cannot be read, or names a dimension that this evaluation does not judge.
    """
    labels = list(read_records(Label, labels_file))
    rows: list[MetricRow] = []
    for dimension in dict.fromkeys(label.dimension for label in labels):
        scale, judged = _judged(dimension, scales, files, labels_file)
        units = read_units(labels, dimension, scale, judged)
        measurement = Measurement.over("reliability", (unit.id for unit in units), scales.statistics())
        rows += reliability_rows(units, ReliabilityScale(dimension, scale), measurement)
    return rows


def _judged(dimension: str, scales: Scales, files: Files, path: Path) -> tuple[LabelScale, Mapping[str, str | int]]:
    """Return a dimension's scale and the automatic judge's label per case."""
    settings = scales.recipe.settings
    if "pairwise" in files and dimension in settings.pairwise.dimensions:
        return LabelScale(("lose", "tie", "win"), "nominal"), _pair_labels(files["pairwise"], dimension)
    if "dialogue" in files and dimension in settings.dialogue.critics:
        preset = PRESETS[dimension]
        ordered = sorted(range(len(preset.levels)), key=lambda index: preset.quarters[index])
        names = tuple(preset.levels[index] for index in ordered)
        return LabelScale(names, "ordinal"), _critic_labels(files["dialogue"], preset)
    if "dialogue" in files and dimension in TurnRatings.model_fields:
        return LabelScale((1, 2, 3, 4, 5), "ordinal"), _turn_labels(files["dialogue"], dimension)
    known = [
        *(settings.pairwise.dimensions if "pairwise" in files else ()),
        *((*settings.dialogue.critics, *TurnRatings.model_fields) if "dialogue" in files else ()),
    ]
    raise DataError(
        f"labels of dimension {dimension!r}", path=str(path), expected=f"one of {', '.join(known) or 'a judged suite'}"
    )


def _pair_labels(cases: Sequence[PairCase], dimension: str) -> dict[str, str]:
    found = {case.id: decide(case, dimension) for case in cases}
    return {name: _VERDICTS[each.winner] for name, each in found.items() if not isinstance(each, Unscored)}


def _critic_labels(episodes: Sequence[Episode], preset: Preset) -> dict[str, str]:
    """Return the level that a critic's last reading names most often, of equals the lowest."""
    found = {}
    for episode in episodes:
        readings = [turn.readings[preset.name] for turn in episode.turns if preset.name in turn.readings]
        if readings:
            found[episode.id] = preset.levels[_level(readings[-1], preset)]
    return found


def _level(reading: CriticReading, preset: Preset) -> int:
    shares: Sequence[Any] = reading.counts or reading.weights or ()
    ordered = sorted(range(len(preset.levels)), key=lambda index: preset.quarters[index])
    return max(ordered, key=lambda index: shares[index])


def _turn_labels(episodes: Sequence[Episode], dimension: str) -> dict[str, int]:
    return {
        f"{episode.id}@{turn.t}": turn.ratings.model_dump()[dimension]
        for episode in episodes
        for turn in episode.turns
        if turn.ratings is not None
    }
