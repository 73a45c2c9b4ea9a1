"""A run folder that is moved or deleted while the run writes to it: an error of ours, and nothing in its place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from esckit.errors import StorageError
from esckit.evaluate.run import run as evaluate
from esckit.predict.run import run as predict
from esckit.search.run import run as search
from esckit.simulate.run import run as simulate
from tests.evaluate.evalrecipes import evaluation, prediction
from tests.search.test_run import recipe as search_recipe
from tests.simulate.test_run import recipe as simulate_recipe

RUNS: dict[str, Callable[..., object]] = {
    "simulate": lambda **given: simulate(simulate_recipe(concurrency={"futures": 2}), **given),
    "search": lambda **given: search(search_recipe(concurrency={"trees": 2}), **given),
    "predict": lambda **given: predict(prediction(concurrency={"cases": 2}), **given),
    "evaluate": lambda **given: evaluate(evaluation("response", "dialogue", concurrency={"cases": 2}), **given),
}
DATA_FILE = {
    "simulate": "futures.jsonl",
    "search": "trees.jsonl",
    "predict": "predictions.jsonl",
    "evaluate": "examples/response.jsonl",
}


class Meddler:
    """A progress display that does something to the run folder after some units."""

    def __init__(self, meddle: Callable[[], object], after: int = 2) -> None:
        self.meddle, self.left = meddle, after

    def start(self, total: int, done: int = 0) -> None:
        pass

    def advance(self, n: int = 1, **counts: int) -> None:
        self.left -= 1
        if self.left == 0:
            self.meddle()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("command", RUNS)
def test_a_folder_that_is_moved_away_is_an_error_and_can_go_on(command: str, tmp_path: Path) -> None:
    out, away, whole = tmp_path / "run", tmp_path / "away", tmp_path / "whole"
    with pytest.raises(StorageError, match="was moved or deleted"):
        RUNS[command](out=out, progress=Meddler(lambda: out.rename(away)))
    assert not out.exists()
    away.rename(out)
    RUNS[command](out=out)
    RUNS[command](out=whole)
    assert (out / DATA_FILE[command]).read_bytes() == (whole / DATA_FILE[command]).read_bytes()


@pytest.mark.parametrize("command", RUNS)
def test_a_folder_that_is_deleted_is_an_error(command: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(StorageError, match="was moved or deleted"):
        RUNS[command](out=out, progress=Meddler(lambda: shutil.rmtree(out)))
    assert not out.exists()


@pytest.mark.parametrize("command", RUNS)
def test_a_file_that_is_deleted_or_replaced_is_an_error(command: str, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def replace() -> None:
        (out / DATA_FILE[command]).unlink()
        (out / DATA_FILE[command]).touch()

    with pytest.raises(StorageError, match=Path(DATA_FILE[command]).name):
        RUNS[command](out=out, progress=Meddler(replace))
