import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from esckit.cli.app import main
from tests.old_runs.old import HERE, Esckit, Finished, digests


@pytest.fixture(scope="module", autouse=True)
def _untouched() -> Iterator[None]:
    before = digests(HERE / "runs")
    yield
    assert digests(HERE / "runs") == before


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with copies of the old runs and of the recipes that made them."""
    for name in ("runs", "recipes"):
        shutil.copytree(HERE / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def esckit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Esckit:
    """Runs a command line in this process, which spares every test the start."""

    def call(words: str) -> Finished:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["esckit", "-q", *shlex.split(words)])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Finished(int(left.value.code or 0), said.out, said.err)

    return call
