"""How far human raters agree with each other and with the automatic judge, on the cases that they labelled.

Dimensions of a label file are those of the pairwise judge (``win``, ``tie``, ``lose`` of the system under test), the
presets of critics (level names; the case is the dialogue), and the turn judge's criteria (1-5; the case is
``<dialogue>@<turn>``). Agreement is Krippendorff's α = 1 − D_o/D_e over the units that at least two raters labelled;
what is resampled is the rated unit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from esckit.errors import DataError
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.evaluate.suite import Files
from esckit.evaluate.suites.critics import Episode, read_outcome
from esckit.evaluate.suites.pairwise import decide
from esckit.metrics.calibration import Level, majority, rank_correlation, rater_alpha
from esckit.metrics.metric import (
    FIRST,
    Facts,
    Metric,
    Stats,
    Sums,
    Unscored,
    Weighted,
    counted,
    if_scored,
    not_estimated,
    ratio,
)
from esckit.metrics.rows import Measurement, MetricRow
from esckit.records import read_records
from esckit.roles.verdicts import PRESETS, Preset
from esckit.types import Record, TurnRatings

log = logging.getLogger(__name__)

MIN_UNITS = 10

MIN_RATERS = 2

_VERDICTS = {"A": "win", "tie": "tie", "B": "lose"}


class Label(Record):
    """One rater's label of one case: a line of the label file."""

    SCHEMA: ClassVar[str] = "esckit.label/1"

    case_id: str
    rater: str
    dimension: str
    label: str | int


@dataclass(frozen=True, slots=True)
class RatedCase:
    """One rated case.

    Attributes:
        labels: Positions on the scale per human rater.
        judge: Position of the automatic judge's label, why it gave none, or None where it has no such case.
    """

    id: str
    labels: dict[str, int]
    judge: int | Unscored | None = None

    @property
    def dialogue_id(self) -> str:
        """The unit itself: units are what is resampled."""
        return self.id


@dataclass(frozen=True, slots=True)
class LabelScale:
    """The labels of a dimension.

    Attributes:
        values: Labels from low to high; for ``nominal`` in any order.
        level: How differences count.
    """

    values: tuple[str | int, ...]
    level: Level

    def position(self, label: str | int) -> int:
        """Return a label's position.

        Raises:
            DataError: If the scale has no such label.
        """
        names = [str(value).casefold() for value in self.values]
        if str(label).casefold() not in names:
            raise DataError(f"label {label!r}", expected=f"one of {', '.join(map(str, self.values))}")
        return names.index(str(label).casefold())


Judged = Mapping[str, str | int | Unscored]
"""The automatic judge's label by case, or why it gave none."""


def read_units(labels: Sequence[Label], dimension: str, scale: LabelScale, judge: Judged) -> list[RatedCase]:
    """Return the rated units of a dimension, with the labels of the automatic judge.

    Raises:
        DataError: If a rater labelled a case twice, or a label is not on the scale.
    """
    by_case: dict[str, dict[str, int]] = {}
    for entry in labels:
        if entry.dimension != dimension:
            continue
        raters = by_case.setdefault(entry.case_id, {})
        if entry.rater in raters:
            raise DataError(f"two labels of rater {entry.rater!r} for case {entry.case_id!r}", expected="one")
        raters[entry.rater] = scale.position(entry.label)
    judged = {name: label if isinstance(label, Unscored) else scale.position(label) for name, label in judge.items()}
    return [RatedCase(name, raters, judged.get(name)) for name, raters in by_case.items()]


# ---------------------------------------------------------------- metrics

RatedMetric = Metric[RatedCase]


def _beside(unit: RatedCase, level: Level) -> tuple[float, float] | Unscored | None:
    """Return the human majority's label and the judge's, or why the judge gave none."""
    human, judge = majority(list(unit.labels.values()), level), unit.judge
    if human is None:
        return None
    return judge if judge is None or isinstance(judge, Unscored) else (human, float(judge))


def reliability_rows(
    units: Sequence[RatedCase], dimension: str, scale: LabelScale, measurement: Measurement
) -> list[MetricRow]:
    """Return the rows of one dimension, the confusion table of human majority and judge cell by cell.

    The judge is compared with the human majority: by α, by the share of equal labels, and by Spearman's ρ.
    """

    def metric(
        name: str, read: Callable[[RatedCase], Stats | Unscored | None], estimator: Sums | Weighted, **facts: Any
    ) -> RatedMetric:
        given = {"unit": "none", "range": (-1.0, 1.0), "test": "none", **facts}
        minimum = f"{MIN_UNITS} units with {MIN_RATERS} raters, and labels that differ"
        return Metric(
            Facts(f"reliability.{dimension}.{name}", minimum=minimum, **given),
            read,
            replace(estimator, min_stats=MIN_UNITS),
        )

    def of_humans(unit: RatedCase) -> Stats | None:
        return tuple(map(float, unit.labels.values())) if len(unit.labels) >= MIN_RATERS else None

    beside = partial(_beside, level=scale.level)
    metrics = [metric("alpha_humans", of_humans, rater_alpha(scale.level))]
    if any(unit.judge is not None for unit in units):
        equal = if_scored(beside, lambda pair: counted(pair[0] == pair[1]))
        metrics += [
            metric("alpha_judge", beside, rater_alpha(scale.level)),
            metric("agreement_judge", equal, Sums(ratio), unit="share", range=(0.0, 1.0)),
        ]
        if scale.level != "nominal":
            metrics.append(metric("spearman_judge", beside, rank_correlation(2)))
    rows = [measurement.row(one, units) for one in metrics]
    count = Facts(f"reliability.{dimension}.confusion", "units", minimum="1 unit", **not_estimated("a count"))
    pairs = {pair for unit in units if (pair := beside(unit)) and not isinstance(pair, Unscored)}
    # A majority between two levels, a median, is in no cell.
    for cell in sorted(pair for pair in pairs if pair[0].is_integer()):
        human, judge = (str(scale.values[int(position)]) for position in cell)
        in_cell = if_scored(beside, partial(lambda cell, pair: (float(pair == cell),), cell))
        rows.append(measurement.row(Metric(count, in_cell, FIRST), units, group={"human": human, "judge": judge}))
    return rows


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
        # A turn that was rated lies in a dialogue.
        of_turns = dimension in TurnRatings.model_fields
        strange = sorted(name for name in labelled if (name.rpartition("@")[0] if of_turns else name) not in known)
        if not strange:
            continue
        found = f"{len(strange)} of {len(labelled)} labelled cases of {dimension!r} unknown, such as {strange[0]!r}"
        if len(strange) == len(labelled):
            raise DataError(found, path=path, expected="ids of the cases of this evaluation")
        log.warning("%s: %s", path, found)


def judged_scales(recipe: EvaluateRecipe) -> dict[str, tuple[str, LabelScale]]:
    """Return the suite and scale of every dimension that is judged; of one name the first counts."""
    settings, suites = recipe.settings, recipe.suites
    found: dict[str, tuple[str, LabelScale]] = {}
    if "dialogue" in suites and recipe.models.turn_judge is not None:
        found |= {name: ("dialogue", LabelScale((1, 2, 3, 4, 5), "ordinal")) for name in TurnRatings.model_fields}
    if "dialogue" in suites:
        found |= {
            name: (
                "dialogue",
                LabelScale(tuple(PRESETS[name].levels[index] for index in _ascending(PRESETS[name])), "ordinal"),
            )
            for name in settings.dialogue.critics
        }
    if "pairwise" in suites:
        scale = LabelScale(("lose", "tie", "win"), "nominal")
        found |= dict.fromkeys(settings.pairwise.dimensions, ("pairwise", scale))
    return found


def _ascending(preset: Preset) -> list[int]:
    """Return the indices of a critic's levels from the lowest value to the highest."""
    return sorted(range(len(preset.levels)), key=lambda index: preset.quarters[index])


def reliability(recipe: EvaluateRecipe, files: Files, flags: Mapping[str, tuple[str, ...]]) -> list[MetricRow]:
    """Return the rows of every dimension that was labelled.

    Args:
        recipe: The recipe.
        files: The cases.
        flags: Per suite, what every one of its rows carries.
    """
    rows: list[MetricRow] = []
    known = judged_scales(recipe)
    for dimension, labels in read_labels(recipe).items():
        suite, scale = known[dimension]
        judged = _judged(dimension, suite, files[suite], swapped=recipe.settings.pairwise.swap)
        units = read_units(labels, dimension, scale, judged)
        ids = (unit.id for unit in units)
        measurement = Measurement.over("reliability", ids, recipe.seed, recipe.statistics, flags.get(suite, ()))
        rows += reliability_rows(units, dimension, scale, measurement)
    return rows


def _judged(dimension: str, suite: str, cases: Sequence[Any], *, swapped: bool) -> dict[str, str | int | Unscored]:
    """Return what the automatic judge says of every case."""
    if suite == "pairwise":
        decisions = {case.id: decide(case, dimension, swapped=swapped) for case in cases}
        return {
            name: found if isinstance(found, Unscored) else _VERDICTS[found.winner] for name, found in decisions.items()
        }
    if dimension in PRESETS:
        return {episode.id: _level(episode, PRESETS[dimension]) for episode in cases}
    return {
        f"{episode.id}@{turn.t}": getattr(turn.ratings, dimension)
        if turn.ratings
        else Unscored(turn.ratings_unscored or "missing")
        for episode in cases
        for turn in episode.turns
    }


def _level(episode: Episode, preset: Preset) -> str | Unscored:
    """Return the level that a critic named most often at the end, of equals the lowest."""
    outcome = read_outcome(episode, preset.name)
    if isinstance(outcome, Unscored):
        return outcome
    reading = episode.turns[len(outcome.values) - 1].readings[preset.name]
    shares: Sequence[float] = reading.counts or reading.weights or ()
    if reading.compat_zero or not shares:
        return Unscored("unparsed")
    return preset.levels[max(_ascending(preset), key=lambda index: shares[index])]
