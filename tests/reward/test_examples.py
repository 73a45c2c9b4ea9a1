"""Labels, splits and pairs of examples: exact, by dialogue, with warnings and refusals."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.config.training import GoalLabel, QuantileLabel, ThresholdLabel
from esckit.errors import DataError
from esckit.reward.examples import check_parts, label_parts, preference_pairs, split_futures
from esckit.types import Future, Outcome

VECTOR = ("-1/10", "1/18", "13/72", "1/5", "11/36", "11/36", "229/720", "2/5", "21/40", "13/20")


def future(number: int, reward: str | None, *, dialogue: str = "d", outcome: Outcome = Outcome.MAX_TURNS) -> Future:
    value = None if reward is None else Fraction(reward)
    return Future(
        id=f"{dialogue}#m{number}:c0",
        context_id=f"{dialogue}#m{number}",
        dialogue_id=dialogue,
        candidate=0,
        run_seed=7,
        outcome=Outcome.FAILED if value is None else outcome,
        k=1,
        reward_num=None if value is None else value.numerator,
        reward_den=None if value is None else value.denominator,
        reward=None if value is None else float(value),
    )


FUTURES = [future(number, reward) for number, reward in enumerate(VECTOR)]


@pytest.mark.parametrize(("q", "delta", "positives"), [("0.7", "229/720", 3), ("0.5", "11/36", 4)])
def test_the_quantile_rule_is_exact(q, delta, positives):
    part = label_parts(FUTURES, FUTURES, QuantileLabel(rule="quantile", q=q)).train
    assert part.labelling.delta == Fraction(delta)
    assert sum(part.labelling.labels) == positives


def test_the_quantile_of_training_labels_dev_too():
    parts = label_parts(FUTURES, [future(90, "0.32"), future(91, "229/720")], QuantileLabel(rule="quantile", q="0.7"))
    assert parts.dev.labelling.labels == (True, False)


def test_failed_futures_give_no_example():
    train, dev = split_futures([*FUTURES, future(50, None)], seed=7, share=0.5)
    assert len(train) + len(dev) == len(FUTURES)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.floats(0.05, 0.95), st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=20))
def test_no_dialogue_is_on_both_sides(seed, share, dialogues):
    futures = [future(n, "1/2", dialogue=name) for name in dialogues for n in range(3)]
    train, dev = split_futures(futures, seed=seed, share=share)
    assert not {f.dialogue_id for f in train} & {f.dialogue_id for f in dev}
    assert len(train) + len(dev) == len(futures)


def test_one_class_says_all_there_is_to_know():
    parts = label_parts(FUTURES, FUTURES, ThresholdLabel(rule="threshold", delta="0.7"))
    with pytest.raises(DataError) as caught:
        check_parts(parts)
    message = str(caught.value)
    assert "training part: 0 of 10 futures are positive, δ 7/10 (0.7000), rewards from -0.1000 to 0.6500" in message
    assert "label rule" in message
    with pytest.raises(DataError, match="dev part"):
        check_parts(label_parts(FUTURES, FUTURES[:3], ThresholdLabel(rule="threshold", delta="0.3")))
    with pytest.raises(DataError, match="no scored future in the dev part"):
        check_parts(label_parts(FUTURES, [], ThresholdLabel(rule="threshold", delta="0.3")))


def test_rare_classes_are_warned_of():
    many = [future(n, "1/10") for n in range(39)] + [future(39, "9/10")]
    warnings = check_parts(label_parts(many, FUTURES, ThresholdLabel(rule="threshold", delta="0.5")))
    assert len(warnings) == 1
    assert warnings[0].startswith("2.5% of the training part is positive")


def test_goal_labels_are_outcomes():
    futures = [future(0, "1/2", outcome=Outcome.RESOLVED), future(1, "1/2")]
    assert label_parts(futures, futures, GoalLabel(rule="goal")).dev.labelling.labels == (True, False)


def test_pairs_need_a_gap_beyond_the_margin():
    values = [Fraction("0.6"), Fraction("0.4"), Fraction("0.1"), Fraction("0.1")]
    assert preference_pairs(values, Fraction(0)) == ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3))
    assert preference_pairs(values, Fraction("0.2")) == ((0, 2), (0, 3), (1, 2), (1, 3))
