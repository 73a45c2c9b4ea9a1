"""What is watched while training: rows, their windows, and the guard."""

import json
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from esckit.errors import TrainingError
from esckit.training.callbacks import DivergenceGuard, EpochEnds, MetricsLog, keep_rows, read_rows
from esckit.training.harness import Diverged

ARGS = TrainingArguments(output_dir="unused", use_cpu=True)


def state(step: int) -> TrainerState:
    return TrainerState(global_step=step, epoch=step / 4, is_world_process_zero=True)


def log_step(callback: MetricsLog | DivergenceGuard, step: int, loss: float) -> None:
    logs = {"loss": loss, "grad_norm": 1.0, "learning_rate": 0.1 * step}
    callback.on_log(ARGS, state(step), TrainerControl(), logs=logs)


def test_rows_are_means_of_windows_that_evaluations_and_saves_close(tmp_path: Path):
    rows = MetricsLog(tmp_path / "metrics.jsonl", every=2, steps_per_epoch=4, resumed_step=0, writes=True)
    for step, loss in ((1, 1.0), (2, 3.0), (3, 5.0)):
        log_step(rows, step, loss)
    rows.evaluation(3, {"auc": 0.5, "brier": None})
    rows.on_save(ARGS, state(3), TrainerControl())
    found = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row.get("loss"), row.get("dev")) for row in found] == [
        (2, 2.0, None),
        (3, 5.0, None),
        (3, None, {"auc": 0.5, "brier": None}),
    ]


def test_epochs_end_with_evaluation_and_every_few_steps_with_a_state():
    ends = EpochEnds([4, 7], every=3)
    asked = {step: ends.on_step_end(ARGS, state(step), TrainerControl()) for step in range(1, 8)}
    assert [step for step, found in asked.items() if found.should_evaluate] == [4, 7]
    assert [step for step, found in asked.items() if found.should_save] == [3, 4, 6, 7]


def test_rows_beyond_the_step_gone_on_from_are_cut_off(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"ste')
    MetricsLog(path, every=2, steps_per_epoch=4, resumed_step=4, writes=True)
    assert [row["step"] for row in read_rows(path)] == [2, 4]
    # Before its first state a run begins anew, and measures step 0 again.
    path.write_text('{"step": 0}\n{"step": 2}\n')
    keep_rows(path, 0)
    assert read_rows(path) == []


def test_what_is_kept_keeps_its_bytes_whatever_a_text_holds(tmp_path: Path):
    path = tmp_path / "samples.jsonl"
    first = json.dumps({"step": 1, "reply": "one\u2028two\x85three"}, ensure_ascii=False, separators=(",", ":")) + "\n"
    path.write_text(first + '{"step":2}\n{"st', encoding="utf-8")
    assert [row["step"] for row in read_rows(path)] == [1, 2]
    keep_rows(path, 1)
    assert path.read_bytes() == first.encode()
    keep_rows(path, 0)
    assert path.read_bytes() == b""


def test_only_one_process_writes(tmp_path: Path):
    rows = MetricsLog(tmp_path / "metrics.jsonl", every=1, steps_per_epoch=4, resumed_step=0, writes=False)
    log_step(rows, 1, 1.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_the_guard_stops_and_tells_what_led_to_it(tmp_path: Path, loss: float):
    guard = DivergenceGuard(Diverged(tmp_path / "diverged.json", lambda: ["7/a#m1:c0"], writes=True))
    for step in range(1, 31):
        log_step(guard, step, 1.0)
    with pytest.raises(TrainingError, match=f"step 31: loss is {loss}"):
        log_step(guard, 31, loss)
    told = json.loads((tmp_path / "diverged.json").read_text())
    assert [row["step"] for row in told["rows"]] == list(range(12, 32))
    assert told["rows"][-1]["loss"] == str(loss)
    assert told["input_ids"] == ["7/a#m1:c0"]
