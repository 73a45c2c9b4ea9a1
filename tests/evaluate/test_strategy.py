"""Next-strategy metrics: the worked matrices, and what a strategist cannot gain by silence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.errors import DataError
from esckit.evaluate.suite import stage_of
from esckit.evaluate.suites.strategy import StrategyCase, StrategyScale, strategy_metrics, strategy_rows
from esckit.metrics.confusion import (
    accuracy,
    bias,
    entropy_of,
    f1_by_class,
    kl_gold,
    macro_f1,
    preferences,
    weighted_f1,
)
from esckit.metrics.metric import collect
from tests.evaluate.casefakes import measurement, of_matrix, strategy_case

NAMES = ("Question", "Comfort", "Advice")
WORKED = [[20, 9, 6], [3, 15, 4], [2, 1, 10]]
SCALE = StrategyScale(NAMES)


def one(matrix: list[list[float]]) -> np.ndarray:
    return np.asarray([matrix], dtype=float)


def test_the_worked_matrix() -> None:
    matrix = one(WORKED)
    assert accuracy(matrix)[0] == pytest.approx(0.642857, abs=5e-7)
    assert f1_by_class(matrix)[0] == pytest.approx([0.666667, 0.638298, 0.606061], abs=5e-7)
    assert macro_f1(matrix)[0] == pytest.approx(0.637008, abs=5e-7)
    assert weighted_f1(matrix)[0] == pytest.approx(0.639219, abs=5e-7)
    assert entropy_of(matrix.sum(axis=2))[0] == pytest.approx(1.023003, abs=5e-7)
    assert entropy_of(matrix.sum(axis=2))[0] / np.log(3) == pytest.approx(0.931177, abs=5e-7)
    assert entropy_of(matrix.sum(axis=1))[0] == pytest.approx(1.093375, abs=5e-7)
    assert kl_gold(matrix)[0] == pytest.approx(0.048057, abs=5e-7)


def test_the_worked_bias() -> None:
    matrix = one(WORKED)
    assert preferences(matrix)[0] == pytest.approx([1.828818, 0.790989, 0.380193], abs=5e-7)
    assert bias(matrix)[0] == pytest.approx(0.609586, abs=5e-7)
    assert bias(matrix, max_sweeps=20)[0] == pytest.approx(bias(matrix)[0], abs=1e-10)
    assert preferences(one([[4, 3], [1, 2]]))[0] == pytest.approx([1.5, 0.5])
    assert bias(one([[4, 3], [1, 2]]))[0] == pytest.approx(0.5)


def test_bias_needs_errors_that_connect_all_strategies() -> None:
    apart = one([[20, 9, 6], [3, 15, 4], [0, 0, 10]])
    assert np.isnan(bias(apart)[0])
    assert preferences(apart, pseudo_count=0.5)[0] == pytest.approx([2.078692, 0.805252, 0.116056], abs=5e-7)
    assert bias(apart, pseudo_count=0.5)[0] == pytest.approx(0.812990, abs=5e-7)


def test_the_largest_bias_of_eight_strategies() -> None:
    facts = {metric.name: metric.facts for metric in strategy_metrics(StrategyScale(tuple("abcdefgh")))}
    assert facts["strategy.bias_b"].range == pytest.approx((0, 2.645751), abs=5e-7)


def test_absent_labels_are_left_out_of_bias() -> None:
    padded = np.zeros((1, 5, 5))
    padded[0, :3, :3] = WORKED
    assert bias(padded)[0] == pytest.approx(bias(one(WORKED))[0])
    assert np.isnan(preferences(padded)[0, 3:]).all()


matrices = st.lists(st.lists(st.integers(1, 9), min_size=4, max_size=4), min_size=4, max_size=4)


@given(matrices)
@settings(max_examples=25, deadline=None)
def test_preferences_are_the_fixed_point_in_any_batch(matrix: list[list[int]]) -> None:
    batch = np.asarray([matrix, np.ones((4, 4)), np.asarray(matrix).T], dtype=float)
    p = preferences(batch)
    assert p[0] == pytest.approx(preferences(batch[:1])[0])
    assert p[1] == pytest.approx(np.ones(4))
    assert p.sum(axis=1) == pytest.approx(4)
    w = batch[0] * (1 - np.eye(4))
    both = p[0][:, None] + p[0][None, :]
    assert (w * p[0] / both).sum(axis=1) / (w.T / both).sum(axis=1) == pytest.approx(p[0], rel=1e-6)


def test_rows_of_the_worked_matrix() -> None:
    cases = of_matrix(WORKED, NAMES)
    rows = strategy_rows(cases, SCALE, measurement("strategy", [case.dialogue_id for case in cases]))
    by_name = {row.name: row for row in rows if row.group is None}
    assert by_name["strategy.accuracy"].value == pytest.approx(0.642857, abs=5e-7)
    assert by_name["strategy.bias_b"].value == pytest.approx(0.609586, abs=5e-7)
    assert by_name["strategy.majority_accuracy"].value == pytest.approx(25 / 70)
    assert by_name["strategy.frequency_accuracy"].value == pytest.approx((25**2 + 25**2 + 20**2) / 70**2)
    interval = by_name["strategy.accuracy"].interval
    assert interval is not None
    assert interval.method == "bootstrap"
    assert interval.low < 0.642857 < interval.high
    support = [row.value for row in rows if row.name == "strategy.support"]
    assert support == [25, 25, 20]
    assert all(row.value is not None or row.reason for row in rows)
    assert all(row.interval is not None or row.reason for row in rows)


def test_an_undefined_bias_says_why() -> None:
    cases = of_matrix([[20, 9, 6], [3, 15, 4], [0, 0, 10]], NAMES)
    rows = strategy_rows(cases, SCALE, measurement("strategy", [case.dialogue_id for case in cases]))
    row = next(row for row in rows if row.name == "strategy.bias_b")
    assert (row.value, row.reason) == (None, "too few kinds of confusion to estimate B")
    smoothed = StrategyScale(NAMES, pseudo_count=0.5)
    rows = strategy_rows(cases, smoothed, measurement("strategy", [case.dialogue_id for case in cases]))
    row = next(row for row in rows if row.name == "strategy.bias_b")
    assert row.value == pytest.approx(0.812990, abs=5e-7)
    assert "smoothed" in row.flags


def test_a_label_outside_the_taxonomy_is_unscored_and_not_others() -> None:
    cases = [strategy_case(0, "Question", "Question"), strategy_case(1, "Sing a song", "Question")]
    found = collect(strategy_metrics(SCALE)[0], cases)
    assert (found.n, found.unscored) == (1, {"unparsed": 1})
    with pytest.raises(DataError, match="gold label"):
        collect(strategy_metrics(SCALE)[0], [strategy_case(0, "Question", "Song")])


def test_a_case_has_a_prediction_or_a_reason() -> None:
    with pytest.raises(ValueError, match="either"):
        StrategyCase(id="a", dialogue_id="a", gold="Question")


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_silence_cannot_raise_correct_of_all(answers: list[tuple[str, str, bool]]) -> None:
    (metric,) = [one for one in strategy_metrics(SCALE) if one.name == "strategy.correct_of_all"]
    full = [strategy_case(index, predicted, gold) for index, (predicted, gold, _) in enumerate(answers)]
    sure = [
        strategy_case(index, predicted if kept else None, gold) for index, (predicted, gold, kept) in enumerate(answers)
    ]
    values = [metric.finish(collect(metric, cases).stats) for cases in (full, sure)]
    assert values[0] is not None
    assert values[1] is not None
    assert values[1] <= values[0]


def test_any_label_of_a_merged_turn_counts() -> None:
    case = StrategyCase(id="a", dialogue_id="a", gold="Question", gold_all=("Question", "Advice"), predicted="Advice")
    metrics = {metric.name: metric for metric in strategy_metrics(SCALE)}
    found = [metrics[f"strategy.{name}"] for name in ("accuracy", "accuracy_any")]
    assert [metric.finish(collect(metric, [case]).stats) for metric in found] == [0, 1]
    assert "strategy.accuracy_any" not in {
        metric.name for metric in strategy_metrics(StrategyScale(NAMES, merged=False))
    }


def test_expanded_metrics_have_names_of_their_own() -> None:
    names = [metric.name for metric in strategy_metrics(StrategyScale(NAMES, prefix="strategy_expanded"))]
    assert all(name.startswith("strategy_expanded.") for name in names)


@pytest.mark.parametrize(("n", "stages"), [(1, "E"), (2, "EA"), (3, "ECA"), (4, "ECAA"), (5, "EECAA"), (8, "EEECCAAA")])
def test_stages(n: int, stages: str) -> None:
    assert "".join(stage_of(index, n)[0] for index in range(n)) == stages
