"""`esckit train-rl` as a user runs it: through the command line, stopped, and told wrong things."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from esckit.cli.app import main
from tests.conftest import ROOT


def esckit(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "esckit", *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280)


def test_the_lexicon_recipe_trains_a_policy_from_the_shell(tmp_path: Path) -> None:
    done = esckit("train-rl", "smoke/train_rl_lexicon", "--json", "--set", "optim.max_steps=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    facts = json.loads(done.stdout)
    assert (facts["out"], facts["steps"]) == ("runs/train-rl-smoke-lexicon", 1)
    assert (tmp_path / "runs/train-rl-smoke-lexicon/checkpoint/policy.json").is_file()


@pytest.mark.parametrize(
    ("recipes", "rows"),
    [
        (("simulate smoke/simulate_scripted", "train-rl smoke/train_rl_dpo"), {"rl/dpo/margin", "rl/dpo/accuracy"}),
        (("train-rl smoke/train_rl_online",), {"rl/reward/future", "rl/unscored_share"}),
    ],
    ids=["dpo", "online"],
)
def test_the_other_smoke_recipes_train_as_they_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipes: tuple[str, ...], rows: set[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in recipes:
        monkeypatch.setattr(sys, "argv", ["esckit", *command.split()])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 0
    (out,) = tmp_path.glob("runs/train-rl-*")
    written = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows <= {name for row in written for name in row}
    assert (out / "checkpoint/adapter/adapter_model.safetensors").is_file()
    assert "Policy for emotional support replies" in (out / "checkpoint/README.md").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--set", "grpo.micro_batch=3"], ["grpo", "must divide the batch"]),
        (["--set", "reward.kind=classifier"], ["needs models.reward with a checkpoint"]),
        (["--set", "models.policy.backbone=tiny-randon"], ["tiny-randon", "tiny-random"]),
        (["--set", "data.path=nowhere"], ["nowhere"]),
    ],
)
def test_what_is_wrong_is_one_message_and_leaves_nothing(tmp_path: Path, args: list[str], words: list[str]) -> None:
    done = esckit("train-rl", "smoke/train_rl_lexicon", *args, "--out", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['esckit', 'train-rl', 'smoke/train_rl_online', '--dry-run', '--json'];"
        "from esckit.cli.app import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "sys.exit(','.join({'torch', 'transformers', 'trl', 'peft', 'datasets'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["calls_at_most"]["critic"] > 0
