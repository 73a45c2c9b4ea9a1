"""`search` as a pipeline: the same bytes whatever the schedule or a crash, and failures that stay failures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from esckit.errors import BudgetError, ConfigError, FailureRateError
from esckit.records import read_records
from esckit.search.expansion import Rollout
from esckit.search.recipe import SearchRecipe
from esckit.search.run import plan, run
from esckit.types import SearchTree

DATA_FILES = ("trees.jsonl", "failures.jsonl", "rollouts.jsonl", "summary.json")
ROLES = ("seeker", "supporter", "critic", "strategist")


def recipe(**sections: Any) -> SearchRecipe:
    base: dict[str, Any] = {
        "command": "search",
        "seed": 7,
        "data": {
            "dataset": "esconv",
            "path": "sample:esconv",
            "scheme": "files",
            "split": ["train", "valid"],
            "limit": 6,
        },
        "models": {role: {"scripted": f"tests.evaluate.players:{role}"} for role in ROLES},
        "mcts": {"n_simulations": 8, "max_depth": 4, "rollout_turns": 2, "keep_rollouts": True},
        "max_failure_rate": 0.5,
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return SearchRecipe.model_validate(base)


def playing(role: str, name: str) -> dict[str, Any]:
    return {role: {"scripted": f"tests.evaluate.players:{name}"}}


def data_bytes(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in DATA_FILES}


def trees_of(out: Path) -> list[SearchTree]:
    return list(read_records(SearchTree, out / "trees.jsonl"))


def test_any_concurrency_writes_the_same_bytes(tmp_path: Path) -> None:
    for n in (1, 64):
        run(recipe(concurrency={"trees": n}), out=tmp_path / str(n))
    assert data_bytes(tmp_path / "1") == data_bytes(tmp_path / "64")


def test_every_tree_is_there_once_with_its_split_and_rollouts(tmp_path: Path) -> None:
    summary = run(recipe(mcts={"trees_per_scenario": 2}), out=tmp_path / "run").summary
    trees = trees_of(tmp_path / "run")
    assert [tree.id for tree in trees] == [f"{tree.scenario.id}#{number % 2}" for number, tree in enumerate(trees)]
    assert summary["trees"] == len(trees) == len({tree.id for tree in trees}) == 12
    assert {tree.split for tree in trees} <= {"train", "valid"}
    assert all(len(tree.nodes[0].turns) == 1 for tree in trees)
    assert trees[0].nodes[0].turns == trees[1].nodes[0].turns
    assert trees[0].nodes[1:] != trees[1].nodes[1:]
    places = [(rollout.tree, rollout.node) for rollout in read_records(Rollout, tmp_path / "run/rollouts.jsonl")]
    assert places == [(tree.id, node.id) for tree in trees for node in tree.nodes[1:]]


def test_trees_can_begin_at_different_turns(tmp_path: Path) -> None:
    changed = {"search": {"root_turns": 1, "root_turns_to": 3}, "mcts": {"trees_per_scenario": 2, "n_simulations": 1}}
    run(recipe(**changed), out=tmp_path / "run")
    openings = [tree.nodes[0].turns for tree in trees_of(tmp_path / "run")]
    assert {sum(turn.speaker == "seeker" for turn in turns) for turns in openings} == {1, 2, 3}
    assert {turns[-1].speaker for turns in openings} == {"seeker"}


@pytest.mark.parametrize("cut", [0, 1, 700, 30_000])
def test_a_run_cut_anywhere_and_resumed_equals_an_unbroken_one(tmp_path: Path, cut: int) -> None:
    run(recipe(), out=tmp_path / "whole")
    run(recipe(), out=tmp_path / "cut")
    broken = tmp_path / "cut/trees.jsonl"
    broken.write_bytes(broken.read_bytes()[:cut])
    for name in ("failures.jsonl", "summary.json"):
        (tmp_path / "cut" / name).unlink()
    run(recipe(), out=tmp_path / "cut")
    assert data_bytes(tmp_path / "whole") == data_bytes(tmp_path / "cut")


@pytest.mark.timeout(120)
def test_a_killed_run_resumes_without_growing_finished_trees(tmp_path: Path) -> None:
    slow = recipe(models=playing("supporter", "slow_supporter"), concurrency={"trees": 1})
    script = (
        "import sys; from pathlib import Path\n"
        "from esckit.search.recipe import SearchRecipe; from esckit.search.run import run\n"
        "run(SearchRecipe.model_validate_json(sys.argv[1]), out=Path(sys.argv[2]))\n"
    )
    arguments = [sys.executable, "-c", script, slow.model_dump_json(), str(tmp_path / "killed")]
    process = subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": os.getcwd()})
    trees = tmp_path / "killed/trees.jsonl"
    while process.poll() is None and not (trees.is_file() and trees.stat().st_size > 0):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = trees.read_bytes().count(b"\n")
    assert 0 < before < 6
    run(slow, out=tmp_path / "killed")
    run(slow, out=tmp_path / "whole")
    assert data_bytes(tmp_path / "killed") == data_bytes(tmp_path / "whole")
    grown = [json.loads(line)["tree"] for line in (tmp_path / "killed/metrics.jsonl").read_text().splitlines()]
    assert len(grown) - len(set(grown)) == 0


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    run(recipe(), out=tmp_path / "run")
    before = data_bytes(tmp_path / "run") | {"metrics": (tmp_path / "run/metrics.jsonl").read_bytes()}
    run(recipe(), out=tmp_path / "run")
    assert data_bytes(tmp_path / "run") | {"metrics": (tmp_path / "run/metrics.jsonl").read_bytes()} == before


def test_another_recipe_is_refused_with_the_field_that_differs(tmp_path: Path) -> None:
    run(recipe(), out=tmp_path / "run")
    run(recipe(concurrency={"trees": 3}, max_failure_rate=0.4), out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"mcts\.rollout_turns"):
        run(recipe(mcts={"rollout_turns": 1}), out=tmp_path / "run")


def test_a_nonsense_critic_yields_failures_and_no_number(tmp_path: Path) -> None:
    with pytest.raises(FailureRateError):
        run(recipe(models=playing("critic", "nonsense")), out=tmp_path / "run")
    trees = trees_of(tmp_path / "run")
    assert {(tree.status, len(tree.nodes), tree.nodes[0].visits) for tree in trees} == {("failed", 1, 0)}
    failures = [json.loads(line) for line in (tmp_path / "run/failures.jsonl").read_text().splitlines()]
    assert len(failures) == 4 * len(trees)
    assert {(one["failure"]["stage"], one["failure"]["attempts"]) for one in failures} == {("critic", 3)}
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["return_mean"], summary["nodes"], summary["failures"]) == (None, None, {"critic/unparsed": 24})


def test_a_seeker_who_always_leaves_makes_every_return_zero(tmp_path: Path) -> None:
    summary = run(recipe(models=playing("seeker", "leaving")), out=tmp_path / "run").summary
    assert (summary["return_mean"], summary["outcomes"]) == (0.0, {"DISENGAGED": 1.0})


def test_siblings_outlive_failures_and_failed_trees_can_regrow(tmp_path: Path) -> None:
    spoilt = recipe(
        models=playing("critic", "sometimes_nonsense"), mcts={"max_failed_simulations": 1}, max_failure_rate=1.0
    )
    summary = run(spoilt, out=tmp_path / "run").summary
    assert 0 < summary["status"]["failed"] < summary["trees"]
    before = data_bytes(tmp_path / "run")
    run(
        spoilt.model_copy(update={"search": spoilt.search.model_copy(update={"retry_failed": True})}),
        out=tmp_path / "run",
    )
    assert data_bytes(tmp_path / "run") == before


def test_a_budget_stops_the_run_and_a_larger_one_resumes_it(tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        run(recipe(budget={"max_calls": 200}, concurrency={"trees": 1}), out=tmp_path / "run")
    assert 0 < len(trees_of(tmp_path / "run")) < 6
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "stopped"
    run(recipe(budget={"max_calls": 100_000}), out=tmp_path / "run")
    run(recipe(), out=tmp_path / "whole")
    assert data_bytes(tmp_path / "run") == data_bytes(tmp_path / "whole")


def test_expected_and_choices_never_parse_text(tmp_path: Path) -> None:
    scripted = {"critic": {"scripted": "critic_rubric"}, "strategist": {"scripted": "strategist"}}
    exact = recipe(models=scripted, critic={"readout": "expected"}, strategist={"readout": "choices"})
    run(exact, out=tmp_path / "run")
    for tree in trees_of(tmp_path / "run"):
        assert tree.readout == "expected"
        assert tree.usage["critic"].calls >= 4 * (len(tree.nodes) - 1)
        assert not all(float(rating).is_integer() for node in tree.nodes[1:] for rating in node.ratings.values())
        assert all(1 <= rating <= 5 for node in tree.nodes[1:] for rating in node.ratings.values())


def test_linear_trees_need_a_mapping_and_have_one_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="esconv_to_aflow"):
        run(recipe(search={"mode": "linear"}), out=tmp_path / "none")
    models = {"seeker": None, "supporter": None}
    changes = {"data": {"mapping": "esconv_to_aflow"}, "mcts": {"keep_rollouts": False}, "models": models}
    linear = recipe(search={"mode": "linear"}, **changes)
    run(linear, out=tmp_path / "run")
    trees = trees_of(tmp_path / "run")
    assert {tree.status for tree in trees} == {"linear"}
    assert all([node.depth for node in tree.nodes] == list(range(len(tree.nodes))) for tree in trees)
    assert any(len(tree.nodes) > 2 for tree in trees)
    assert not (tmp_path / "run/rollouts.jsonl").exists()


def test_the_plan_bounds_the_calls() -> None:
    found = plan(recipe(mcts={"n_simulations": 60, "rollout_turns": 3})).facts()
    assert (found["trees"], found["calls_at_most_in_all"]) == (6, 6 * 901)
    assert plan(recipe(mcts={"rollout_turns": 0})).calls_at_most["strategist"] == 6 * 9
    assert plan(recipe(critic={"readout": "expected"})).calls_at_most["critic"] == 6 * 8 * 3 * 4
    with pytest.raises(ConfigError):
        plan(recipe(critic={"weights": {"empathy": 1.0}}))


def test_the_manifest_and_the_summary_say_what_made_the_run(tmp_path: Path) -> None:
    result = run(recipe(), out=tmp_path / "run")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["prompts"]["seeker"].startswith("seeker_aflow/")
    assert manifest["data"]["ids"] == [tree.scenario.id for tree in trees_of(tmp_path / "run")]
    assert result.summary["environment"]["critic"]["prompt"].startswith("critic_aflow/")
