"""Material of the matrix: the backbone, futures and trees, and the runs of one process to compare with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sharded.cells import arguments, write_wide
from tests.sharded.engines import Done, esckit


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide(tmp_path_factory.mktemp("wide") / "model")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Futures and trees of scripted speakers."""
    folder = tmp_path_factory.mktemp("runs")
    futures = esckit("one", ["simulate", "smoke/simulate_scripted", "--set", "data.limit=6"], folder / "futures", n=1)
    trees = esckit("one", ["search", "smoke/search_scripted"], folder / "search", n=1)
    assert (futures.code, trees.code) == (0, 0), (futures.logs, trees.logs)
    return folder


@pytest.fixture(scope="session")
def alone(wide: Path, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Done]:
    """Returns the run of one process for a cell, made at first use."""
    folder, made = tmp_path_factory.mktemp("alone"), dict[tuple[str, bool], Done]()

    def run(cell: str, bf16: bool) -> Done:
        if (cell, bf16) not in made:
            out = folder / f"{cell}-{bf16}"
            words = arguments(cell, wide=wide, runs=runs, bf16=bf16)
            made[cell, bf16] = esckit("one", words, out, n=1, bf16=bf16, recorded=cell == "grpo")
            assert made[cell, bf16].code == 0, made[cell, bf16].logs[0]
        return made[cell, bf16]

    return run
