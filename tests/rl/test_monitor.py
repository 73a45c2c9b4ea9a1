"""The guard, the failure rate, and what is written."""

import json
import logging
import math
from types import SimpleNamespace

import pytest
from transformers import TrainerControl

from esckit.errors import FailureRateError, TrainingError
from esckit.rl.monitor import RATE_STEPS, Watch, means, sample_row, watched
from esckit.rl.recipe import RewardWeights
from esckit.training.harness import Diverged
from esckit.training.monitor import Monitor
from esckit.training.run import TrainingRun
from tests.rl.rl_fakes import WELL_FORMED, columns, paired, said

LOGS = {
    "loss": 0.1,
    "grad_norm": 1.0,
    "kl": 0.01,
    "entropy": 2.0,
    "reward": 0.5,
    "unscored": 0.0,
    "parse/ok": 0.75,
    "frac_reward_zero_std": 0.0,
    "completions/max_length": 9.0,
    **{f"moment/{name}": 0.0 for name in ("n", "r", "w", "rr", "ww", "rw")},
}


def monitor(folder, every=2):
    run = TrainingRun(folder)
    return Monitor(run, Diverged(run, lambda: ["c"]), watched=watched, means=means, epoch=float, every=every)


def log(callback, step, **changes):
    state = SimpleNamespace(global_step=step, epoch=0.5, log_history=[])
    callback.on_log(None, state, TrainerControl(), logs={**LOGS, **changes})
    return state


@pytest.mark.parametrize("name", ["loss", "grad_norm", "kl", "entropy", "reward"])
@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_number_that_is_not_finite_stops_the_run(tmp_path, name, value):
    guard = monitor(tmp_path)
    log(guard, 1)
    with pytest.raises(TrainingError, match=f"{name} is"):
        log(guard, 2, **{name: value})
    facts = json.loads((tmp_path / "diverged.json").read_text())
    assert (facts["what"], facts["input_ids"], len(facts["rows"])) == ({name: str(value)}, ["c"], 2)


def test_a_step_without_any_measured_output_is_no_divergence(tmp_path):
    for callback in (monitor(tmp_path), Watch(0.5)):
        log(callback, 1, reward=None, unscored=1.0)
        log(callback, 2)
    assert not (tmp_path / "diverged.json").exists()


def test_too_many_unmeasured_outputs_stop_a_run():
    guard = Watch(0.05)
    for step in range(1, RATE_STEPS):
        log(guard, step, unscored=0.25)
    with pytest.raises(FailureRateError, match="could not be measured"):
        log(guard, RATE_STEPS, unscored=0.25)
    short = Watch(0.05)
    state = log(short, 1, unscored=0.25)
    with pytest.raises(FailureRateError):
        short.on_train_end(None, state, None)


def test_a_resumed_run_is_judged_by_its_earlier_steps_too():
    guard = Watch(0.05)
    earlier = [{**LOGS, "step": step, "unscored": 0.25} for step in (1, 2)]
    guard.on_train_begin(None, SimpleNamespace(log_history=[*earlier, {"eval_loss": 1.0}]), None)
    state = log(guard, 3)
    with pytest.raises(FailureRateError, match=r"16\.7% of the outputs of the last 3 steps"):
        guard.on_train_end(None, state, None)


def test_rows_are_means_of_a_window_and_the_maximum_of_maxima(tmp_path):
    guard = monitor(tmp_path)
    log(guard, 1, loss=0.1, **{"completions/max_length": 9.0})
    log(guard, 2, loss=0.3, **{"completions/max_length": 4.0})
    state = log(guard, 3)
    guard.on_save(None, state, None)
    first, last = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (first["step"], first["rl/loss"], first["rl/completion_tokens/max"]) == (2, pytest.approx(0.2), 9.0)
    assert (first["rl/malformed_share"], first["rl/reward_length_corr"]) == (0.25, None)
    assert last["step"] == 3


def test_what_was_measured_in_no_step_of_a_window_is_null():
    assert means([{"reward": None}, {"reward": None}])["rl/reward/total"] is None
    assert means([{"reward": None}, {"reward": 0.5}])["rl/reward/total"] == 0.5
    assert means([{"completions/mean_length": None, "episode/reached": 0.5}])["rl/completion_tokens/mean"] is None


def test_steps_that_learn_from_an_earlier_batch_have_no_rewards(caplog):
    again = {name: value for name, value in LOGS.items() if name in ("loss", "grad_norm", "kl", "entropy")}
    first = {**LOGS, "moment/n": 2.0, "moment/r": 1.0, "moment/rr": 1.0, "moment/w": 4.0, "moment/ww": 10.0}
    row = means([{**first, "moment/rw": 3.0}, again])
    assert (row["rl/loss"], row["rl/malformed_share"], row["rl/reward_length_corr"]) == (0.1, 0.25, pytest.approx(1.0))
    guard = Watch(0.05)
    with caplog.at_level(logging.WARNING):
        for step in range(100):
            log(guard, step, frac_reward_zero_std=0.9)
            guard.on_log(None, SimpleNamespace(global_step=step, epoch=0.5), TrainerControl(), logs=dict(again))
    assert ["equal rewards" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"kl": 11.0}, "KL"), ({"entropy": 0.05}, "entropy"), ({"parse/ok": 0.4}, "malformed")],
)
def test_warnings_are_given_once(caplog, changes, words):
    guard = Watch(0.05)
    with caplog.at_level(logging.WARNING):
        for step in (1001, 1002):
            log(guard, step, **changes)
    assert [words in record.message for record in caplog.records] == [True]


def test_groups_without_signal_are_warned_of(caplog):
    guard = Watch(0.05)
    with caplog.at_level(logging.WARNING):
        for step in range(100):
            log(guard, step, frac_reward_zero_std=0.9)
    assert ["equal rewards" in record.message for record in caplog.records] == [True]


def test_a_samples_reply_holds_no_reasoning():
    rewards = paired(lambda turns, replies: [0.5, None])
    rewards.future_reward([], said(WELL_FORMED, "Hi."), **columns(2))
    first, second = (sample_row(judged, RewardWeights()) for judged in rewards.last)
    assert (first["reply"], first["reasoning"]) == ("That sounds hard.", "They sound tired.")
    assert (first["future"], first["format"], first["reward"]) == (0.5, 1.0, 1.0)
    assert (second["future"], second["format"], second["reward"]) == (None, None, None)
