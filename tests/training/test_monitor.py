"""What is watched between the steps: rows and their windows, divergence, states, and the best model."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from esckit.errors import TrainingError
from esckit.training.harness import Diverged
from esckit.training.monitor import EarlyStop, EpochEnds, Logs, Monitor, is_best, keep_rows, read_rows
from esckit.training.run import Process, TrainingRun

ARGS = TrainingArguments(output_dir="unused", use_cpu=True)


def state(step: int) -> TrainerState:
    return TrainerState(global_step=step, epoch=step / 4, is_world_process_zero=True)


def means(window: Sequence[Logs]) -> dict[str, float]:
    return {"loss": sum(logs["loss"] for logs in window) / len(window)}


def monitor(run: TrainingRun, *, every: int = 2) -> Monitor:
    return Monitor(
        run,
        Diverged(run, lambda: ["7/a#m1:c0"]),
        watched=lambda logs: ("loss", "grad_norm"),
        means=means,
        epoch=lambda step: step / 4,
        every=every,
    )


def log_step(watching: Monitor, step: int, loss: float) -> None:
    logs = {"loss": loss, "grad_norm": 1.0, "learning_rate": 0.1 * step}
    watching.on_log(ARGS, state(step), TrainerControl(), logs=logs)


def test_rows_are_means_of_windows_closed_by_evaluation_or_save(tmp_path: Path) -> None:
    rows = monitor(TrainingRun(tmp_path))
    for step, loss in ((1, 1.0), (2, 3.0), (3, 5.0)):
        log_step(rows, step, loss)
    rows.on_evaluate(ARGS, state(3), TrainerControl())
    rows.row(3, {"dev": {"auc": 0.5, "brier": float("nan")}})
    rows.on_save(ARGS, state(3), TrainerControl())
    assert read_rows(tmp_path / "metrics.jsonl") == [
        {"step": 2, "epoch": 0.5, "loss": 2.0},
        {"step": 3, "epoch": 0.75, "loss": 5.0},
        {"step": 3, "epoch": 0.75, "dev": {"auc": 0.5, "brier": None}},
    ]


def test_a_row_is_there_before_the_state_of_its_step(tmp_path: Path) -> None:
    rows, saves = monitor(TrainingRun(tmp_path)), TrainerControl(should_save=True)
    rows.on_log(ARGS, state(1), saves, logs={"loss": 1.0, "grad_norm": 1.0})
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1]


def test_states_that_a_kill_left_behind_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "states/checkpoint-4").mkdir(parents=True)
    (tmp_path / "checkpoint").mkdir()
    assert TrainingRun(tmp_path).finished(()) is None
    assert (tmp_path / "states").exists()
    (tmp_path / "summary.json").write_text("{}")
    assert TrainingRun(tmp_path).finished(()) is not None
    assert not (tmp_path / "states").exists()


def test_a_torn_row_is_cut_off_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2, "lo')
    keep_rows(file, 2)
    assert file.read_text() == '{"step": 1}\n'
    assert "metrics.jsonl: cut off an unfinished last line (15 bytes)" in caplog.text


def test_epochs_end_with_evaluation_and_few_steps_with_a_state() -> None:
    ends = EpochEnds([4, 7], every=3)
    asked = {step: ends.on_step_end(ARGS, state(step), TrainerControl()) for step in range(1, 8)}
    assert [step for step, found in asked.items() if found.should_evaluate] == [4, 7]
    assert [step for step, found in asked.items() if found.should_save] == [3, 4, 6, 7]


def test_evaluations_come_more_often_where_they_are_asked_for() -> None:
    ends = EpochEnds([4, 7], every=None, evaluate_every=3)
    asked = {step: ends.on_step_end(ARGS, state(step), TrainerControl()) for step in range(1, 8)}
    assert [step for step, found in asked.items() if found.should_evaluate] == [3, 4, 6, 7]
    assert [step for step, found in asked.items() if found.should_save] == [4, 7]


@pytest.mark.parametrize(("patience", "end"), [(1, 4), (2, 6), (3, 7), (None, None)])
def test_a_training_ends_after_evaluations_without_a_best(patience: int | None, end: int | None) -> None:
    stop = EarlyStop(EpochEnds([4, 7], None, evaluate_every=3), patience)
    ended = []
    for step in (0, 3, 4, 6, 7):
        now = state(step)
        now.best_global_step = min(step, 3)
        control = stop.on_evaluate(ARGS, now, TrainerControl())
        assert control.should_training_stop == control.should_save == stop.is_due(now)
        ended += [step] if control.should_training_stop else []
    assert ended[:1] == ([] if end is None else [end])


def test_rows_beyond_the_step_gone_on_from_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"ste')
    monitor(TrainingRun(tmp_path, state=tmp_path / "states/checkpoint-4"))
    assert [row["step"] for row in read_rows(path)] == [2, 4]
    # Before its first state a run begins anew, and measures step 0 again.
    path.write_text('{"step": 0}\n{"step": 2}\n')
    keep_rows(path, 0)
    assert read_rows(path) == []


def test_rows_that_stay_keep_their_bytes_whatever_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    first = json.dumps({"step": 1, "reply": "one\u2028two\x85three"}, ensure_ascii=False, separators=(",", ":")) + "\n"
    path.write_text(first + '{"step":2}\n{"st', encoding="utf-8")
    assert [row["step"] for row in read_rows(path)] == [1, 2]
    keep_rows(path, 1)
    assert path.read_bytes() == first.encode()
    keep_rows(path, 0)
    assert path.read_bytes() == b""


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    log_step(monitor(TrainingRun(tmp_path, Process(1, 2)), every=1), 1, 1.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_logs(tmp_path: Path, loss: float) -> None:
    watching = monitor(TrainingRun(tmp_path))
    for step in range(1, 31):
        log_step(watching, step, 1.0)
    with pytest.raises(TrainingError, match=f"step 31: loss is {loss}"):
        log_step(watching, 31, loss)
    kept = json.loads((tmp_path / "diverged.json").read_text())
    assert [row["step"] for row in kept["rows"]] == list(range(12, 32))
    assert kept["rows"][-1]["loss"] == str(loss)
    assert kept["input_ids"] == ["7/a#m1:c0"]


Values = Sequence[tuple[int, float | None]]


@pytest.mark.parametrize(
    ("greater_is_better", "values", "best"),
    [
        # What was not trained never stays the best, and equals keep the earlier one.
        (False, ((0, 0.1), (2, 0.5), (4, 0.5), (6, 0.25)), [0, 2, 6]),
        (True, ((2, 0.5), (4, 0.4), (6, 0.6)), [2, 6]),
        (None, ((2, 0.5), (4, 0.4)), [2, 4]),
        (True, ((2, None), (4, 0.1), (6, None)), [2, 4]),
    ],
)
def test_the_best_so_far_is_remembered_in_the_state(
    greater_is_better: bool | None, values: Values, best: list[int]
) -> None:
    remembering, found = state(0), []
    for step, value in values:
        # As it is written and read again where a run is resumed.
        remembering = TrainerState(**{**vars(remembering), "global_step": step})
        if is_best(remembering, value, greater_is_better=greater_is_better):
            found.append(step)
    assert found == best


def test_what_was_trained_before_stays_the_best_until_it_is_beaten() -> None:
    found, remembering = [], state(0)
    for step, value in ((0, 0.5), (2, 0.5), (4, 0.6), (6, 0.4)):
        remembering.global_step = step
        if is_best(remembering, value, greater_is_better=False, start_counts=True):
            found.append(step)
    assert found == [0, 6]
