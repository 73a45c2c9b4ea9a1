import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.data.splits import dev_position, is_dev


def test_the_position_of_a_dialogue_is_pinned():
    assert dev_position(7, "esconv-9b1f37be6d7e") == pytest.approx(0.161541, abs=1e-6)
    assert dev_position(7, "esconv-a2e71fab0cc9") == pytest.approx(0.466798, abs=1e-6)


def test_the_share_is_a_bound_on_the_position():
    assert is_dev(7, "esconv-9b1f37be6d7e", 0.17)
    assert not is_dev(7, "esconv-9b1f37be6d7e", 0.16)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**63 - 1), st.text())
def test_positions_lie_between_0_and_1(seed, dialogue_id):
    assert 0.0 <= dev_position(seed, dialogue_id) < 1.0
