"""Servers that a run starts: shared, awaited, and never left behind, however the run ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from esckit.config.sections import EndpointBinding, ManagedServer
from esckit.errors import ConfigError
from esckit.models.server import Server, check_servers, server_name
from tests.shell import esckit, started

FAKE = Path(__file__).with_name("fake_llm.py")
LONG_S = 60.0


def fake(*options: object) -> str:
    """The command line of a server."""
    return " ".join(map(str, [sys.executable, FAKE, "--port", "{port}", *options]))


def role(serve: str, **more: object) -> str:
    return json.dumps({"endpoint": {"serve": serve, **more}, "model": "m"})


def simulate(out: Path, *sets: str) -> tuple[str, ...]:
    changes = ("data.limit=2", *sets)
    return ("simulate", "smoke/simulate_scripted", "--out", str(out), *(f"--set={change}" for change in changes))


def pids(folder: Path) -> set[int]:
    return {int(file.name) for file in folder.glob("*")}


def is_running(pid: int) -> bool:
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()[:1] not in ("", "Z")


def wait_for(happens: Callable[[], bool]) -> bool:
    until = time.monotonic() + LONG_S
    while time.monotonic() < until and not happens():
        time.sleep(0.05)
    return happens()


def test_roles_share_a_server_that_is_gone_when_the_run_ends(tmp_path: Path) -> None:
    server = role(fake("--pids", tmp_path / "pids", "--children", "--loading", 2), devices=3, name="fake")
    done = esckit(*simulate(tmp_path / "run", f"models.supporter={server}", f"models.seeker={server}"))

    assert done.returncode == 0, done.stderr
    files = list((tmp_path / "pids").glob("*"))
    assert len(files) == 3  # one server, two children
    assert {file.read_text() for file in files} == {"3"}
    assert not any(map(is_running, pids(tmp_path / "pids")))
    models = json.loads((tmp_path / "run/manifest.json").read_text())["models"]
    assert {facts["name"] for facts in models.values()} >= {"fake/m"}


@pytest.mark.parametrize(
    ("options", "more", "texts"),
    [
        (["--fail", 2], {}, ["ended with exit code 2 before it answered", "unrecognized arguments: --bogus"]),
        (["--never"], {"ready_s": 1}, ["has not answered on port", "within 1 s", "raise ready_s"]),
        (["--bound"], {}, ["ended with exit code 1", "Address already in use"]),
        (["--model", "other"], {}, ["does not know the model 'm'", "Check model and serve"]),
    ],
)
def test_a_server_that_does_not_start_says_why(
    tmp_path: Path, options: list[object], more: dict[str, object], texts: list[str]
) -> None:
    command = fake("--pids", tmp_path / "pids", "--children", *options)
    done = esckit(*simulate(tmp_path / "run", f"models.supporter={role(command, **more)}"))

    assert done.returncode == 2, done.stderr
    assert all(text in done.stderr for text in texts), done.stderr
    assert not (tmp_path / "run").exists()
    assert len(pids(tmp_path / "pids")) == 3
    assert not any(map(is_running, pids(tmp_path / "pids")))


def test_a_program_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    done = esckit(*simulate(tmp_path / "run", f"models.supporter={role('no-such-llm --port {port}')}"))
    assert (done.returncode, "there is no program 'no-such-llm'" in done.stderr) == (2, True)


def test_a_run_whose_server_died_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    supporter = f"models.supporter={role(fake('--die-after', 20, '--once', tmp_path / 'once'))}"
    died = esckit(*simulate(tmp_path / "run", supporter))
    assert died.returncode == 3
    assert "ended with exit code 7; the end of its log:\n    CUDA error: out of memory\n" in died.stderr
    assert (tmp_path / "run/failures.jsonl").read_text() == ""

    assert esckit(*simulate(tmp_path / "run", supporter)).returncode == 0
    assert esckit(*simulate(tmp_path / "unbroken", supporter)).returncode == 0
    assert (tmp_path / "run/futures.jsonl").read_bytes() == (tmp_path / "unbroken/futures.jsonl").read_bytes()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("options", [["--never"], ["--latency-s", 600]])
def test_no_process_is_left_when_esckit_is_ended(tmp_path: Path, ending: signal.Signals, options: list[object]) -> None:
    command = fake("--pids", tmp_path / "pids", "--children", *options)
    run = started(*simulate(tmp_path / "run", f"models.supporter={role(command)}"), log=tmp_path / "log")
    assert wait_for(lambda: len(pids(tmp_path / "pids")) == 3), (tmp_path / "log").read_text()
    assert run.pid is not None
    os.kill(run.pid, ending)
    run.join(LONG_S)

    assert run.exitcode == (-signal.SIGKILL if ending == signal.SIGKILL else 130)
    assert wait_for(lambda: not any(map(is_running, pids(tmp_path / "pids"))))


def test_what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    command = fake("--pids", tmp_path / "pids", "--children", "--stubborn")
    done = esckit(*simulate(tmp_path / "run", f"models.supporter={role(command)}"))
    assert done.returncode == 0, done.stderr
    assert not any(map(is_running, pids(tmp_path / "pids")))


def test_a_dry_run_starts_nothing(tmp_path: Path) -> None:
    command = fake("--pids", tmp_path / "pids")
    done = esckit(*simulate(tmp_path / "run", f"models.supporter={role(command)}"), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "pids").exists()


def bindings(*sections: dict[str, object], models: tuple[str, ...] = ("m", "m")) -> list[EndpointBinding]:
    return [
        EndpointBinding(endpoint=ManagedServer.model_validate(section), model=model)
        for section, model in zip(sections, models, strict=True)
    ]


ONE = {"serve": "vllm serve X --port {port}"}
OTHER = {"serve": "vllm serve X --port {port} --enforce-eager"}


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (ONE, OTHER, "on the same devices"),
        (ONE | {"devices": "0"}, OTHER | {"devices": "0"}, "on the same devices"),
        (ONE, ONE | {"environment": {"A": "1"}}, "with another environment"),
        (ONE, ONE | {"name": "b"}, "with another name"),
    ],
)
def test_one_server_named_in_two_ways_is_refused(
    first: dict[str, object], second: dict[str, object], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        check_servers(bindings(first, second))


def test_servers_on_the_same_devices_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    check_servers(bindings(ONE | {"devices": "0,1"}, OTHER | {"devices": "2"}))
    check_servers(bindings(ONE, ONE | {"ready_s": 5.0}))
    assert not caplog.records
    check_servers(bindings(ONE | {"devices": "0,1"}, OTHER | {"devices": "1"}, models=("m", "n")))
    assert "use the same devices" in caplog.text


def test_a_servers_name_follows_from_its_command() -> None:
    one, again, other = (
        server_name(ManagedServer(**section)) for section in (ONE, ONE | {"devices": "1", "ready_s": 9.0}, OTHER)
    )
    assert one == again != other
    assert one.startswith("vllm-")
    assert server_name(ManagedServer(**ONE, name="big")) == "big"


def test_of_processes_on_a_machine_the_first_starts_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    ports = {Server(ManagedServer(serve="no-such-llm --port {port}")).base_url for _ in range(2)}
    assert len(ports) == 1
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match="there is no program"):
        Server(ManagedServer(serve="no-such-llm --port {port}"))
