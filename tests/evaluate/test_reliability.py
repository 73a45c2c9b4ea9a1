"""Agreement of raters: the worked units, majorities, and too few of them."""

import krippendorff
import numpy as np
import pytest

from esckit.errors import DataError
from esckit.evaluate.reliability import (
    Label,
    LabelScale,
    RatedCase,
    read_units,
    reliability_rows,
)
from esckit.metrics.calibration import alpha, majority
from esckit.metrics.metric import Unscored
from tests.evaluate.casefakes import measurement

UNITS = [(1, 1), (2, 2), (3, 2), (1, 2), (4, 4), (3, 3), (2,)]
ONE_TO_FIVE = LabelScale((1, 2, 3, 4, 5), "ordinal")


@pytest.mark.parametrize(("level", "expected"), [("nominal", 0.584906), ("ordinal", 0.831773), ("interval", 0.855263)])
def test_the_worked_units(level: str, expected: float) -> None:
    counts = np.array([[unit.count(value) for value in (1, 2, 3, 4)] for unit in UNITS])
    assert alpha(counts, [1, 2, 3, 4], level) == pytest.approx(expected, abs=5e-7)  # type: ignore[arg-type]
    theirs = krippendorff.alpha(value_counts=counts, value_domain=[1, 2, 3, 4], level_of_measurement=level)
    assert theirs == pytest.approx(expected, abs=5e-7)


def test_without_expected_disagreement_there_is_no_alpha() -> None:
    assert alpha(np.array([[2, 0], [2, 0]]), [1, 2], "nominal") is None
    assert alpha(np.array([[1, 0], [0, 1]]), [1, 2], "nominal") is None


def test_majorities() -> None:
    assert majority([1, 1, 2], "ordinal") == 1
    assert majority([1, 2], "ordinal") == 1.5
    assert majority([1, 2], "nominal") is None


def test_rows_against_a_judge() -> None:
    units = [
        RatedCase(f"u{index}", {"x": index % 4, "y": index % 4, "z": (index + 1) % 4}, index % 4) for index in range(12)
    ]
    rows = reliability_rows(units, "comfort", ONE_TO_FIVE, measurement("reliability", [unit.id for unit in units]))
    found = {row.name.removeprefix("reliability.comfort."): row for row in rows}
    assert found["alpha_judge"].value == pytest.approx(1)
    assert found["agreement_judge"].value == 1
    assert found["spearman_judge"].value == pytest.approx(1)
    human = found["alpha_humans"]
    assert human.value is not None
    assert human.interval is not None
    assert human.interval.low <= human.value <= human.interval.high
    cells = {tuple(row.group.values()): row.value for row in rows if row.group}
    assert cells == {(label, label): 3 for label in "1234"}


def test_unanswered_cases_are_counted_but_not_those_not_asked() -> None:
    silent = [Unscored("unparsed")] * 3 + [None] * 2
    said = [index % 4 for index in range(10)]
    units = [
        RatedCase(f"u{index}", {"x": index % 4, "y": index % 4}, judge) for index, judge in enumerate([*said, *silent])
    ]
    rows = reliability_rows(units, "c", ONE_TO_FIVE, measurement("r", [unit.id for unit in units]))
    found = {row.name.removeprefix("reliability.c."): row for row in rows if row.group is None}
    assert found["alpha_humans"].n == 15
    for name in ("alpha_judge", "agreement_judge", "spearman_judge"):
        row = found[name]
        assert (row.n, row.unscored, row.coverage) == (10, {"unparsed": 3}, pytest.approx(10 / 13)), name
        assert "low_coverage" in row.flags
    assert sum(row.value or 0 for row in rows if row.group) == 10


def test_fewer_than_ten_units_give_no_value() -> None:
    units = [RatedCase(f"u{index}", {"x": index % 4, "y": index % 3}, index % 4) for index in range(9)]
    rows = reliability_rows(units, "c", ONE_TO_FIVE, measurement("r", [unit.id for unit in units]))
    assert all(row.value is None and row.reason for row in rows if row.group is None)


def test_labels_are_read_per_dimension() -> None:
    labels = [
        Label(case_id="a", rater="x", dimension="comfort", label=3),
        Label(case_id="a", rater="y", dimension="comfort", label="4"),
        Label(case_id="a", rater="y", dimension="overall", label=1),
    ]
    assert read_units(labels, "comfort", ONE_TO_FIVE, {"a": 5}) == [RatedCase("a", {"x": 2, "y": 3}, 4)]
    failed = Unscored("backend")
    assert read_units(labels, "comfort", ONE_TO_FIVE, {"a": failed}) == [RatedCase("a", {"x": 2, "y": 3}, failed)]
    with pytest.raises(DataError, match="two labels"):
        read_units([*labels, labels[0]], "comfort", ONE_TO_FIVE, {})
    with pytest.raises(DataError, match="label 9"):
        read_units([Label(case_id="a", rater="x", dimension="comfort", label=9)], "comfort", ONE_TO_FIVE, {})
