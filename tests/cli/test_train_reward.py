"""`esckit train-reward` as a user runs it: one process, two processes, under accelerate's launcher, killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.reward.reward_runs import reward_recipe, simulated


def run(*args: str, launcher: tuple[str, ...] = ("-m",), **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, "esckit", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, **options)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    built = reward_recipe(simulated(folder / "simulate"))
    (folder / "recipe.yaml").write_text(json.dumps(built.resolved()))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    """The run of one process."""
    done = run("train-reward", str(recipe), "--out", str(recipe.parent / "alone"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dev"]["n_pairs"] > 0
    return recipe.parent / "alone"


def rows(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_give_the_losses_of_one_and_one_writes(recipe: Path, alone: Path, tmp_path: Path) -> None:
    torchrun = (
        "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
        "--master_port", str(free_port()), "-m",
    )  # fmt: skip
    done = run("train-reward", str(recipe), "--out", str(tmp_path / "two"), launcher=torchrun)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("selected step") == 1
    one, two = rows(alone), rows(tmp_path / "two")
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for ours, theirs in zip(one, two, strict=True):
        if "dev" in ours:
            assert theirs["dev"] == pytest.approx(ours["dev"], abs=1e-5)
        else:
            assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-5)
            assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_the_launcher_starts_the_same_command(recipe: Path, alone: Path, tmp_path: Path) -> None:
    done = run("train-reward", str(recipe), "--out", str(tmp_path / "launched"), "--accelerate", "single", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dev"]["n_pairs"] > 0
    assert (tmp_path / "launched/dev_predictions.jsonl").read_bytes() == (alone / "dev_predictions.jsonl").read_bytes()
    refused = run("train-reward", str(recipe), "--out", str(alone), "--accelerate=single", "--set", "seed=9")
    assert refused.returncode == 2, refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_a_killed_run_goes_on_and_equals_an_unbroken_one(recipe: Path, alone: Path, tmp_path: Path) -> None:
    args = ["train-reward", str(recipe), "--out", str(tmp_path / "cut"), "--set", "logging.save_every=2"]
    started = subprocess.Popen([sys.executable, "-m", "esckit", *args], cwd=ROOT, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if list((tmp_path / "cut/states").glob("checkpoint-*")):
            break
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait()
    done = run(*args)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cut/dev_predictions.jsonl").read_bytes() == (alone / "dev_predictions.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--set", "inputs=[nowhere]"], ["inputs: there is no nowhere", "esckit simulate"]),
        (["--set", "model.backbone=tiny-randon"], ["tiny-random"]),
        (["--set", "label={rule: quantil}"], ["label", "quantile"]),
        (["--set", "label={rule: threshold, delta: 0.99}"], ["one class only", "--dry-run"]),
        (["--accelerate", "zero4"], ["zero4", "zero3"]),
        (["--set", "objective.kind=rrhf", "--set", "model.trainable=head"], ["rrhf"]),
    ],
)
def test_what_is_wrong_is_one_message_and_leaves_nothing(
    recipe: Path, tmp_path: Path, args: list[str], words: list[str]
) -> None:
    done = run("train-reward", str(recipe), *args, "--out", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    planned = run("train-reward", str(recipe), *args, "--out", str(tmp_path / "run"), "--dry-run")
    assert (planned.returncode, planned.stderr) == (2, done.stderr)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_loads_nothing_heavy_and_shows_every_rule(recipe: Path) -> None:
    code = (
        "import sys; from esckit.cli.app import app\n"
        f"try: app(['train-reward', {str(recipe)!r}, '--dry-run', '--json'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.stderr.strip() == "[]", done.stderr
    assert {"goal", "threshold 0.5", "quantile 0.7"} <= json.loads(done.stdout)["positive_share"].keys()


def test_a_dry_run_that_refuses_labels_still_shows_every_rule(recipe: Path, tmp_path: Path) -> None:
    args = ("--set", "label={rule: threshold, delta: 0.99}", "--out", str(tmp_path / "run"), "--dry-run", "--json")
    done = run("train-reward", str(recipe), *args)
    assert done.returncode == 2
    planned = json.loads(done.stdout)
    assert planned["refusal"].startswith("one class only")
    assert planned["warnings"] == []
    assert {"goal", "threshold 0.5", "quantile 0.7"} <= planned["positive_share"].keys()
