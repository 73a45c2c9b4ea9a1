"""Label rules: exact thresholds, quantiles with ties, and the goal."""

from fractions import Fraction

import pytest

from esckit.play.futures import label_goal, label_quantile, label_threshold, quantile_delta, rewards
from esckit.types import Future, Outcome

VALUES = [Fraction(text) for text in ("-.1", ".0556", ".1806", ".2", ".3056", ".3056", ".3181", ".4", ".525", ".65")]


def future(reward: Fraction | None, outcome: Outcome = Outcome.MAX_TURNS) -> Future:
    exact = {} if reward is None else {"reward_num": reward.numerator, "reward_den": reward.denominator}
    return Future(id="c:c0", context_id="c", dialogue_id="d", candidate=0, run_seed=7, outcome=outcome, k=1, **exact)


FUTURES = [future(value) for value in VALUES]


@pytest.mark.parametrize(("q", "delta", "positive"), [("0.7", ".3181", 3), ("0.5", ".3056", 4)])
def test_the_worked_quantiles(q: str, delta: str, positive: int) -> None:
    found = label_quantile(FUTURES, Fraction(q))
    assert found.delta == Fraction(delta)
    assert sum(found.labels) == positive
    assert found.positive_share == positive / 10


def test_a_reward_equal_to_the_threshold_is_not_good() -> None:
    one_half = future(Fraction(1, 2))
    assert label_threshold([one_half], Fraction("0.5")).labels == (False,)


def test_the_goal_rule_reads_the_outcome() -> None:
    found = label_goal([future(Fraction(1, 2), Outcome.RESOLVED), future(Fraction(3, 4))])
    assert found.labels == (True, False)
    assert found.delta is None


def test_a_failed_future_has_no_reward_to_label() -> None:
    with pytest.raises(ValueError, match="failed future"):
        rewards([future(None, Outcome.FAILED)])


def test_nothing_has_no_share() -> None:
    assert label_quantile([], Fraction(1, 2)).positive_share is None
    assert quantile_delta([Fraction(1)], Fraction(1)) == 1
