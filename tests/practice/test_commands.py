"""Every command that plays, in the practice world, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esckit.practice.corpus import PracticePath, dialogues
from esckit.practice.world import load_profile
from tests.shell import esckit

SMALL = ("--set", "data.path=world:default/40", "--set", "seed=3")


def ok(*words: str) -> str:
    done = esckit(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_search_in_the_world(tmp_path: Path) -> None:
    less = ("--set", "mcts.n_simulations=8", *SMALL)
    for n in (1, 16):
        ok("search", "practice/search", *less, "--set", f"concurrency.trees={n}", "--out", str(tmp_path / str(n)))
    trees = [(tmp_path / str(n) / "trees.jsonl").read_bytes() for n in (1, 16)]
    assert trees[0] == trees[1]
    first = json.loads(trees[0].splitlines()[0])
    assert first["prior_source"] == "world:default/random"
    manifest = json.loads((tmp_path / "1" / "manifest.json").read_text())
    assert manifest["determinism"].startswith("identical bytes")
    assert manifest["spent"]["calls"] == 0


def test_simulate_in_the_world(tmp_path: Path) -> None:
    ok("simulate", "practice/simulate", *SMALL, "--set", "contexts.per_dialogue=1", "--out", str(tmp_path / "run"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0.1 < summary["goal_share"] < 0.6
    assert summary["mean_name_mass"] == 1.0
    assert summary["format_ok_share"] == 1.0


def test_evaluate_beside_the_baselines(tmp_path: Path) -> None:
    shown = ok(
        "evaluate",
        "practice/evaluate",
        *SMALL,
        "--set",
        "data.split=[train,valid,test]",
        "--out",
        str(tmp_path / "run"),
    )
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    success = {
        (row["group"] or {}).get("policy", "system"): row["value"] for row in rows if row["name"] == "practice.success"
    }
    assert success["random"] < success["fixed"] < success["rule"] <= success["optimum"]
    critic = next(row["value"] for row in rows if row["name"] == "dialogue.rlff7.sr_strict")
    assert critic == success["system"]
    regret = {
        row["group"]["need"]: row["value"]
        for row in rows
        if row["name"] == "practice.regret" and "need" in (row["group"] or {})
    }
    assert set(regret) == {"heard", "understood", "act"}
    best = next(row for row in rows if row["name"] == "practice.regret" and row["group"] == {"policy": "optimum"})
    assert best["value"] == pytest.approx(0.0, abs=1e-9)
    assert "practice.success of optimum" in shown


def test_another_profile_needs_no_other_policy(tmp_path: Path) -> None:
    others = [f"models.{role}.world=guarded" for role in ("seeker", "supporter", "critic", "strategist")]
    sets = [word for change in others for word in ("--set", change)]
    ok("evaluate", "practice/evaluate", *SMALL, *sets, "--out", str(tmp_path / "guarded"))
    ok("evaluate", "practice/evaluate", *SMALL, "--out", str(tmp_path / "default"))
    done = esckit(
        "evaluate",
        "practice/evaluate",
        *SMALL,
        "--against",
        str(tmp_path / "guarded"),
        "--out",
        str(tmp_path / "again"),
    )
    assert done.returncode == 2
    assert "seeker.model.world" in "".join(done.stderr.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("simulate", "practice/simulate", "--set", "data.path=world:gaurded/10"), "did you mean 'guarded'"),
        (("simulate", "practice/simulate", "--set", "simulation.strategy=none"), "models.strategist"),
        (("simulate", "practice/simulate", "--set", "models.critic.world=open"), "one profile of the practice world"),
        (("search", "aflow/search", "--set", "models.seeker={world: default}"), "a paper's recipe"),
        (("evaluate", "practice/evaluate", "--set", "data.path=world:default"), "world:PROFILE/N"),
        (("evaluate", "practice/evaluate", "--set", "data.path=world:nobody/10"), "unknown profile"),
        (("simulate", "practice/simulate", "--set", "models.strategist.policy=best"), "policy"),
    ],
)
def test_what_is_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = esckit(*words, "--dry-run", "--out", str(tmp_path / "run"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in " ".join(done.stderr.split())


@pytest.mark.parametrize("command", ["search", "simulate", "evaluate"])
def test_a_dry_run_counts_no_calls(command: str) -> None:
    shown = json.loads(ok(command, f"practice/{command}", *SMALL, "--dry-run", "--json"))
    assert shown["calls_at_most_in_all"] == 0
    assert shown["calls_at_most"] == {}


def test_a_model_among_players_of_the_world_is_counted() -> None:
    changed = "models.strategist={scripted: strategist}"
    shown = json.loads(ok("simulate", "practice/simulate", *SMALL, "--set", changed, "--dry-run", "--json"))
    assert set(shown["calls_at_most"]) == {"strategist"}


def test_a_gate_on_the_truth(tmp_path: Path) -> None:
    words = ("evaluate", "practice/evaluate", *SMALL, "--out", str(tmp_path / "run"))
    done = esckit(*words, "--fail-under", "practice.success=1", "--fail-over", "practice.turns=8")
    assert done.returncode in (0, 1), done.stderr
    done = esckit(*words, "--dry-run", "--fail-under", "practice.sucess=0.5")
    assert (done.returncode, "practice.success" in done.stderr) == (2, True)


def test_a_longer_corpus_begins_with_a_shorter_one() -> None:
    short, long = ([*dialogues(PracticePath(load_profile("open"), n, None))] for n in (5, 12))
    assert long[:5] == short
    assert len({dialogue.scenario.situation for dialogue in long}) == 12
    assert all(turn.strategy is None for dialogue in long for turn in dialogue.turns)
    assert all(turn.source_strategy for dialogue in long for turn in dialogue.turns if turn.speaker == "supporter")


def test_the_corpus_can_be_inspected() -> None:
    shown = json.loads(ok("data", "inspect", "world:default/30", "--json"))
    assert shown["format"] == "practice"
