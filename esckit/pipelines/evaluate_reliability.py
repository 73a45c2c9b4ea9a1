"""How far human raters agree with each other and with the automatic judge, on the cases that they labelled.

Dimensions of a label file are those of the pairwise judge (``win``, ``tie``, ``lose`` of the system under test), the
presets of critics (level names; the case is the dialogue), and the turn judge's criteria (1-5; the case is
``<dialogue>@<turn>``).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from esckit.config.evaluate import EvaluateRecipe
from esckit.dialogue.levels import PRESETS, Preset
from esckit.errors import DataError
from esckit.evaluate.cases import Episode, PairCase, TurnRatings
from esckit.evaluate.measure import Measurement
from esckit.evaluate.metric import Unscored
from esckit.evaluate.outcomes import read_outcome
from esckit.evaluate.pairwise import decide
from esckit.evaluate.reliability import Label, LabelScale, ReliabilityScale, read_units, reliability_rows
from esckit.evaluate.rows import MetricRow
from esckit.pipelines.evaluate_metrics import Files, Scales
from esckit.records import read_records

log = logging.getLogger(__name__)

_VERDICTS = {"A": "win", "tie": "tie", "B": "lose"}


def read_labels(recipe: EvaluateRecipe) -> dict[str, list[Label]]:
    """Return the human labels of the recipe by dimension, held against what will be judged.

    Raises:
        DataError: If the file cannot be read or is empty, names a dimension that this evaluation does not judge or a
            label off its scale, or a rater labelled a case twice.
    """
    assert recipe.reliability is not None
    path = Path(recipe.reliability.labels)
    scales = judged_scales(recipe)
    found: dict[str, list[Label]] = {}
    for label in read_records(Label, path):
        found.setdefault(label.dimension, []).append(label)
    for dimension, labels in found.items():
        if dimension not in scales:
            known = f"one of {', '.join(scales)}" if scales else "a suite that is judged: dialogue or pairwise"
            raise DataError(f"labels of dimension {dimension!r}", path=str(path), expected=known)
        try:
            read_units(labels, dimension, scales[dimension][1], {})
        except DataError as error:
            raise DataError(error.found, path=str(path), expected=error.expected) from error
    if not found:
        raise DataError("no label", path=str(path), expected="lines of case_id, rater, dimension and label")
    return found


def require_known_cases(recipe: EvaluateRecipe, cases: Mapping[str, Collection[str]]) -> None:
    """Hold the labels against the cases of the evaluation.

    Args:
        recipe: The recipe.
        cases: Ids of the cases by suite.

    Raises:
        DataError: If a dimension's labels are all of other cases; of some it is a warning.
    """
    assert recipe.reliability is not None
    path, scales = recipe.reliability.labels, judged_scales(recipe)
    for dimension, labels in read_labels(recipe).items():
        known = cases[scales[dimension][0]]
        labelled = {label.case_id for label in labels}
        strange = sorted(name for name in labelled if _case_of(name, dimension) not in known)
        if not strange:
            continue
        found = f"{len(strange)} of {len(labelled)} labelled cases of {dimension!r} unknown, such as {strange[0]!r}"
        if len(strange) == len(labelled):
            raise DataError(found, path=path, expected="ids of the cases of this evaluation")
        log.warning("%s: %s", path, found)


def _case_of(name: str, dimension: str) -> str:
    """Return the case that a label is of: a turn that was rated lies in a dialogue."""
    return name.rpartition("@")[0] if dimension in TurnRatings.model_fields else name


def judged_scales(recipe: EvaluateRecipe) -> dict[str, tuple[str, LabelScale]]:
    """Return the suite and scale of every dimension that is judged; of one name the first counts."""
    settings, suites = recipe.settings, recipe.suites
    found: dict[str, tuple[str, LabelScale]] = {}
    if "dialogue" in suites and recipe.models.turn_judge is not None:
        found |= {name: ("dialogue", LabelScale((1, 2, 3, 4, 5), "ordinal")) for name in TurnRatings.model_fields}
    if "dialogue" in suites:
        found |= {name: ("dialogue", _levels(PRESETS[name])) for name in settings.dialogue.critics}
    if "pairwise" in suites:
        scale = LabelScale(("lose", "tie", "win"), "nominal")
        found |= dict.fromkeys(settings.pairwise.dimensions, ("pairwise", scale))
    return found


def _levels(preset: Preset) -> LabelScale:
    ordered = sorted(range(len(preset.levels)), key=lambda index: preset.quarters[index])
    return LabelScale(tuple(preset.levels[index] for index in ordered), "ordinal")


def reliability(scales: Scales, files: Files, flags: Mapping[str, tuple[str, ...]]) -> list[MetricRow]:
    """Return the rows of every dimension that was labelled.

    Args:
        scales: What metrics are told beside the cases.
        files: The cases.
        flags: Per suite, what every one of its rows carries.
    """
    rows: list[MetricRow] = []
    known = judged_scales(scales.recipe)
    for dimension, labels in read_labels(scales.recipe).items():
        suite, scale = known[dimension]
        swapped = scales.recipe.settings.pairwise.swap
        units = read_units(labels, dimension, scale, _judged(dimension, suite, files[suite], swapped=swapped))
        ids = (unit.id for unit in units)
        measurement = Measurement.over("reliability", ids, scales.statistics(), flags.get(suite, ()))
        rows += reliability_rows(units, ReliabilityScale(dimension, scale), measurement)
    return rows


def _judged(dimension: str, suite: str, cases: Sequence[Any], *, swapped: bool) -> dict[str, str | int | Unscored]:
    """Return what the automatic judge says of every case."""
    if suite == "pairwise":
        return {case.id: _verdict(case, dimension, swapped=swapped) for case in cases}
    if dimension in PRESETS:
        return {episode.id: _level(episode, PRESETS[dimension]) for episode in cases}
    return {
        f"{episode.id}@{turn.t}": turn.ratings.model_dump()[dimension]
        if turn.ratings
        else Unscored(turn.ratings_unscored or "missing")
        for episode in cases
        for turn in episode.turns
    }


def _verdict(case: PairCase, dimension: str, *, swapped: bool) -> str | Unscored:
    found = decide(case, dimension, swapped=swapped)
    return found if isinstance(found, Unscored) else _VERDICTS[found.winner]


def _level(episode: Episode, preset: Preset) -> str | Unscored:
    """Return the level that a critic named most often at the end, of equals the lowest."""
    outcome = read_outcome(episode, preset.name)
    if isinstance(outcome, Unscored):
        return outcome
    reading = episode.turns[len(outcome.values) - 1].readings[preset.name]
    shares: Sequence[float] = reading.counts or reading.weights or ()
    if reading.compat_zero or not shares:
        return Unscored("unparsed")
    ordered = sorted(range(len(preset.levels)), key=lambda index: preset.quarters[index])
    return preset.levels[max(ordered, key=lambda index: shares[index])]
