import pytest
from hypothesis import given
from hypothesis import strategies as st

from esckit.report.blocks import bin_of, bins, flow_of, mean_and_quartiles, transitions


def test_means_stand_with_the_middle_half_and_n():
    series = mean_and_quartiles("s", {2: [1.0, 3.0], 1: [0.5], 3: []})
    assert (series.x, series.y, series.n) == ((1.0, 2.0), (0.5, 2.0), (1, 2))
    assert (series.low, series.high) == ((0.5, 1.5), (0.5, 2.5))


def test_bins_are_round():
    start, width = bins([0.2125, 0.55])
    assert (start, width) == pytest.approx((0.2, 0.025))
    assert bin_of(0.225, start, width) == 1
    assert bin_of(bins([0.5])[0], *bins([0.5])) == 0


@given(st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=30))
def test_every_value_has_a_bin(values):
    start, width = bins(values)
    assert all(0 <= bin_of(value, start, width) <= 40 for value in values)


def test_a_flow_counts_labels_by_position_and_what_follows_them():
    flow = flow_of("f", "t", [["a", "b", "a"], ["a", "a"], ["b"], []])
    assert flow.labels == ("a", "b")
    assert flow.totals == ((2, 1), (1, 1), (1, 0))
    assert flow.links == (((0, 0, 1), (0, 1, 1)), ((1, 0, 1),))


def test_a_flow_is_cut_and_absent_without_labels():
    assert flow_of("f", "t", [["a"] * 30]).positions == tuple(str(n) for n in range(1, 11))
    assert flow_of("f", "t", [[], []]) is None


def test_transitions_are_counted_over_all_positions():
    heat = transitions("t", [["a", "b", "a"], ["a", "b"]])
    assert heat.labels == ("a", "b")
    assert heat.counts == ((0, 2), (1, 0))
    assert transitions("t", [["a"]]) is None
