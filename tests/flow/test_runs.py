"""`train-flow` as a run: how it goes on after a stop, what it refuses, and several processes."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from esckit.errors import CheckpointError, ConfigError, DataError, TrainingError
from esckit.flow.recipe import TrainFlowRecipe
from esckit.flow.run import plan, run
from esckit.flow.text import read_metadata
from esckit.flow.trainer import TreeValidation
from esckit.models.in_memory import build_tokenizer
from tests.flow.flow_runs import (
    AFLOW,
    complete_tree,
    gold,
    recipe,
    rows,
    same,
    some_trees,
    sparse_tree,
    weights,
    write_trees,
)
from tests.sharded.engines import environments
from tests.shell import forked

# ---------------------------------------------------------------- stops


class Stopped(Exception):
    """Stands for whatever ends a process."""


class StopAfter:
    """A progress that ends the process after some updates."""

    def __init__(self, updates: int) -> None:
        self.left = updates

    def start(self, total: int, done: int = 0) -> None: ...

    def advance(self, n: int = 1, **counts: int) -> None:
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


@pytest.mark.parametrize("updates", [4, 5, 7, 8])
def test_a_mean_of_weights_goes_on_after_a_stop(tmp_path: Path, updates: int) -> None:
    trees = write_trees(tmp_path, some_trees())
    optim = {"epochs": 2, "paths_per_update": 8, "select": "last", "average_from": 0.5}
    settings = recipe(trees, checkpoints={"every": 1}, optim=optim)
    run(settings, out=tmp_path / "whole")
    with pytest.raises(Stopped):
        run(settings, out=tmp_path / "cut", progress=StopAfter(updates))
    summary = run(settings, out=tmp_path / "cut").summary
    assert (summary["updates"], summary["averaged_updates"]) == (8, 4)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")


def test_the_mean_of_the_last_weights_is_measured_and_kept(tmp_path: Path) -> None:
    trees = write_trees(tmp_path, some_trees())
    optim = {"epochs": 2, "paths_per_update": 8, "select": "last", "validate_every": 1}
    plain, mean = (recipe(trees, optim=optim | more) for more in ({}, {"average_from": 0.75}))
    run(plain, out=tmp_path / "plain")
    with pytest.raises(Stopped):
        run(plain, out=tmp_path / "seventh", progress=StopAfter(8))
    run(mean, out=tmp_path / "mean")
    seventh, eighth, kept = (weights(tmp_path / name) for name in ("seventh", "plain", "mean"))
    assert all(torch.allclose(kept[name], (seventh[name] + eighth[name]) / 2, atol=1e-7) for name in kept)
    assert not same(kept, eighth)
    # Training goes on from the weights themselves, and what was measured is what was kept.
    losses = [[row["train/loss"] for row in rows(tmp_path / name) if "train/loss" in row] for name in ("plain", "mean")]
    assert losses[0] == losses[1]
    *before, last = [row["valid/loss"] for row in rows(tmp_path / "mean") if "valid/loss" in row]
    *same_before, other = [row["valid/loss"] for row in rows(tmp_path / "plain") if "valid/loss" in row]
    assert (before, last != other) == (same_before, True)
    again = recipe(trees, model={"init": str(tmp_path / "mean")}, optim={"lr": 1e-30, "epochs": 1})
    run(again, out=tmp_path / "again")
    assert rows(tmp_path / "again")[0]["valid/loss"] == pytest.approx(last, abs=1e-6)
    assert "mean over the last 2 updates" in (tmp_path / "mean/checkpoint/README.md").read_text()
    assert "| weights | of that update |" in (tmp_path / "plain/checkpoint/README.md").read_text()


def test_a_mean_that_never_began_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trees = write_trees(tmp_path, some_trees())
    # A rate at which nothing moves: the first measurement stays the best, and training ends early.
    optim = {"lr": 1e-30, "epochs": 4, "paths_per_update": 8, "validate_every": 1, "patience": 1, "average_from": 0.5}
    assert run(recipe(trees, optim=optim), out=tmp_path / "run").summary["averaged_updates"] == 0
    assert "what is kept is no mean: update 1 is before optim.average_from" in caplog.text


@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_a_mean_of_weights_is_refused_where_deepspeed_keeps_them(tmp_path: Path, sharding: Any) -> None:
    settings = recipe(write_trees(tmp_path, some_trees()), optim={"average_from": 0.5})
    with pytest.raises(ConfigError, match="average_from with DeepSpeed"):
        plan(settings, n_processes=2, sharding=sharding)
    assert plan(settings, n_processes=2, sharding="fsdp")["processes"] == 2


@pytest.mark.parametrize("updates", [2, 3, 4])
def test_early_stopping_goes_on_counting_after_a_stop(tmp_path: Path, updates: int) -> None:
    trees = write_trees(tmp_path, some_trees())
    optim = {"lr": 1e-30, "epochs": 4, "paths_per_update": 8, "validate_every": 1, "patience": 3}
    settings = recipe(trees, checkpoints={"every": 1}, optim=optim)
    assert run(settings, out=tmp_path / "whole").summary["updates"] == 4
    with pytest.raises(Stopped):
        run(settings, out=tmp_path / "cut", progress=StopAfter(updates))
    assert run(settings, out=tmp_path / "cut").summary["updates"] == 4
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_stopped_inside_a_validation_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    trees = write_trees(tmp_path, some_trees())
    settings = recipe(trees, checkpoints={"every": 1}, optim={"epochs": 2, "paths_per_update": 12})
    run(settings, out=tmp_path / "whole")
    measured: list[int] = []

    def cut(validation: TreeValidation, *args: Any) -> dict[str, float]:
        measured.append(1)
        if len(measured) == number:
            raise Stopped
        return measure(validation, *args)

    measure = TreeValidation.__call__
    with monkeypatch.context() as patched:
        patched.setattr(TreeValidation, "__call__", cut)
        with pytest.raises(Stopped):
            run(settings, out=tmp_path / "cut")
    run(settings, out=tmp_path / "cut")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")


class StopAtTheEnd(StopAfter):
    """A progress that ends the process when training is done and nothing is said about it yet."""

    def close(self) -> None:
        raise Stopped


@pytest.mark.parametrize("optim", [{}, {"lr": 1e-30, "epochs": 9, "validate_every": 1, "patience": 2}])
def test_stopped_before_the_summary_trains_nothing_again(tmp_path: Path, optim: dict[str, Any]) -> None:
    settings = recipe(write_trees(tmp_path, some_trees()), optim=optim)
    with pytest.raises(Stopped):
        run(settings, out=tmp_path / "run", progress=StopAtTheEnd(99))
    before = (rows(tmp_path / "run"), weights(tmp_path / "run"))
    summary = run(settings, out=tmp_path / "run").summary
    assert summary["best_update"] == read_metadata(tmp_path / "run").step
    assert rows(tmp_path / "run") == before[0]
    assert same(weights(tmp_path / "run"), before[1])


def test_a_run_does_not_resume_on_other_trees(tmp_path: Path) -> None:
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
    with pytest.raises(ConfigError, match=r"data\.trees: there is no .*esckit search"):
        run(recipe(tmp_path / "nowhere"), out=tmp_path / "run")
    with pytest.raises(DataError, match=r"no trees\.jsonl"):
        plan(recipe(tmp_path))
    only_train = write_trees(tmp_path, [sparse_tree("a", "train", 1)])
    with pytest.raises(DataError, match="no tree in split 'valid'"):
        plan(recipe(only_train))
    failed = write_trees(tmp_path / "failed", [sparse_tree("a", "train", 1, status="failed")])
    with pytest.raises(DataError, match="no finished tree"):
        plan(recipe(failed))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_flex_without_a_gpu_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    trees = write_trees(tmp_path, some_trees())
    with pytest.raises(ConfigError, match=r"encoding\.attention: flex"):
        run(recipe(trees, encoding={"attention": "flex"}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


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


def test_starting_from_a_checkpoint_inherits_and_checks(tmp_path: Path) -> None:
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
    with pytest.raises(ConfigError, match=r"model\.init: there is no .*esckit train-flow"):
        run(nowhere, out=tmp_path / "third")
    meta = tmp_path / "first/checkpoint/flow.json"
    data = json.loads(meta.read_text())
    meta.write_text(json.dumps({**data, "strategies": data["strategies"][::-1]}) + "\n")
    with pytest.raises(CheckpointError, match="taxonomy"):
        run(second, out=tmp_path / "fourth")


def test_gold_strategies_of_a_mapped_corpus_are_a_warm_start(tmp_path: Path) -> None:
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
def test_a_window_too_narrow_for_packing_trains_by_paths(tmp_path: Path, window: int) -> None:
    backbone = tmp_path / "mistral"
    sizes = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=window)).save_pretrained(backbone)
    build_tokenizer("tiny-random").save_pretrained(backbone)
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
    assert found.pop("memory_per_device")["total"] > 0
    assert found == {
        "taxonomy": "aflow",
        "train": {"trees": 4, "paths": 32, "decisions": 96},
        "valid": {"trees": 2, "paths": 16, "decisions": 48},
        "steps_at_most": 8,
        "processes": 1,
    }


# ---------------------------------------------------------------- several processes


def train_as_rank(recipe_path: Path, out: Path) -> None:
    """Train in one of several processes, of which only the first may write into ``out``."""

    def watch(event: str, args: tuple[Any, ...]) -> None:
        writes = event in ("os.rename", "os.remove") or (event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if writes and str(out) in str(args[0]):
            raise RuntimeError(f"the second process writes: {event} {args}")

    if os.environ["RANK"] != "0":
        sys.addaudithook(watch)
    run(TrainFlowRecipe.model_validate_json(recipe_path.read_text()), out=out)


def test_two_processes_train_as_one_and_only_one_writes(tmp_path: Path) -> None:
    trees = write_trees(tmp_path, some_trees())
    run(recipe(trees), out=tmp_path / "one")
    (tmp_path / "recipe.json").write_text(recipe(trees).model_dump_json())
    logs = [tmp_path / f"rank{rank}.log" for rank in range(2)]
    ranks = [
        forked(train_as_rank, tmp_path / "recipe.json", tmp_path / "two", env=environment, stdout=log, stderr=log)
        for environment, log in zip(environments("ddp", 2), logs, strict=True)
    ]
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0], [log.read_text()[-3000:] for log in logs]
    assert {path.name for path in (tmp_path / "two").rglob("*")} == {
        path.name for path in (tmp_path / "one").rglob("*")
    }
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        assert left.keys() == right.keys()
        assert left == pytest.approx(right, rel=1e-4, abs=1e-6)
