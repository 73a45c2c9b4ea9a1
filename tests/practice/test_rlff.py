"""RLFF-ESC in the practice world, as a user types it: what a reward model learns there, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

from tests.shell import esckit

FEW = ("--set", "data.path=world:default/80", "--set", "seed=3")
QUICK = ("optim.epochs=2", "model.max_length=80", "dev.share=0.2", "seed=3")


def ok(*words: str) -> str:
    done = esckit(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_reward_model_beats_length_and_majority(tmp_path: Path) -> None:
    ok("simulate", "practice/simulate", *FEW, "--out", str(tmp_path / "futures"))
    sets = [word for change in (*QUICK, f"inputs=[{tmp_path / 'futures'}]") for word in ("--set", change)]
    ok("train-reward", "practice/train_reward", *sets, "--out", str(tmp_path / "reward"))
    found = json.loads((tmp_path / "reward" / "summary.json").read_text())
    assert found["dev"]["auc"] > found["reply_length"]["auc"] + 0.05
    assert found["dev"]["log_loss"] < found["majority"]["log_loss"]
    assert found["dev"]["log_loss"] < found["reply_length"]["log_loss"]

    # It has no order of candidates alone, so GRPO must be told what it is.
    ranked = f"models.reward.checkpoint={tmp_path / 'reward'}"
    policy = "models.policy={backbone: practice-tiny}"
    done = esckit("train-rl", "practice/train_rl", "--set", ranked, "--set", policy, "--dry-run")
    assert done.returncode == 2
    assert "reward.kind: classifier" in " ".join(done.stderr.split())
