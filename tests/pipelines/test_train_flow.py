"""`train-flow` as a pipeline: what it learns, how it goes on after a stop, and what it refuses."""

import asyncio
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import MistralConfig, MistralForCausalLM

from esckit.config.models import CheckpointBinding
from esckit.config.recipe import Executor
from esckit.config.train_flow import TrainFlowRecipe
from esckit.errors import CheckpointError, ConfigError, DataError, TrainingError
from esckit.ledger import Ledger
from esckit.models.flow_metadata import read_metadata
from esckit.models.policy import CheckpointPolicy
from esckit.models.tiny import tiny_tokenizer
from esckit.pipelines.models import ModelPool
from esckit.pipelines.train_flow import plan, run
from esckit.types import Limits, SearchTree
from tests.pipelines.flow_runs import AFLOW, complete_tree, recipe, rows, sparse_tree, write_trees

ABBREVIATIONS = dict(zip(AFLOW.names, AFLOW.abbrs, strict=True))


def some_trees(n: int = 6) -> list[SearchTree]:
    return [sparse_tree(f"s{index}", "valid" if index >= n - 2 else "train", index) for index in range(n)]


def policy_of(out: Path, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.load(out, abbreviations=ABBREVIATIONS, **options)


def weights(out: Path) -> dict[str, torch.Tensor]:
    folder = out / "checkpoint"
    return load_file(str(folder / "heads.safetensors")) | load_file(str(folder / "adapter/adapter_model.safetensors"))


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


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
    first = policy.decide(tree.scenario, root.turns).probabilities
    by_id = tree.by_id()
    reached, wanted = [], []
    for a, abbr in enumerate(AFLOW.abbrs):
        child = by_id[f"r.{abbr}"]
        second = policy.decide(tree.scenario, (*root.turns, *child.turns)).probabilities
        reached += [first[a] * p for p in second]
        wanted += [value((a, b)) for b in range(8)]
    distance = sum(abs(p - v / sum(wanted)) for p, v in zip(reached, wanted, strict=True)) / 2
    assert distance < 0.02


def test_metrics_hold_what_is_to_be_watched(tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = run(recipe(write_trees(tmp_path, some_trees())), out=out).summary
    found = rows(out)
    watched = {"loss", "flow", "rank", "kl", "resp", "policy_entropy", "log_flow_mean", "share_at_eps", "tokens"}
    assert {f"train/{name}" for name in watched | {"grad_norm", "lr"}} <= found[0].keys()
    valid = [row for row in found if "valid/loss" in row]
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


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    settings = recipe(write_trees(tmp_path, some_trees()))
    first = run(settings, out=tmp_path / "run").summary
    before = (tmp_path / "run/checkpoint/heads.safetensors").stat().st_mtime_ns
    assert run(settings, out=tmp_path / "run").summary == first
    assert (tmp_path / "run/checkpoint/heads.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "change",
    [
        {"objective": {"name": "tb"}},
        {"objective": {"name": "db", "terminal_boundary": False}},
        {"objective": {"name": "dpo"}, "kl": {"weight": 0.0}},
        {"objective": {"name": "bc", "class_weight": "balanced"}},
        {"objective": {"weighting": "unique", "state_value": "policy_mean"}, "kl": {"form": "full"}},
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


# ---------------------------------------------------------------- stops


class Stopped(Exception):
    """Stands for whatever ends a process."""


class StopAfter:
    """A progress that ends the process after some updates."""

    def __init__(self, updates: int) -> None:
        self.left = updates

    def start(self, total: int, done: int) -> None: ...

    def advance(self, *, failed: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stopped

    def close(self) -> None: ...


@pytest.mark.parametrize("updates", [1, 3, 4])
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, updates: int) -> None:
    trees = write_trees(tmp_path, some_trees())
    settings = recipe(trees, checkpoints={"every": 1}, optim={"epochs": 2, "paths_per_update": 12})
    run(settings, out=tmp_path / "whole")
    with pytest.raises(Stopped):
        run(settings, out=tmp_path / "cut", progress=StopAfter(updates))
    run(settings, out=tmp_path / "cut")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")


class StopAtTheEnd(StopAfter):
    """A progress that ends the process when training is done and nothing is said about it yet."""

    def close(self) -> None:
        raise Stopped


def test_stopped_between_training_and_summary_trains_nothing_again(tmp_path: Path) -> None:
    settings = recipe(write_trees(tmp_path, some_trees()))
    with pytest.raises(Stopped):
        run(settings, out=tmp_path / "run", progress=StopAtTheEnd(99))
    before = (rows(tmp_path / "run"), weights(tmp_path / "run"))
    summary = run(settings, out=tmp_path / "run").summary
    assert summary["best_update"] == read_metadata(tmp_path / "run").step
    assert rows(tmp_path / "run") == before[0]
    assert same(weights(tmp_path / "run"), before[1])


def test_other_trees_under_the_same_name_are_not_gone_on_with(tmp_path: Path) -> None:
    settings = recipe(write_trees(tmp_path, some_trees()))
    with pytest.raises(Stopped):
        run(settings, out=tmp_path / "run", progress=StopAfter(1))
    write_trees(tmp_path, some_trees(7))
    with pytest.raises(ConfigError, match="other inputs"):
        run(settings, out=tmp_path / "run")


def test_a_diverging_loss_stops_with_the_last_rows(tmp_path: Path) -> None:
    trees = write_trees(tmp_path, some_trees())
    with pytest.raises(TrainingError):
        run(recipe(trees, optim={"lr": 1.0e38, "epochs": 6, "max_grad_norm": 0.0}), out=tmp_path / "run")
    assert (tmp_path / "run/diverged.json").is_file()
    assert not any(row["train/loss"] != row["train/loss"] for row in rows(tmp_path / "run") if "train/loss" in row)


def test_what_was_good_before_a_divergence_is_still_there(tmp_path: Path) -> None:
    # An update an epoch: the first one, at the foot of the warm-up, changes nothing, the second one breaks everything.
    optim = {"lr": 1.0e38, "epochs": 4, "max_grad_norm": 0.0, "paths_per_update": 1000, "warmup_share": 0.5}
    with pytest.raises(TrainingError):
        run(recipe(write_trees(tmp_path, some_trees()), optim=optim), out=tmp_path / "run")
    assert read_metadata(tmp_path / "run").step == 1
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


# ---------------------------------------------------------------- what it refuses


def test_trees_of_different_kinds_are_refused(tmp_path: Path) -> None:
    trees = some_trees()
    for name, odd, words in (
        ("readout", trees[0].model_copy(update={"readout": "expected"}), "read-outs"),
        ("taxonomy", trees[0].model_copy(update={"strategies": AFLOW.names[::-1]}), "taxonomies"),
        ("split", trees[0].model_copy(update={"id": "s0#1", "split": "valid"}), "more than one split"),
    ):
        file = write_trees(tmp_path / name, [*trees, odd])
        with pytest.raises(DataError, match=words):
            plan(recipe(file))


def test_a_tree_file_cut_by_a_crash_is_refused(tmp_path: Path) -> None:
    file = write_trees(tmp_path, some_trees())
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="unfinished last line"):
        plan(recipe(file))


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        plan(recipe(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no trees\.jsonl"):
        plan(recipe(tmp_path))
    only_train = write_trees(tmp_path, [sparse_tree("a", "train", 1)])
    with pytest.raises(DataError, match="no tree in split 'valid'"):
        plan(recipe(only_train))
    failed = write_trees(tmp_path / "failed", [sparse_tree("a", "train", 1, status="failed")])
    with pytest.raises(DataError, match="no finished tree"):
        plan(recipe(failed))


def test_two_rounds_may_grow_the_same_seed_dialogue(tmp_path: Path) -> None:
    first = write_trees(tmp_path / "0", some_trees())
    second = write_trees(tmp_path / "1", [tree.model_copy(update={"round": 1}) for tree in some_trees()])
    both = recipe(first, data={"trees": [str(first), str(second)]}, objective={"weighting": "unique"})
    assert run(both, out=tmp_path / "run").summary["material"]["train"]["trees"] == 8
    assert read_metadata(tmp_path / "run").round == 1
    with pytest.raises(DataError, match="twice"):
        plan(recipe(first, data={"trees": [str(first), str(tmp_path / "0")]}))


def test_corpus_dialogues_as_trees_of_one_path_are_learnt_from(tmp_path: Path) -> None:
    straight = [
        complete_tree(f"s{n}", "valid" if n == 3 else "train", lambda _: 0.5, depth=3, width=1, status="linear")
        for n in range(4)
    ]
    summary = run(recipe(write_trees(tmp_path, straight)), out=tmp_path / "run").summary
    assert summary["material"]["train"] == {"trees": 3, "paths": 3, "decisions": 9}


def test_going_on_from_a_checkpoint_inherits_and_checks(tmp_path: Path) -> None:
    first = write_trees(tmp_path / "0", some_trees())
    run(recipe(first, optim={"epochs": 1}), out=tmp_path / "first")
    later = [sparse_tree("late", "train", 9, round=1), sparse_tree("later", "valid", 10, round=1)]
    second = recipe(write_trees(tmp_path / "1", later), model={"init": str(tmp_path / "first")}, optim={"epochs": 1})
    run(second, out=tmp_path / "second")
    metadata = read_metadata(tmp_path / "second")
    assert metadata.round == 1
    assert {"s0", "s5", "late", "later"} <= set(metadata.dialogue_ids)
    other = second.model_copy(update={"encoding": second.encoding.model_copy(update={"situation": False})})
    with pytest.raises(ConfigError, match=r"encoding\.situation"):
        run(other, out=tmp_path / "third")
    assert not (tmp_path / "third").exists()
    nowhere = second.model_copy(update={"model": second.model.model_copy(update={"init": str(tmp_path / "nowhere")})})
    with pytest.raises(CheckpointError, match=r"no flow\.json"):
        plan(nowhere)
    meta = tmp_path / "first/checkpoint/flow.json"
    data = json.loads(meta.read_text())
    meta.write_text(json.dumps({**data, "strategies": data["strategies"][::-1]}) + "\n")
    with pytest.raises(CheckpointError, match="taxonomy"):
        run(second, out=tmp_path / "fourth")


def test_gold_strategies_are_a_warm_start_where_the_corpus_is_mapped(tmp_path: Path) -> None:
    run(gold(mapping="esconv_to_aflow", limit=4), out=tmp_path / "mapped")
    run(gold(limit=4), out=tmp_path / "own")
    trees = write_trees(tmp_path, some_trees())

    def warm(start: str) -> TrainFlowRecipe:
        return recipe(trees, model={"init": str(tmp_path / start)}, encoding={"strategy_tags": True})

    run(warm("mapped"), out=tmp_path / "warm")
    assert read_metadata(tmp_path / "warm").objective["name"] == "subtb"
    assert len(read_metadata(tmp_path / "warm").dialogue_ids) > 6
    with pytest.raises(CheckpointError, match=r"taxonomy esconv.*Reflective Statements"):
        plan(warm("own"))


@pytest.mark.parametrize("window", [32, 2048])
def test_a_backbone_whose_window_is_too_narrow_for_packing_trains_by_paths(tmp_path: Path, window: int) -> None:
    backbone = tmp_path / "mistral"
    sizes = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=window)).save_pretrained(backbone)
    tiny_tokenizer().save_pretrained(backbone)
    trees = write_trees(tmp_path, some_trees())
    packed = recipe(trees, model={"backbone": str(backbone)}, optim={"epochs": 1})
    if window == 32:
        with pytest.raises(ConfigError, match=r"encoding\.mode: path"):
            run(packed, out=tmp_path / "packed")
        packed = recipe(trees, model={"backbone": str(backbone)}, encoding={"mode": "path"}, optim={"epochs": 1})
    run(packed, out=tmp_path / "run")
    assert (tmp_path / "run/checkpoint/flow.json").is_file()


def test_the_plan_counts_without_a_model(tmp_path: Path) -> None:
    found = plan(recipe(write_trees(tmp_path, some_trees())))
    assert found == {
        "taxonomy": "aflow",
        "train": {"trees": 4, "paths": 32, "decisions": 96},
        "valid": {"trees": 2, "paths": 16, "decisions": 48},
    }


# ---------------------------------------------------------------- several processes


def test_two_processes_train_as_one_and_only_one_writes(tmp_path: Path) -> None:
    trees = write_trees(tmp_path, some_trees())
    run(recipe(trees), out=tmp_path / "one")
    (tmp_path / "recipe.json").write_text(recipe(trees).model_dump_json())
    code = (
        "import os, sys; from pathlib import Path\n"
        "def watch(event, args):\n"
        "    if event in ('open', 'os.rename', 'os.remove') and sys.argv[2] in str(args[0]):\n"
        "        if event != 'open' or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):\n"
        "            raise RuntimeError(f'the second process writes: {event} {args}')\n"
        "if os.environ['RANK'] != '0':\n"
        "    sys.addaudithook(watch)\n"
        "from esckit.config.train_flow import TrainFlowRecipe\n"
        "from esckit.pipelines.train_flow import run\n"
        "recipe = TrainFlowRecipe.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "run(recipe, out=Path(sys.argv[2]))\n"
    )
    (tmp_path / "go.py").write_text(code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    done = subprocess.run(
        [
            *launch,
            "--master_port",
            "29613",
            str(tmp_path / "go.py"),
            str(tmp_path / "recipe.json"),
            str(tmp_path / "two"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in (tmp_path / "two").rglob("*")} == {
        path.name for path in (tmp_path / "one").rglob("*")
    }
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        assert left.keys() == right.keys()
        assert left == pytest.approx(right, rel=1e-4, abs=1e-6)


# ---------------------------------------------------------------- a corpus


def gold(**more: Any) -> TrainFlowRecipe:
    data = {"dataset": "esconv", "path": "sample:esconv", "scheme": "ratio", "ratios": [0.5, 0.25, 0.25], **more}
    return recipe(
        None,
        data={"gold": data},
        objective={"name": "bc", "class_weight": "sqrt", "logit_adjust": (0.0, 0.5, 1.0)},
        encoding={"mode": "path", "strategy_tags": True},
    )


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
    from esckit.pipelines.train_flow_data import collect
    from esckit.strategies.taxonomy import load_taxonomy

    settings = gold()
    summary = run(settings, out=tmp_path / "run").summary
    esconv = load_taxonomy("esconv")
    policy = CheckpointPolicy.load(
        tmp_path / "run", abbreviations=dict(zip(esconv.names, esconv.abbrs, strict=True)), dtype="float32"
    )
    right = n = 0
    for dialogue in collect(settings.data).parts["test"].dialogues:
        for index, turn in enumerate(dialogue.turns):
            if turn.speaker == "supporter" and turn.strategy is not None:
                n += 1
                right += policy.decide(dialogue.scenario, dialogue.turns[:index]).strategy == turn.strategy
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
    prior = asyncio.run(policy.prior(tree.scenario, tree.nodes[0].turns, scope))
    assert sum(prior) == pytest.approx(1.0, abs=1e-12)
    assert min(prior) > 0
    decision = policy.decide(tree.scenario, tree.nodes[0].turns)
    expected = [torch.tensor(p).log().item() + v for p, v in zip(decision.probabilities, decision.values, strict=True)]
    assert decision.scores == pytest.approx(expected, abs=1e-5)
    assert asyncio.run(policy.choose(tree.scenario, tree.nodes[0].turns, scope)) == decision.strategy
    assert scope.ledger.usage["strategist"].calls == 2
    greedy = policy_of(tmp_path / "run", value_weight=0.0).decide(tree.scenario, tree.nodes[0].turns)
    assert AFLOW.names.index(greedy.strategy) == max(range(8), key=greedy.probabilities.__getitem__)
    narrow = policy_of(tmp_path / "run", top_k=2).decide(tree.scenario, tree.nodes[0].turns)
    assert sum(score > -1e30 for score in narrow.scores) == 2
    named = CheckpointBinding(checkpoint=str(tmp_path / "run"), dtype="float32", value_weight=0.0, top_k=2)
    of_a_recipe = ModelPool(Executor(), Limits()).policy(named, AFLOW).decide(tree.scenario, tree.nodes[0].turns)
    assert sorted(of_a_recipe.scores)[-2:] == pytest.approx(sorted(math.log(p) for p in prior)[-2:])
    assert sum(score > -1e30 for score in of_a_recipe.scores) == 2
    asyncio.run(policy.aclose())
    with pytest.raises(CheckpointError, match="taxonomy"):
        policy_of(tmp_path / "run", strategies=AFLOW.names[::-1])
    shutil.rmtree(tmp_path / "run/checkpoint/adapter")
    with pytest.raises(CheckpointError, match="lacks adapter"):
        policy_of(tmp_path / "run")
