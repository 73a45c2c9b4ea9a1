"""A run on a cluster of two nodes: the same files as on one machine, whatever dies, leaves or joins."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from esckit.roles.verdicts import load_preset
from tests.models.test_several import ChoiceServer
from tests.shell import ROOT, esckit, started

pytest.importorskip("ray", reason="pip install 'esckit[ray]'")

PLAYERS = """
    '''Scripted models that tests can stop, watch and kill by files beside this one.'''
    import asyncio, os, signal
    from pathlib import Path
    from esckit.models.scripted import load_scripted

    HERE = Path(__file__).parent

    class Watched:
        name = "watched"

        def __init__(self, role):
            self._inner = load_scripted(role)
            self.capabilities = self._inner.capabilities

        async def check(self):
            (HERE / "bug").exists() and self.no_such_thing

        async def complete(self, messages, sampling, *, seed):
            with open(HERE / "calls", "a") as calls:
                calls.write(f"{os.getpid()}\\n")
            n_calls = len((HERE / "calls").read_text().split())
            if (HERE / "kill_at").exists() and n_calls >= int((HERE / "kill_at").read_text()):
                (HERE / "kill_always").exists() or (HERE / "kill_at").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            while (HERE / "hold_at").exists() and n_calls >= int((HERE / "hold_at").read_text()):
                await asyncio.sleep(0.05)
            if (HERE / "fail").exists():
                from esckit.errors import BackendError
                raise BackendError("no", kind="timeout")
            return await self._inner.complete(messages, sampling, seed=seed)

        async def score(self, messages, choices, *, temperature=1.0):
            return await self._inner.score(messages, choices, temperature=temperature)

        async def next_token(self, messages, labels, *, temperature=1.0):
            return await self._inner.next_token(messages, labels, temperature=temperature)

        async def aclose(self):
            pass

    supporter, seeker, critic = map(Watched, ("supporter", "seeker", "critic"))
"""

RECIPE = """
    command: simulate
    seed: 7
    data:        {dataset: esconv, path: "sample:esconv", scheme: files, split: train, limit: 3, merge: true}
    contexts:    {per_dialogue: 2}
    models:
      supporter: {scripted: "players:supporter"}
      seeker:    {scripted: "players:seeker"}
      critic:    {scripted: "players:critic"}
    critic:      {preset: rlff7, readout: sampled, samples: 2, threshold: "0.5"}
    simulation:  {candidates: 2, horizon: 2}
    concurrency: {futures: 4}
"""

WITHOUT_ESCKIT = """
    import sys

    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "esckit":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Hidden())
"""

N_CALLS = 108
FILES = ("contexts.jsonl", "futures.jsonl", "failures.jsonl", "summary.json")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 80 * 1024**2}
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **small})
        found.add_node(num_cpus=1, **small)
        yield found
        found.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "players.py").write_text(dedent(PLAYERS))
    (tmp_path / "recipe.yaml").write_text(dedent(RECIPE))
    return tmp_path


@pytest.fixture
def on_ray(cluster: Any, folder: Path) -> Callable[..., Any]:
    """Return what runs the recipe on the cluster."""

    def run(*changes: str, out: str = "ray") -> Any:
        return esckit(*words(cluster, out, *changes), cwd=folder, env=environment())

    return run


def environment() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": paths}


def words(cluster: Any, out: str, *changes: str) -> list[str]:
    named = (f"executor.address={cluster.address}", "executor.kind=ray", "executor.workers=2", *changes)
    return ["simulate", "recipe.yaml", "--out", out, *(word for change in named for word in ("--set", change))]


def on_one_machine(folder: Path, *changes: str, out: str = "local") -> dict[str, bytes]:
    more = [word for change in changes for word in ("--set", change)]
    ended = esckit("simulate", "recipe.yaml", "--out", out, *more, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return contents(folder / out)


def contents(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in FILES}


def manifest(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return found


def wait_for(is_there: Callable[[], bool], what: str) -> None:
    ends_s = time.monotonic() + 100
    while not is_there():
        assert time.monotonic() < ends_s, f"waited in vain for {what}"
        time.sleep(0.1)


def n_calls(folder: Path) -> int:
    return len((folder / "calls").read_text().split()) if (folder / "calls").exists() else 0


def test_the_files_are_those_of_one_machine_though_workers_die(folder: Path, on_ray: Callable[..., Any]) -> None:
    expected = on_one_machine(folder)
    assert n_calls(folder) == manifest(folder / "local")["spent"]["calls"] == N_CALLS
    (folder / "calls").unlink()
    (folder / "kill_at").write_text("20")
    ended = on_ray()
    assert ended.returncode == 0, ended.stderr
    assert "died; another one takes its place" in ended.stderr
    assert contents(folder / "ray") == expected
    assert len(set((folder / "calls").read_text().split())) >= 2, "one worker played everything"
    ids = [json.loads(line)["id"] for line in (folder / "ray/futures.jsonl").read_text().splitlines()]
    assert len(ids) == len(set(ids)) == 12
    told = manifest(folder / "ray")
    assert any("workers died" in note for note in told["notes"])
    assert told["models"] == manifest(folder / "local")["models"]


def test_every_command_writes_the_files_of_one_machine(cluster: Any, tmp_path: Path) -> None:
    on_cluster = (f"executor.address={cluster.address}", "executor.kind=ray", "executor.workers=2")
    cases = ("data.limit=2", "settings.pairwise.opponent=predict", "statistics.resamples=100", "models.scorer=null")
    runs = (
        ("search", "search_scripted", ("data.limit=2", "mcts.keep_rollouts=true"), ("trees", "rollouts")),
        ("predict", "predict_scripted", ("data.limit=2",), ("predictions",)),
        (
            "evaluate",
            "evaluate_scripted",
            (*cases, "suites=[strategy, response, dialogue, pairwise]", "models.reward=null"),
            ("episodes", "examples/response", "examples/pairwise", "examples/strategy"),
        ),
    )
    for command, recipe, changes, files in runs:
        for out, more in ((command, ()), (f"{command}-ray", on_cluster)):
            given = [word for change in (*changes, *more) for word in ("--set", change)]
            ended = esckit(command, f"smoke/{recipe}", "--out", out, *given, cwd=tmp_path, env=environment())
            assert ended.returncode == 0, ended.stderr
        for name in files:
            pages = [(tmp_path / out / f"{name}.jsonl").read_bytes() for out in (command, f"{command}-ray")]
            assert pages[0], name
            assert pages[0] == pages[1], f"{command}: {name}"


def test_samples_in_one_request_are_those_of_one_machine(folder: Path, on_ray: Callable[..., Any]) -> None:
    levels = load_preset("rlff7").levels
    with ChoiceServer().running() as server:
        server.says = lambda at, seed: levels[(seed + at) % len(levels)]
        critic = f"models.critic={{endpoint: {{base_url: '{server.url}'}}, model: m}}"
        changes = (critic, "critic.samples_as=choices", "critic.samples=5")
        expected = on_one_machine(folder, *changes)
        ended = on_ray(*changes)
        n_readings = [body.get("n") for body in server.chats].count(5) // 2
    assert ended.returncode == 0, ended.stderr
    assert contents(folder / "ray") == expected
    assert n_readings == json.loads(expected["summary.json"])["usage"]["critic"]["calls"]
    exchanges = [one for line in expected["futures.jsonl"].splitlines() for one in json.loads(line)["exchanges"]]
    assert len({str(one["reading"]) for one in exchanges}) > 3, "the critic's answers hardly differ"


@pytest.mark.slow
def test_a_unit_that_kills_its_workers_ends_the_run(folder: Path, on_ray: Callable[..., Any]) -> None:
    (folder / "kill_at").write_text("20")
    (folder / "kill_always").touch()
    ended = on_ray()
    assert ended.returncode == 3, ended.stderr
    assert "3 workers died" in ended.stderr
    assert "Traceback" not in ended.stderr
    (folder / "kill_at").unlink()
    expected = on_one_machine(folder)
    assert on_one_machine(folder, out="ray") == expected, "a run of the cluster goes on without it"


@pytest.mark.slow
def test_exactly_the_calls_of_the_budget_are_made(folder: Path, on_ray: Callable[..., Any]) -> None:
    ended = on_ray("budget.max_calls=50")
    assert ended.returncode == 3, ended.stderr
    assert "50 of 50 calls" in ended.stderr
    assert n_calls(folder) == 50
    assert manifest(folder / "ray")["spent"]["calls"] == 50
    expected = on_one_machine(folder)
    ended = on_ray()
    assert ended.returncode == 0, ended.stderr
    assert contents(folder / "ray") == expected


@pytest.mark.slow
def test_the_failure_rate_holds_over_all_workers(folder: Path, on_ray: Callable[..., Any]) -> None:
    (folder / "fail").touch()
    ended = on_ray("contexts.per_dialogue=10", "simulation.candidates=9")
    assert ended.returncode == 3, ended.stderr
    assert "50 of 50 futures failed" in ended.stderr


@pytest.mark.slow
def test_a_node_leaves_and_another_joins(cluster: Any, folder: Path) -> None:
    expected = on_one_machine(folder)
    (folder / "calls").unlink()
    (folder / "hold_at").write_text("30")
    leaving = next(iter(cluster.worker_nodes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        run = started(*words(cluster, "ray"), log=folder / "log", cwd=folder)
    wait_for(lambda: len(set((folder / "calls").read_text().split())) == 2 if n_calls(folder) else False, "workers")
    cluster.remove_node(leaving, allow_graceful=False)
    (folder / "hold_at").unlink()
    cluster.add_node(num_cpus=1, object_store_memory=80 * 1024**2)
    run.join(120)
    assert run.exitcode == 0, (folder / "log").read_text()
    assert contents(folder / "ray") == expected


def test_ctrl_c_ends_all_workers_and_keeps_their_work(cluster: Any, folder: Path, on_ray: Callable[..., Any]) -> None:
    (folder / "hold_at").write_text("60")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        run = started(*words(cluster, "ray"), log=folder / "log", cwd=folder)
    wait_for(lambda: n_calls(folder) >= 60, "calls")
    assert run.pid is not None
    os.kill(run.pid, signal.SIGTERM)
    run.join(60)
    assert run.exitcode == 130, (folder / "log").read_text()
    for pid in set((folder / "calls").read_text().split()):
        wait_for(
            lambda pid=pid: not Path(f"/proc/{pid}/players").exists() and not is_running(int(pid)), f"{pid} to end"
        )
    n_kept = len((folder / "ray/futures.jsonl").read_text().splitlines())
    assert 0 < n_kept < 12
    (folder / "hold_at").unlink()
    expected = on_one_machine(folder)
    assert on_one_machine(folder, out="ray") == expected


def test_a_bug_of_a_worker_keeps_its_traceback(folder: Path, on_ray: Callable[..., Any]) -> None:
    (folder / "bug").touch()
    ended = on_ray()
    assert ended.returncode == 1, ended.stderr
    assert "no_such_thing" in ended.stderr
    assert not (folder / "ray").exists()


def test_a_place_that_no_node_has_is_refused(on_ray: Callable[..., Any]) -> None:
    ended = on_ray("executor.gpus=1", "executor.wait_s=1")
    assert ended.returncode == 2, ended.stderr
    assert "each needs 1 CPUs and 1 GPUs on one node, and the cluster has 2 CPUs" in ended.stderr
    assert "and 0 GPUs (0 free) on 2 nodes" in ended.stderr


@pytest.mark.slow
def test_workers_need_the_same_package(folder: Path, on_ray: Callable[..., Any]) -> None:
    shutil.copytree(ROOT / "esckit", folder / "other/esckit", ignore=shutil.ignore_patterns("__pycache__"))
    package = folder / "other/esckit/__init__.py"
    package.write_text(re.sub(r"__version__ = .*", '__version__ = "9.9"', package.read_text()))
    ended = on_ray(f"executor.runtime_env.env_vars.PYTHONPATH={folder / 'other'}")
    assert ended.returncode == 2, ended.stderr
    assert "runs esckit 9.9 with the files" in ended.stderr
    (folder / "none").mkdir()
    (folder / "none/sitecustomize.py").write_text(dedent(WITHOUT_ESCKIT))
    ended = on_ray(f"executor.runtime_env.env_vars.PYTHONPATH={folder / 'none'}")
    assert ended.returncode == 2, ended.stderr
    assert "has no esckit, or another version of it" in ended.stderr


@pytest.mark.slow
def test_own_code_and_files_travel_with_the_working_folder(folder: Path, on_ray: Callable[..., Any]) -> None:
    expected = on_one_machine(folder)
    ended = on_ray(f"executor.runtime_env.working_dir={folder}")
    assert ended.returncode == 0, ended.stderr
    assert contents(folder / "ray") == expected
    ended = on_ray("executor.runtime_env.working_dir=/no/such/folder", out="none")
    assert ended.returncode == 2, ended.stderr
    assert "executor.runtime_env: " in ended.stderr


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
