from esckit.report.blocks import flow_of, transitions


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
