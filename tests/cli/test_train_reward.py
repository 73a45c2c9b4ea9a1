"""`esckit train-reward` as a user runs it: one process, two processes, under accelerate's launcher, killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.reward.reward_runs import reward_recipe, simulated
from tests.sharded.engines import esckit as shared
from tests.shell import ROOT, esckit, started


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    built = reward_recipe(simulated(folder / "simulate"))
    (folder / "recipe.yaml").write_text(json.dumps(built.resolved()))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    """The run of one process."""
    done = esckit("train-reward", str(recipe), "--out", str(recipe.parent / "alone"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dev"]["n_pairs"] > 0
    return recipe.parent / "alone"


def rows(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_give_the_losses_of_one_and_one_writes(recipe: Path, alone: Path, tmp_path: Path) -> None:
    done = shared("ddp", ["train-reward", str(recipe)], tmp_path / "two")
    assert done.code == 0, "\n".join(done.logs)
    assert [log.count("selected step") for log in done.logs] == [1, 0]
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
    done = esckit("train-reward", str(recipe), "--out", str(tmp_path / "launched"), "--accelerate", "single", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dev"]["n_pairs"] > 0
    assert (tmp_path / "launched/dev_predictions.jsonl").read_bytes() == (alone / "dev_predictions.jsonl").read_bytes()
    refused = esckit("train-reward", str(recipe), "--out", str(alone), "--accelerate=single", "--set", "seed=9")
    assert refused.returncode == 2, refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_a_killed_run_goes_on_and_equals_an_unbroken_one(recipe: Path, alone: Path, tmp_path: Path) -> None:
    args = ["train-reward", str(recipe), "--out", str(tmp_path / "cut"), "--set", "logging.save_every=2"]
    process = started(*args, log=tmp_path / "log")
    for _ in range(1200):
        if list((tmp_path / "cut/states").glob("checkpoint-*")):
            break
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    done = esckit(*args)
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
    done = esckit("train-reward", str(recipe), *args, "--out", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    planned = esckit("train-reward", str(recipe), *args, "--out", str(tmp_path / "run"), "--dry-run")
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
    done = esckit("train-reward", str(recipe), *args)
    assert done.returncode == 2
    planned = json.loads(done.stdout)
    assert planned["refusal"].startswith("one class only")
    assert planned["warnings"] == []
    assert {"goal", "threshold 0.5", "quantile 0.7"} <= planned["positive_share"].keys()
