"""Intervals and tests: the worked numbers."""

import random

import numpy as np
import pytest

from esckit.evaluate.suites.critics import CriticScale
from esckit.evaluate.suites.pairwise import pair_metrics
from esckit.evaluate.suites.response import distinct
from esckit.evaluate.suites.strategy import StrategyScale, strategy_metrics
from esckit.ledger import derive_seed
from esckit.metrics.intervals import (
    all_swaps,
    bootstrap_draws,
    bootstrap_plan,
    holm,
    jackknife_interval,
    percentile_interval,
    sign_flip_p,
    swap_draws,
    two_sided_binomial,
    wilson,
)
from esckit.metrics.metric import RATIO, Metric
from esckit.metrics.rows import MetricRow
from tests.evaluate.casefakes import episode, measurement, pair_case, quarters, response_case, strategy_case


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (54, 130, 0.334292, 0.501334),
        (37, 130, 0.214102, 0.367492),
        (2, 4, 0.150039, 0.849961),
        (0, 10, 0, 0.277533),
        (10, 10, 0.722467, 1),
        (119, 130, 0.854829, 0.952096),
        (32, 32, 0.892821, 1),
    ],
)
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-7)


def test_z_is_the_normal_quantile() -> None:
    assert jackknife_interval(0.0, np.array([-0.5, 0.5])).high == pytest.approx(1.959963984540054 / 2, abs=1e-15)


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [(2, 8, 0.109375), (0, 5, 0.0625), (1, 9, 0.021484), (3, 12, 0.035156), (21, 38, 0.036343), (5, 5, 1), (0, 0, 1)],
)
def test_mcnemar(b: int, c: int, p: float) -> None:
    assert two_sided_binomial(b, c) == pytest.approx(p, abs=5e-7)
    assert two_sided_binomial(c, b) == two_sided_binomial(b, c)


def test_sign_flips_are_enumerated_exactly() -> None:
    assert sign_flip_p([3, 1, 2, -1, 4, 2]) == 6 / 64 == 0.09375


def test_drawn_sign_flips_come_near_the_exact_p() -> None:
    swaps = swap_draws(random.Random(3), 6, 10_000)
    assert sign_flip_p([3, 1, 2, -1, 4, 2], swaps) == pytest.approx(0.09375, abs=0.01)
    assert sign_flip_p([1.0], np.zeros((9, 1), dtype=np.uint8)) == 1.0


def test_all_swaps_are_all_subsets() -> None:
    assert len({tuple(row) for row in all_swaps(4).tolist()}) == 16


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("values", "mean", "low", "high"),
    [
        ([0, 0, 1, 1, 1, 0, 1, 1, 1, 0], 0.6, 0.3, 0.9),
        ([3, 8, 1, 8, 5, 8, 2, 8, 8, 4], 5.5, 3.8, 7.1),
    ],
)
def test_bootstrap(values: list[int], mean: float, low: float, high: float) -> None:
    draws = bootstrap_draws(random.Random(12345), len(values), 10_000)
    stats = [(float(value), 1.0) for value in values]
    assert RATIO.finish(stats) == mean
    found = percentile_interval(RATIO.replay(stats, np.arange(len(values)), draws))
    assert found == pytest.approx((low, high))


def test_the_draws_are_those_of_choices() -> None:
    rng, again = random.Random(5), random.Random(5)
    draws = bootstrap_draws(rng, 4, 3)
    for row in draws:
        assert sorted(again.choices(range(4), k=4)) == [unit for unit in range(4) for _ in range(int(row[unit]))]


def test_the_seed_of_a_plan() -> None:
    assert derive_seed(7, "bootstrap", "dialogue") == 3262345607140199623
    plan = bootstrap_plan(7, "dialogue", ["b", "a", "b"], resamples=5)
    assert plan.units == {"b": 0, "a": 1}
    assert plan.draws.tolist() == bootstrap_draws(random.Random(3262345607140199623), 2, 5).tolist()


def test_undefined_resamples_are_skipped_up_to_one_per_cent() -> None:
    values = np.arange(1000, dtype=float)
    values[:10] = np.nan
    found = percentile_interval(values)
    assert found is not None
    assert found.low == 10 + 24
    values[10] = np.nan
    assert percentile_interval(values) is None


# ---------------------------------------------------------------- intervals without width


def test_a_share_of_independent_cases_falls_back_to_wilson() -> None:
    for index, metric in enumerate(SHARES):
        for predicted, value in (("Q", 1.0), ("R", 0.0)):
            cases = [strategy_case(number, predicted, "Q") for number in range(12)]
            found = row(metric, cases)
            assert (found.value, found.interval.method) == (value, "wilson"), (index, metric.name)
            assert (found.interval.low, found.interval.high) == pytest.approx(wilson(12 * value, 12))
            assert found.reason is None


def test_shares_of_pairs_use_wilson_and_differences_do_not() -> None:
    cases = [pair_case(number, "A", "A") for number in range(12)]
    found = {metric.name.rpartition(".")[2]: row(metric, cases) for metric in pair_metrics("overall")}
    assert {name for name, each in found.items() if each.interval} == {
        "win", "tie", "lose", "position_consistency", "longer_share",
    }  # fmt: skip
    assert (found["lose"].interval.low, found["lose"].interval.high) == pytest.approx((0, 0.2425), abs=1e-4)
    for name, value in (("net", 1.0), ("first_share", 0.5)):
        assert (found[name].value, found[name].reason) == (value, "degenerate")


def test_several_cases_of_a_dialogue_give_no_zero_interval() -> None:
    cases = [strategy_case(number, "Q", "Q", dialogue=f"d{number // 2}") for number in range(24)]
    found = row(SHARES[0], cases)
    assert (found.value, found.interval, found.reason) == (1.0, None, "degenerate")


def test_what_is_no_share_of_cases_has_no_interval_of_zero_width() -> None:
    by_name = {metric.name: metric for metric in strategy_metrics(StrategyScale(("Q", "R")))}
    cases = [strategy_case(number, "Q", "QR"[number % 2]) for number in range(12)]
    assert row(by_name["strategy.entropy_normalised"], cases).reason == "degenerate"
    failed = [episode(f"d{number}", {"rlff7": quarters(0, 0)}, max_turns=2) for number in range(12)]
    critic = CriticScale("rlff7", max_turns=2)
    assert (row(critic.average_turn("strict"), failed).value, row(critic.average_turn("strict"), failed).reason) == (
        2.0,
        "degenerate",
    )
    assert row(critic.success_rate("strict"), failed).interval.method == "wilson"
    replies = [response_case(number, f"word{number}") for number in range(12)]
    assert row(distinct(1), replies).reason == "degenerate"


SHARES = strategy_metrics(StrategyScale(("Q", "R")))[:3]  # accuracy, accuracy_any, correct_of_all


def row(metric: Metric, cases: list) -> MetricRow:
    return measurement("suite", [case.dialogue_id for case in cases]).row(metric, cases)


def test_an_end_within_rounding_error_of_0_is_0() -> None:
    values = np.array([-0.2667, -0.1, *[-9.252e-18] * 6])
    assert percentile_interval(values, level=0.8) == (-0.2667, 0.0)
    left_out = np.array([0.1, 0.2, 0.3])
    half = jackknife_interval(0.0, left_out).high
    assert jackknife_interval(half * (1 + 1e-15), left_out).low == 0.0
    assert percentile_interval(np.array([1e-15, 2e-15]), level=0.8) == (1e-15, 2e-15)
