"""What tests of commands share: a server on loopback, and commands that run in the test's own process."""

import logging
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from esckit.cli import app as cli
from tests.models.fake_server import FakeServer, completion
from tests.shell import ROOT

REPLY = "<think>a</think> <response>That is a lot to carry.</response>"


@pytest.fixture
def server():
    with FakeServer().running() as running:
        running.usual = completion(REPLY)
        yield running


class Done(NamedTuple):
    code: int
    stderr: str


@pytest.fixture
def simulate(monkeypatch, capsys):
    """Run the command in this process; it takes a run folder, the supporter's binding and changes to the recipe."""
    root = logging.getLogger()
    before = (tuple(root.handlers), logging.getLogger("esckit").level, sys.excepthook)
    monkeypatch.chdir(ROOT)

    def run(out: Path, supporter: str, *sets: str) -> Done:
        changes = ("data.limit=2", f"models.supporter={supporter}", *sets)
        argv = ["esckit", "simulate", "smoke/simulate_scripted", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", argv + [f"--set={change}" for change in changes])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Done(left.value.code or 0, capsys.readouterr().err)

    yield run
    root.handlers[:] = before[0]
    logging.getLogger("esckit").setLevel(before[1])
    sys.excepthook = before[2]


@pytest.fixture
def esckit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command in this process; return its exit code and what it printed."""
    monkeypatch.chdir(ROOT)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["esckit", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), *capsys.readouterr()

    return run
