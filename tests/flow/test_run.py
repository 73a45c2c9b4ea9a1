"""`train-flow` as a pipeline: what it learns, how it goes on after a stop, and what it refuses."""

import asyncio
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esckit.config.sections import Executor, StrategistCheckpoint
from esckit.errors import BudgetError, CheckpointError, ConfigError
from esckit.flow.data import collect
from esckit.flow.objectives import tb
from esckit.flow.run import plan, run
from esckit.flow.text import read_metadata
from esckit.ledger import Ledger
from esckit.roles.cast import Casting
from esckit.roles.pool import ModelPool
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import Limits, Usage
from tests.flow.flow_runs import (
    AFLOW,
    complete_tree,
    gold,
    policy_of,
    recipe,
    rows,
    same,
    some_trees,
    sparse_tree,
    weights,
    write_trees,
)

# ---------------------------------------------------------------- what it learns


def test_leaf_probabilities_become_proportional_to_leaf_values(tmp_path: Path) -> None:
    value = lambda path: (1.0 + ((3 * path[0] + 5 * path[-1]) % 7)) / 8.0  # noqa: E731
    tree = complete_tree("known", "train", value)
    trees = write_trees(tmp_path, [tree])
    exact = recipe(
        trees,
        data={"valid_split": None, "min_actions": 2},
        model={"trainable": "full"},
        objective={"name": "subtb", "state_value": "policy_mean", "weighting": "unique"},
        rank={"weight": 0.0},
        kl={"weight": 0.0},
        optim={"lr": 3.0e-3, "epochs": 250, "paths_per_update": 64, "select": "last", "schedule": "cosine"},
    )
    run(exact, out=tmp_path / "run")
    policy = policy_of(tmp_path / "run")
    root = tree.nodes[0]
    first = policy.read(tree.scenario, root.turns).probabilities
    by_id = {node.id: node for node in tree.nodes}
    reached, wanted = [], []
    for a, abbr in enumerate(AFLOW.abbrs):
        child = by_id[f"r.{abbr}"]
        second = policy.read(tree.scenario, (*root.turns, *child.turns)).probabilities
        reached += [first[a] * p for p in second]
        wanted += [value((a, b)) for b in range(8)]
    distance = sum(abs(p - v / sum(wanted)) for p, v in zip(reached, wanted, strict=True)) / 2
    assert distance < 0.02


def test_metrics_hold_what_is_to_be_watched(tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = run(recipe(write_trees(tmp_path, some_trees())), out=out).summary
    found = rows(out)
    watched = {"loss", "flow", "rank", "kl", "resp", "policy_entropy", "log_flow_mean", "share_at_eps", "tokens"}
    assert {f"train/{name}" for name in watched | {"grad_norm", "lr"}} <= found[1].keys()
    before, *valid = [row for row in found if "valid/loss" in row]
    assert before == found[0]
    assert (before["update"], before["epoch"]) == (0, 0)
    assert [row["epoch"] for row in valid] == [1, 2]
    assert {"valid/flow", "valid/rank", "valid/kl", "valid/best_action"} <= valid[0].keys()
    assert valid[0]["valid/loss"] == pytest.approx(valid[0]["valid/flow"] + valid[0]["valid/rank"])
    assert {f"tokens/{name}" for name in ("padded", "steps", "prefixes", "paths", "tree")} <= found[-2].keys()
    assert [row["epoch"] for row in found if "tokens/tree" in row] == [1, 2]
    assert summary["valid"]["loss"] == min(row["valid/loss"] for row in valid)
    metadata = read_metadata(out)
    assert metadata.dialogue_ids == tuple(f"s{index}" for index in range(6))
    assert metadata.dev_ids == ("s4", "s5")
    assert not (out / "states").exists()
    assert "aflow" in (out / "checkpoint/README.md").read_text()


def updates_of(out: Path, name: str) -> list[int]:
    return [row["update"] for row in rows(out) if name in row]


def test_valid_is_measured_before_training_and_as_often_as_asked(tmp_path: Path) -> None:
    trees = write_trees(tmp_path, some_trees())
    optim = {"epochs": 2, "paths_per_update": 8, "validate_every": 3}
    run(recipe(trees, optim=optim), out=tmp_path / "run")
    assert updates_of(tmp_path / "run", "train/loss") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert updates_of(tmp_path / "run", "valid/loss") == [0, 3, 4, 6, 8]


def test_training_ends_when_valid_does_not_improve(tmp_path: Path) -> None:
    trees = write_trees(tmp_path, some_trees())
    # A rate at which nothing moves: the first measurement stays the best, since equals keep the earlier one.
    optim = {"lr": 1e-30, "epochs": 5, "paths_per_update": 8, "validate_every": 1, "patience": 3}
    summary = run(recipe(trees, optim=optim), out=tmp_path / "run").summary
    assert (summary["best_update"], summary["updates"]) == (1, 4)
    assert updates_of(tmp_path / "run", "train/loss") == [1, 2, 3, 4]


def test_a_round_that_does_not_improve_keeps_its_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trees = write_trees(tmp_path, some_trees())
    run(recipe(trees), out=tmp_path / "first")
    init = {"init": str(tmp_path / "first")}
    worse = recipe(trees, model=init, optim={"lr": 1e-30, "epochs": 1, "validate_every": 1})
    summary = run(worse, out=tmp_path / "second").summary
    assert summary["best_update"] == 0
    assert same(weights(tmp_path / "second"), weights(tmp_path / "first"))
    assert summary["valid"]["loss"] == rows(tmp_path / "second")[0]["valid/loss"]
    assert "that policy is kept" in caplog.text
    better = recipe(trees, model=init, optim={"lr": 1e-3, "epochs": 4})
    assert run(better, out=tmp_path / "third").summary["best_update"] > 0
    assert not same(weights(tmp_path / "third"), weights(tmp_path / "first"))


def test_a_sharp_policy_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("esckit.flow.run.LOW_ENTROPY", 3.0)
    run(recipe(write_trees(tmp_path, some_trees())), out=tmp_path / "run")
    assert sum("close to always choosing the same" in message for message in caplog.messages) == 1


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    settings = recipe(write_trees(tmp_path, some_trees()))
    first = run(settings, out=tmp_path / "run").summary
    before = (tmp_path / "run/checkpoint/heads.safetensors").stat().st_mtime_ns
    assert run(settings, out=tmp_path / "run").summary == first
    assert (tmp_path / "run/checkpoint/heads.safetensors").stat().st_mtime_ns == before


def longest_pair(log_pf: Tensor, log_flow: Tensor, mask: Tensor) -> Tensor:
    """An objective of a user's own; trajectory balance."""
    return tb(log_pf, log_flow, mask)


def scalar(log_pf: Tensor, log_flow: Tensor, mask: Tensor) -> Tensor:
    return log_pf.sum()


@pytest.mark.parametrize(
    "change",
    [
        {"objective": {"name": "tb"}},
        {"objective": {"name": "db", "terminal_boundary": False}},
        {"objective": {"name": "dpo"}, "kl": {"weight": 0.0}},
        {"objective": {"name": "bc", "class_weight": "balanced"}},
        {"objective": {"weighting": "unique", "state_value": "policy_mean"}, "kl": {"form": "full"}},
        {"objective": {"name": "tests.flow.test_run:longest_pair"}},
        {"encoding": {"mode": "path"}},
        {"encoding": {"mode": "prefix", "max_prefix_tokens": 64}},
        {"encoding": {"attention": "tree"}},
        {"encoding": {"strategy_tags": True}, "response_weight": 0.5},
        {"model": {"gradient_checkpointing": True}},
    ],
    ids=str,
)
def test_every_switch_trains(tmp_path: Path, change: dict[str, Any]) -> None:
    run(recipe(write_trees(tmp_path, some_trees()), **change), out=tmp_path / "run")
    assert all(row.get("train/loss", 0.0) == row.get("train/loss", 0.0) for row in rows(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("scalar", r"a loss for each path"), ("nothing", r"an importable module:attr"), ("Path", r"one of \(log_pf, ")],
)
def test_an_objective_that_is_none_is_refused(tmp_path: Path, name: str, expected: str) -> None:
    settings = recipe(write_trees(tmp_path, some_trees()), objective={"name": f"tests.flow.test_run:{name}"})
    with pytest.raises(ConfigError) as raised:
        run(settings, out=tmp_path / "run")
    assert re.search(expected, str(raised.value.expected))


# ---------------------------------------------------------------- one update, however it is computed


def test_one_pass_of_eight_trees_is_eight_passes_of_one(tmp_path: Path) -> None:
    trees = write_trees(tmp_path, [sparse_tree(f"s{index}", "train", index) for index in range(8)])
    found = {}
    for name, tokens in (("1x8", 100_000), ("8x1", 1_200)):
        settings = recipe(
            trees,
            data={"valid_split": None},
            encoding={"max_tokens": tokens},
            optim={"paths_per_update": 1000, "epochs": 3, "select": "last"},
        )
        run(settings, out=tmp_path / name)
        found[name] = ([row["train/loss"] for row in rows(tmp_path / name) if "train/loss" in row], tmp_path / name)
    assert found["1x8"][0] == pytest.approx(found["8x1"][0], rel=1e-5)
    one, eight = weights(found["1x8"][1]), weights(found["8x1"][1])
    assert all(torch.allclose(one[name], eight[name], atol=1e-4) for name in one)


# ---------------------------------------------------------------- a corpus


@pytest.mark.parametrize("unit", ["utterance", "turn"])
def test_gold_strategies_are_learnt_and_measured_on_test(tmp_path: Path, unit: str) -> None:
    summary = run(gold(unit=unit), out=tmp_path / "run").summary
    test = summary["test"]
    assert set(test["by_class"]) == set(read_metadata(tmp_path / "run").strategies)
    assert (
        test["n"] == sum(one["gold"] for one in test["by_class"].values()) == summary["material"]["test"]["decisions"]
    )
    assert {"accuracy", "macro_f1", "weighted_f1"} <= test["majority"].keys() & test["frequency_guessing"].keys()
    assert summary["valid"]["tau"] in (0.0, 0.5, 1.0)
    best = max(row["valid/macro_f1"] for row in rows(tmp_path / "run") if "valid/macro_f1" in row)
    assert summary["valid"]["macro_f1"] == best


def test_the_policy_has_chosen_as_validation_did(tmp_path: Path) -> None:
    """The shift of the logits is in the checkpoint, so whoever loads it decides as was measured."""
    settings = gold()
    summary = run(settings, out=tmp_path / "run").summary
    policy = policy_of(tmp_path / "run", load_taxonomy("esconv"), dtype="float32")
    right = n = 0
    for dialogue in collect(settings.data).parts["test"]:
        for index, turn in enumerate(dialogue.turns):
            if turn.speaker == "supporter" and turn.strategy is not None:
                n += 1
                right += policy.read(dialogue.scenario, dialogue.turns[:index]).strategy == turn.strategy
    assert right / n == pytest.approx(summary["test"]["accuracy"])


def test_hub_counts_of_the_real_corpus(corpora: Path) -> None:
    settings = recipe(
        None,
        data={"gold": {"dataset": "esconv", "path": str(corpora / "esconv"), "scheme": "hub"}},
        objective={"name": "bc"},
    )
    found = plan(settings)
    assert [found[use]["dialogues"] for use in ("train", "valid", "test")] == [910, 195, 195]
    assert found["test"]["decisions"] == 2895


# ---------------------------------------------------------------- the policy


def test_a_policy_is_a_distribution_and_a_choice(tmp_path: Path) -> None:
    tree = some_trees()[0]
    run(recipe(write_trees(tmp_path, some_trees()), optim={"epochs": 1}), out=tmp_path / "run")
    policy = policy_of(tmp_path / "run")
    scope = Ledger(1, "unit").at("r", 0)
    taken, prior, usage, values = asyncio.run(policy.decide(tree.scenario, tree.nodes[0].turns, scope))
    assert sum(prior) == pytest.approx(1.0, abs=1e-12)
    assert min(prior) > 0
    decision = policy.read(tree.scenario, tree.nodes[0].turns)
    expected = [torch.tensor(p).log().item() + v for p, v in zip(decision.probabilities, decision.values, strict=True)]
    assert decision.scores == pytest.approx(expected, abs=1e-5)
    assert taken == decision.strategy
    assert values is not None
    assert len(values) == len(prior)
    assert scope.ledger.usage["strategist"] == usage == Usage(calls=1, prompt_tokens=decision.n_tokens)
    greedy = policy_of(tmp_path / "run", value_weight=0.0).read(tree.scenario, tree.nodes[0].turns)
    assert AFLOW.names.index(greedy.strategy) == max(range(8), key=greedy.probabilities.__getitem__)
    narrow = policy_of(tmp_path / "run", top_k=2).read(tree.scenario, tree.nodes[0].turns)
    assert sum(score > -1e30 for score in narrow.scores) == 2
    named = StrategistCheckpoint(checkpoint=str(tmp_path / "run"), dtype="float32", value_weight=0.0, top_k=2)
    pool = ModelPool(Executor(), Limits(max_calls=1))
    of_a_recipe = Casting(pool, {"strategist": named}, {}, 1, AFLOW).strategist()
    assert asyncio.run(of_a_recipe.decide(tree.scenario, tree.nodes[0].turns, scope)).strategy == greedy.strategy
    assert pool.spent()["prompt_tokens"] == decision.n_tokens
    with pytest.raises(BudgetError):
        asyncio.run(of_a_recipe.decide(tree.scenario, tree.nodes[0].turns, scope))
    asyncio.run(policy.aclose())
    with pytest.raises(CheckpointError, match="taxonomy"):
        policy_of(tmp_path / "run", AFLOW.model_copy(update={"strategies": AFLOW.strategies[::-1]}))
    shutil.rmtree(tmp_path / "run/checkpoint/adapter")
    with pytest.raises(CheckpointError, match="lacks adapter"):
        policy_of(tmp_path / "run")
