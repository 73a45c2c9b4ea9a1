"""A run folder that goes away while a model is trained: noticed at the next step, not at the end of all of them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from esckit.errors import DataError, StorageError
from esckit.flow.run import run as train_flow
from esckit.reward.run import run as train_reward
from esckit.rl.run import run as train_rl
from esckit.training.monitor import keep_rows
from esckit.training.run import TrainingRun
from tests.flow import flow_runs
from tests.play.test_vanished import Meddler
from tests.reward.reward_runs import reward_recipe, simulated
from tests.rl import rl_runs


def _reward(folder: Path, **given: object) -> object:
    return train_reward(reward_recipe(simulated(folder / "futures")), **given)  # type: ignore[arg-type]


def _flow(folder: Path, **given: object) -> object:
    trees = flow_runs.write_trees(folder, flow_runs.some_trees())
    return train_flow(flow_runs.recipe(trees), **given)  # type: ignore[arg-type]


def _rl(folder: Path, **given: object) -> object:
    return train_rl(rl_runs.recipe(), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("train", [_reward, _flow, _rl])
def test_a_training_ends_at_the_step_after_its_folder_went(train: Callable[..., object], tmp_path: Path) -> None:
    out = tmp_path / "run"
    meddler = Meddler(lambda: shutil.move(out, tmp_path / "away"), after=1)
    with pytest.raises(StorageError, match="was moved or deleted"):
        train(tmp_path, out=out, progress=meddler)
    assert meddler.left == 0  # no further step was counted


def test_a_finished_training_without_its_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(StorageError, match="checkpoint is gone"):
        TrainingRun(tmp_path).finished(())
    (tmp_path / "checkpoint").mkdir()
    assert TrainingRun(tmp_path).finished(()) is not None


@pytest.mark.parametrize("line", ["3", "[]", '{"step": null}', "{}"])
def test_rows_that_no_training_wrote_are_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match="no training wrote"):
        keep_rows(path, 2)
