"""`esckit train-rl` as a user runs it: through the command line, stopped, and told wrong things."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from esckit.cli.app import main
from tests.sharded.engines import esckit as shared
from tests.shell import esckit


@pytest.mark.smoke
def test_the_lexicon_recipe_trains_a_policy_from_the_shell(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "esckit",
        "train-rl",
        "smoke/train_rl_lexicon",
        "--json",
        "--set=optim.max_steps=1",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    facts = json.loads(done.stdout)
    assert (facts["out"], facts["steps"]) == ("runs/train-rl-smoke-lexicon", 1)
    assert (tmp_path / "runs/train-rl-smoke-lexicon/checkpoint/policy.json").is_file()


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize(
    ("recipes", "rows"),
    [
        (("simulate smoke/simulate_scripted", "train-rl smoke/train_rl_dpo"), {"rl/dpo/margin", "rl/dpo/accuracy"}),
        (("train-rl smoke/train_rl_online",), {"rl/reward/future", "rl/unscored_share"}),
        (("train-rl smoke/train_rl_dialogue",), {"rl/episode/turns", "dev/success_share"}),
    ],
    ids=["dpo", "online", "dialogue"],
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


def test_two_processes_share_a_step_and_one_of_them_writes(tmp_path: Path) -> None:
    changes = {
        "reward.kind": "tests.rl.rl_runs:letter_reward", "grpo.micro_batch": 2, "optim.max_steps": 2,
        "monitor.log_every": 1, "monitor.sample_every": 1,
    }  # fmt: skip
    sets = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    done = shared("ddp", ["train-rl", "smoke/train_rl_lexicon", *sets], tmp_path / "run")
    assert done.code == 0, "\n".join(done.logs)
    assert [log.count("selected step") for log in done.logs] == [1, 0]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "rl/reward/total" in row]
    assert [row["step"] for row in trained] == [1, 2]
    # Two groups of four, whichever process wrote an output: a sum of eight letters, and shares of two groups.
    assert all(row["rl/reward/future"] * 8 == round(row["rl/reward/future"] * 8) for row in trained)
    assert {row["rl/reward/zero_std_share"] for row in trained} <= {0.0, 0.5, 1.0}
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in samples} == {1, 2}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--set", "grpo.n_generations=1"], ["grpo.n_generations (--set)", "greater than or equal to 2, not 1"]),
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
