"""What happens between the steps: the best is kept, rows are written, a sharp policy is warned of."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from esckit.errors import TrainingError
from esckit.flow.trainer import Keep, Rows
from esckit.records import JsonlAppender


def state(step: int, best: float | None = None) -> Any:
    return SimpleNamespace(global_step=step, best_metric=best, best_global_step=None)


def test_the_first_best_value_is_kept() -> None:
    kept: list[int] = []
    keep = Keep("valid/loss", greater_is_better=False, keep=lambda step, _: kept.append(step))
    now = state(0)
    for step, value in ((1, 3.0), (2, 2.0), (3, 2.0), (4, 2.5), (5, 1.0)):
        now.global_step = step
        keep.on_evaluate(None, now, None, {"valid/loss": value})
    assert kept == [1, 2, 5]
    assert (now.best_metric, now.best_global_step) == (1.0, 5)


def test_without_a_key_the_last_is_kept_and_nonsense_stops() -> None:
    kept: list[int] = []
    last = Keep(None, greater_is_better=True, keep=lambda step, _: kept.append(step))
    now = state(1)
    last.on_evaluate(None, now, None, {})
    now.global_step = 2
    last.on_evaluate(None, now, None, {})
    assert kept == [1, 2]
    with pytest.raises(TrainingError, match="nan"):
        Keep("x", greater_is_better=True, keep=lambda *_: None).on_evaluate(None, now, None, {"x": float("nan")})


def test_rows_know_their_epoch_and_warn_of_a_sharp_policy_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with JsonlAppender(tmp_path / "m.jsonl") as file, caplog.at_level(logging.WARNING):
        rows = Rows(file, [2, 4], {"tree": 10})
        rows.on_log(None, state(2), None, {"train/loss": 1.0, "train/policy_entropy": 0.29, "epoch": 1.0})
        rows.on_log(None, state(2), None, {"valid/loss": 1.0})
        rows.on_log(None, state(3), None, {"train/loss": 1.0, "train/policy_entropy": 0.2})
        rows.on_log(None, state(4), None, {"train_runtime": 1.0})
    written = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert written == [
        {"update": 2, "epoch": 1, "train/loss": 1.0, "train/policy_entropy": 0.29, "tokens/tree": 10},
        {"update": 2, "epoch": 1, "valid/loss": 1.0},
        {"update": 3, "epoch": 2, "train/loss": 1.0, "train/policy_entropy": 0.2},
    ]
    assert len(caplog.records) == 1
