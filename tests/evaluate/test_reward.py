"""Reward-model metrics as rows: the worked numbers, and resampling that equals recomputation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.evaluate.suites.reward import RewardCase, reward_metrics, reward_rows
from esckit.metrics.metric import Metric, collect
from tests.evaluate.casefakes import measurement

Y = (True, False, True, True, False, False, True, False)
P = (0.92, 0.81, 0.74, 0.63, 0.42, 0.36, 0.27, 0.12)


def case(index: int, p: float | None, y: bool, *, reward: int = 0, words: int = 5) -> RewardCase:
    return RewardCase(
        id=f"c{index}",
        dialogue_id=f"d{index // 2}",
        context_id=f"x{index // 2}",
        p=p,
        y=y,
        reward_num=reward,
        reward_den=4,
        n_words=words,
        unscored=None if p is not None else "backend",
    )


def metric(name: str) -> Metric[RewardCase]:
    return next(found for found in reward_metrics() if found.name == f"reward.{name}")


def test_the_worked_numbers() -> None:
    cases = [case(index, p, y, reward=index % 4) for index, (p, y) in enumerate(zip(P, Y, strict=True))]
    rows = reward_rows(cases, measurement("reward", [entry.dialogue_id for entry in cases]))
    found = {row.name.removeprefix("reward."): row.value for row in rows if row.group is None}
    assert found["accuracy"] == 0.75
    assert found["auc"] == 0.6875
    assert found["brier"] == pytest.approx(0.215038, abs=6e-7)
    assert found["log_loss"] == pytest.approx(0.616929, abs=5e-7)
    assert found["ece"] == pytest.approx(0.39375)
    assert found["majority_accuracy"] == 0.5
    assert found["length_auc"] == 0.5
    assert all(row.interval is not None or row.reason for row in rows)
    bins = [row for row in rows if row.name == "reward.bin_y"]
    assert sum(row.n for row in bins) == 8


def test_unscored_candidates_are_counted() -> None:
    found = collect(metric("auc"), [case(0, 0.4, True), case(1, None, False)])
    assert (found.n, found.unscored) == (1, {"backend": 1})


def test_without_the_minimum_there_is_no_value() -> None:
    cases = [case(0, 0.4, True, reward=1), case(1, 0.5, True, reward=1)]
    values = {
        name: metric(name).finish(collect(metric(name), cases).stats) for name in ("auc", "spearman", "pair_accuracy")
    }
    assert values == {"auc": None, "spearman": None, "pair_accuracy": None}


entries = st.lists(
    st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.booleans(), st.integers(0, 3)), min_size=4, max_size=16
)


@pytest.mark.parametrize("name", ["accuracy", "auc", "pair_accuracy", "brier", "log_loss", "ece", "spearman"])
@given(found=entries, seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_replaying_equals_recomputing(name: str, found: list[tuple[float, bool, int]], seed: int) -> None:
    cases = [case(index, p, y, reward=reward) for index, (p, y, reward) in enumerate(found)]
    collected = collect(metric(name), cases)
    units = {dialogue: index for index, dialogue in enumerate(dict.fromkeys(collected.dialogue_ids))}
    draws = np.random.default_rng(seed).integers(0, 3, size=(4, len(units))).astype(float)
    replayed = metric(name).estimator.replay(collected.stats, collected.owner(units), draws)
    for row, value in zip(draws, replayed, strict=True):
        again = []
        for stats, dialogue in zip(collected.stats, collected.dialogue_ids, strict=True):
            for copy in range(int(row[units[dialogue]])):
                # A dialogue drawn twice brings its context twice; its copies are not each other's candidates.
                again.append((f"{stats[0]}/{copy}", *stats[1:]) if name == "pair_accuracy" else stats)
        expected = metric(name).finish(again)
        assert (None if np.isnan(value) else value) == (None if expected is None else pytest.approx(expected))
