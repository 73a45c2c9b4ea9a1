"""Reward-model metrics: the worked numbers, and what happens without enough data."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esckit.metrics.calibration import accuracy, auc, brier, ece, log_loss, pair_accuracy, reliability

Y = (True, False, True, True, False, False, True, False)
P = (0.92, 0.81, 0.74, 0.63, 0.42, 0.36, 0.27, 0.12)


def test_the_worked_numbers() -> None:
    assert accuracy(P, Y) == 0.75
    assert auc(P, Y) == 0.6875
    assert brier(P, Y) == pytest.approx(0.215038, abs=1e-6)
    assert log_loss(P, Y) == pytest.approx(0.616929, abs=5e-7)
    assert ece(P, Y) == pytest.approx(0.39375)


def test_pair_accuracy_counts_ties_one_half() -> None:
    rewards = [Fraction(value).limit_denominator(10**4) for value in (0.525, 0.3056, 0.4417, 0.4417)]
    found = pair_accuracy((0.7, 0.4, 0.5, 0.3), rewards, ("c",) * 4)
    assert (found.n_pairs, found.share) == (5, 0.8)


def test_pairs_never_cross_contexts() -> None:
    found = pair_accuracy((0.7, 0.4), (Fraction(1), Fraction(0)), ("a", "b"))
    assert (found.n_pairs, found.share) == (0, None)


def test_without_data_there_is_no_number() -> None:
    assert [metric((), ()) for metric in (accuracy, auc, brier, log_loss, ece)] == [None] * 5
    assert auc((0.2, 0.9), (True, True)) is None


def test_the_edges_fall_into_the_outer_bins() -> None:
    bins = reliability((0.0, 1.0), (False, True))
    assert [(bin_.low, bin_.n) for bin_ in bins] == [(0.0, 1), (0.9, 1)]


cases = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]), st.booleans()), min_size=2, max_size=20)


@given(cases)
def test_auc_equals_counting_pairs(found: list[tuple[float, bool]]) -> None:
    p, y = zip(*found, strict=True)
    pairs = [(a > b) + (a == b) / 2 for a, up in found if up for b, down in found if not down]
    assert auc(p, y) == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)
