"""What a reward model must beat is measured like the model itself."""

from fractions import Fraction

import pytest

from esckit.reward.examples import RewardExample
from esckit.reward.quality import baselines, dev_metrics, quality_warnings
from esckit.types import Turn


def example(index: int, n_words: int, label: bool) -> RewardExample:
    return RewardExample(
        id=str(index),
        group=str(index // 2),
        dialogue_id="d",
        turns=(Turn(speaker="seeker", text="I am low."),),
        response="word " * n_words,
        reward=Fraction(int(label)),
        label=label,
    )


def test_every_baseline_has_the_metrics_of_the_model() -> None:
    train = [example(i, 4 + 12 * (i % 2), i % 2 == 1) for i in range(20)] + [example(20, 4, True)]
    dev = [example(i, 3 + 15 * (i % 2), i % 2 == 1) for i in range(9)]
    found = baselines(dev, train, untrained=dev_metrics([0.5] * 9, dev))
    assert all(row.keys() == dev_metrics([0.5] * 9, dev).keys() for row in found.values())
    assert found["majority"]["accuracy"] == pytest.approx(5 / 9)
    assert found["majority"]["ece"] == pytest.approx(abs(11 / 21 - 4 / 9))
    assert found["reply_length"]["auc"] == 1.0
    assert found["reply_length"]["brier"] < 0.1


def test_length_that_says_nothing_gives_the_share() -> None:
    train = [example(i, 5, i % 4 == 0) for i in range(20)]
    found = baselines([example(0, 5, True), example(1, 9, False)], train, untrained=None)
    assert found["reply_length"]["brier"] == pytest.approx((0.75**2 + 0.25**2) / 2, abs=1e-3)


def test_a_ranker_is_warned_of_by_its_pairs_alone() -> None:
    # The better reply of each context has the higher p, but both of the second one lie above both of the first.
    dev = [example(i, 5 + 5 * (i % 2), i % 2 == 0) for i in range(4)]
    ordered = dev_metrics([0.2, 0.1, 0.9, 0.8], dev)
    beside = baselines(dev, dev, untrained=None) | {"majority": {"accuracy": 0.5}}
    assert (ordered["pair_accuracy"], ordered["accuracy"]) == (1.0, 0.5)
    assert any("accuracy 0.500" in warning for warning in quality_warnings(ordered, beside, kind="classifier"))
    beside["reply_length"]["pair_accuracy"] = 0.5
    assert quality_warnings(ordered, beside, kind="pairwise") == []
    noise = quality_warnings(ordered | {"pair_accuracy": 0.5}, beside, kind="rrhf")
    assert noise[0].startswith("dev pair accuracy 0.500 is below 0.55")
    assert noise[1].startswith("dev pair accuracy 0.500 does not beat the length of the reply alone")
    assert quality_warnings(ordered | {"pair_accuracy": None}, beside, kind="pairwise") == []
