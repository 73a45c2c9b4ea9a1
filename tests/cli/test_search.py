"""`esckit search` from the shell, on the scripted recipe."""

import json
from pathlib import Path

import pytest

from esckit.records import read_records
from esckit.types import SearchTree
from tests.shell import esckit


@pytest.mark.smoke
def test_the_scripted_recipe_runs_once_from_the_shell(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    first = esckit("search", "smoke/search_scripted", "--out", out, "--json")
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert (found["trees"], found["status"]) == (8, {"complete": 8})
    trees = list(read_records(SearchTree, tmp_path / "run/trees.jsonl"))
    assert {tree.split for tree in trees} == {"train", "valid"}
    again = esckit("search", "smoke/search_scripted", "--out", out, "--json")
    assert again.stdout == first.stdout
    assert "trees: 8/8" in again.stderr


def test_a_dry_run_bounds_the_calls_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = esckit(
        "search", "smoke/search_scripted", "--out", str(out), "--dry-run", "--json", "--set", "mcts.n_simulations=60"
    )
    assert json.loads(done.stdout)["calls_at_most_in_all"] == 8 * 901
    assert not out.exists()


def test_a_trained_policy_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    done = esckit(
        "search",
        "smoke/search_scripted",
        "--out",
        str(tmp_path / "run"),
        "--set",
        "models.strategist={checkpoint: nowhere}",
    )
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
