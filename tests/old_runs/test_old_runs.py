"""Run folders and checkpoints of 0.1.0 report, load, and are continued or refused, all through the command line.

README.md says how they were made. Nothing here imports more of esckit than its command line.
"""

import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from esckit.cli.app import main

HERE = Path(__file__).parent
COMMANDS = {(words := shlex.split(line))[3]: words for line in (HERE / "commands.txt").read_text().splitlines()}
KILLED = [run for run in COMMANDS if run.endswith("-killed")]
DONE = [run for run in COMMANDS if run not in KILLED]
RECORDS = ("futures", "contexts", "trees", "predictions", "episodes", "dev_predictions", "samples")


class Finished(NamedTuple):
    code: int
    out: str
    err: str


Esckit = Callable[..., Finished]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def records(run: Path) -> dict[str, str]:
    """Return the digests of what a run made, without what says how it went."""
    kept = (*(f"{name}.jsonl" for name in RECORDS), "checkpoint/", "examples/")
    return {name: found for name, found in digests(run).items() if name.startswith(kept)}


def rows(path: Path | str) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def status(run: str) -> str:
    return str(json.loads(Path(run, "manifest.json").read_text())["status"])


@pytest.fixture(scope="module", autouse=True)
def _untouched() -> Iterator[None]:
    before = digests(HERE / "runs")
    yield
    assert digests(HERE / "runs") == before


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("runs", "recipes"):
        shutil.copytree(HERE / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def esckit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Esckit:
    def call(*words: str) -> Finished:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["esckit", "-q", *words])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Finished(int(left.value.code or 0), said.out, said.err)

    return call


# ---------------------------------------------------------------- reports


@pytest.mark.parametrize("run", COMMANDS)
def test_an_old_run_reports(here: Path, esckit: Esckit, run: str) -> None:
    before = digests(here / run)
    done = esckit("report", run, "--out", "pages/page.html")
    assert done.code == 0, done.err
    assert "0.1.0" in Path("pages/page.html").read_text()
    assert Path("pages/page.md").read_text().startswith("# ")
    assert digests(here / run) == before


def test_old_runs_report_side_by_side(esckit: Esckit) -> None:
    done = esckit("report", *COMMANDS, "--out", "page.html")
    assert done.code == 0, done.err
    page = Path("page.html").read_text()
    assert all(Path(run).name in page for run in COMMANDS)


# ---------------------------------------------------------------- the same recipe again

REFUSED = {"runs/evaluate": "inputs.runs/predict differs"}  # an opponent is known by its replies since then
"""Finished runs that are refused today, and what the message names."""


@pytest.mark.parametrize("run", DONE)
def test_a_finished_old_run_is_done_or_refused(here: Path, esckit: Esckit, run: str) -> None:
    before, all_before = records(here / run), digests(here / run)
    done = esckit(*COMMANDS[run])
    if run in REFUSED:
        assert done.code == 2
        assert done.err.startswith("error: ")
        assert REFUSED[run] in done.err
        assert "--out" in done.err
        assert digests(here / run) == all_before
        return
    assert done.code == 0, done.err
    assert run in done.out
    assert status(run) == "complete"
    assert records(here / run) == before


@pytest.mark.parametrize("run", KILLED)
def test_a_half_finished_old_run_goes_on(here: Path, esckit: Esckit, run: str) -> None:
    names = [f"{name}.jsonl" for name in ("futures", "trees", "predictions", "samples", "examples/strategy")]
    names = [name for name in names if Path(run, name).is_file()]
    before = {name: len(rows(Path(run, name))) for name in names}
    heads = {name: rows(Path(run, name))[: before[name]] for name in names}
    done = esckit(*COMMANDS[run])
    assert done.code == 0, done.err
    assert status(run) == "complete"
    assert all(rows(Path(run, name))[: before[name]] == heads[name] for name in names)
    if run not in ("runs/evaluate-killed", "runs/reward-killed", "runs/flow-killed"):
        assert any(len(rows(Path(run, name))) > before[name] for name in names)
    if "states" in {path.name for path in (HERE / run).iterdir()}:
        assert Path(run, "checkpoint").is_dir()
        assert not Path(run, "states").exists()
