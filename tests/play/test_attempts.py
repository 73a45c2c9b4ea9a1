"""What a manifest says of several attempts at one run: nothing is overwritten, and what is complete stays so."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from esckit.config.sections import Executor
from esckit.errors import BudgetError
from esckit.flow.run import run as train_flow
from esckit.play import runner
from esckit.report.run import write_report
from esckit.roles.pool import ModelPool
from esckit.runs import RunFolder
from esckit.simulate.run import run as simulate
from esckit.types import Limits
from tests.flow import flow_runs
from tests.play.test_vanished import RUNS, Meddler
from tests.simulate.test_run import recipe


class Interrupts(Meddler):
    """Interrupts a run at the moment when its progress is shown first, as the user may."""

    def start(self, total: int, done: int = 0) -> None:
        raise KeyboardInterrupt


INTERRUPTS = Interrupts(lambda: None)


def manifest(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "manifest.json").read_text()))


def statuses(out: Path) -> list[str]:
    return [attempt["status"] for attempt in manifest(out)["attempts"]]


@pytest.mark.parametrize("command", RUNS)
def test_a_finished_run_that_is_repeated_keeps_its_manifest(command: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    RUNS[command](out=out)
    before = manifest(out)
    assert before["spent"]["calls"] > 0
    assert statuses(out) == ["complete"]
    RUNS[command](out=out)
    assert manifest(out) == before
    with pytest.raises(KeyboardInterrupt):
        RUNS[command](out=out, progress=INTERRUPTS)
    assert manifest(out) == before


def test_attempts_are_listed_and_their_sum_is_what_was_spent(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    n_calls = simulate(recipe(), out=whole) and manifest(whole)["spent"]["calls"]
    with pytest.raises(BudgetError):
        simulate(recipe(budget={"max_calls": 30}, concurrency={"futures": 1}), out=out)
    assert (manifest(out)["status"], manifest(out)["spent"]["calls"]) == ("stopped", 30)
    simulate(recipe(), out=out)
    assert statuses(out) == ["stopped", "complete"]
    calls = [attempt["spent"]["calls"] for attempt in manifest(out)["attempts"]]
    assert manifest(out)["spent"]["calls"] == sum(calls) >= n_calls > calls[0] == 30
    text = write_report([out], against=None).page.with_suffix(".md").read_text()
    assert "The run took 2 attempts" in text


@pytest.mark.parametrize("n_processes", [1, 2])
def test_what_a_killed_attempt_spent_is_known(
    n_processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "BOOK_EVERY_S", 0.001)
    out, killed = tmp_path / "run", tmp_path / "killed"

    async def spend(folder: RunFolder) -> None:
        async with ModelPool(Executor(), Limits()) as pool, runner.booking(folder, pool, n_processes=n_processes):
            pool.budget.admit("seeker")
            for _ in range(1000):
                if "spent" in manifest(out):
                    break
                await asyncio.sleep(0.001)
            shutil.copytree(out, killed)

    with RunFolder.open(out, command="simulate", recipe={}) as folder:
        asyncio.run(spend(folder))
    with RunFolder.open(killed, command="simulate", recipe={}) as folder:
        folder.book({"calls": 2})
    assert statuses(killed) == ["killed", "complete"]
    # What the other processes of a shared run spend is unknown.
    assert manifest(killed)["spent"]["calls"] == (3 if n_processes == 1 else None)


def test_a_complete_run_with_work_left_begins_another_attempt(tmp_path: Path) -> None:
    simulate(recipe(), out=tmp_path)
    spent = manifest(tmp_path)["spent"]
    futures = tmp_path / "futures.jsonl"
    futures.write_bytes(futures.read_bytes().rpartition(b'{"schema"')[0])
    with pytest.raises(KeyboardInterrupt):
        simulate(recipe(), out=tmp_path, progress=INTERRUPTS)
    assert (manifest(tmp_path)["status"], statuses(tmp_path)) == ("stopped", ["complete", "stopped"])
    simulate(recipe(), out=tmp_path)
    assert (manifest(tmp_path)["status"], statuses(tmp_path)) == ("complete", ["complete", "stopped", "complete"])
    assert manifest(tmp_path)["spent"]["calls"] > spent["calls"]


def test_a_finished_training_that_is_repeated_keeps_its_manifest(tmp_path: Path) -> None:
    trees = flow_runs.write_trees(tmp_path, flow_runs.some_trees())
    train_flow(flow_runs.recipe(trees), out=tmp_path / "run")
    before = manifest(tmp_path / "run")
    assert statuses(tmp_path / "run") == ["complete"]
    train_flow(flow_runs.recipe(trees), out=tmp_path / "run")
    assert manifest(tmp_path / "run") == before
