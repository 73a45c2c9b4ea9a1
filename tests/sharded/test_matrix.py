"""Every training under every engine: the losses of one process, a checkpoint that loads, and a resume that is exact."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.sharded.cells import CELLS, arguments
from tests.sharded.engines import ENGINES, Done, esckit, launched

ALWAYS = {("grpo", "zero3"), ("sft_full", "fsdp"), ("classifier", "zero2"), ("flow", "zero3")}
"""What `make test` plays, in float32: every engine, and every kind of trainer."""

DIAGONAL = ALWAYS | {("dpo", "fsdp"), ("sft", "zero2"), ("ranker", "fsdp")}
"""What `make test-sharded` plays in bfloat16 as well, beside all of float32."""

TOLERANCE = {False: 1e-5, True: 0.2}
"""Of losses: float32, and bfloat16, in which engines round at other places (weights, or results only)."""

_UNEQUAL = ("step_s", "lr")
_EXACT_IN_FLOAT32_ONLY = ("dev", "valid/best_action")


def _cells() -> list[Any]:
    cells = []
    for bf16 in (False, True):
        for cell in CELLS:
            if bf16 and cell == "dialogue":
                continue  # engines round at other places, so that other tokens are drawn
            for engine in ENGINES:
                if cell == "flow_mean" and engine.startswith("zero"):
                    continue  # refused: DeepSpeed keeps the weights that are trained to itself
                marks = () if (cell, engine) in ALWAYS and not bf16 else (pytest.mark.sharded,)
                if bf16 and (cell, engine) not in DIAGONAL:
                    marks = (pytest.mark.sharded_full,)
                name = f"{cell}-{engine}-{'bfloat16' if bf16 else 'float32'}"
                cells.append(pytest.param(cell, engine, bf16, marks=marks, id=name))
    return cells


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("cell", "engine", "bf16"), _cells())
def test_a_shared_training_is_that_of_one_process(
    cell: str, engine: str, bf16: bool, alone: Callable[[str, bool], Done], wide: Path, runs: Path, tmp_path: Path
) -> None:
    words = arguments(cell, wide=wide, runs=runs, bf16=bf16)
    whole = esckit(engine, words, tmp_path / "whole", bf16=bf16, recorded=cell == "grpo")
    assert whole.code == 0, "\n".join(whole.logs)
    one = alone(cell, bf16)
    _assert_close(one.rows(), whole.rows(), bf16=bf16)
    stored = _tensors(whole.out)
    assert all(tensor.numel() and tensor.isfinite().all() for tensor in stored.values())
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        name: tensor.shape for name, tensor in _tensors(one.out).items()
    }
    if not bf16:
        for name, tensor in _tensors(one.out).items():
            assert torch.allclose(stored[name], tensor, atol=1e-5), name
    assert not (whole.out / "states").exists()
    LOADERS[CELLS[cell][0]](whole.out)
    if cell in ("grpo", "dialogue"):
        samples, theirs = whole.rows("samples.jsonl"), one.rows("samples.jsonl")
        assert [row["context_id"] for row in samples] == [row["context_id"] for row in theirs]
        assert [_said(row) for row in samples] == [_said(row) for row in theirs]

    cut = esckit(engine, words, tmp_path / "cut", bf16=bf16, recorded=cell == "grpo", stop_after=1 + (cell != "dpo"))
    assert cut.code == 130, "\n".join(cut.logs)
    resumed = esckit(engine, words, tmp_path / "cut", bf16=bf16, recorded=cell == "grpo")
    assert resumed.code == 0, "\n".join(resumed.logs)
    again = _tensors(resumed.out)
    assert all(torch.equal(tensor, again[name]) for name, tensor in stored.items())
    assert [_exact(row) for row in resumed.rows()] == [_exact(row) for row in whole.rows()]


def test_a_policy_generates_while_it_is_split_and_keeps_its_best(wide: Path, runs: Path, tmp_path: Path) -> None:
    words = arguments("grpo", wide=wide, runs=runs, optim__max_steps=2)
    done = esckit("fsdp", words, tmp_path / "run")
    assert done.code == 0, "\n".join(done.logs)
    samples = done.rows("samples.jsonl")
    assert len({row["context_id"] for row in samples}) == 2, "one context a process"
    assert any(name.startswith("rl/clip_ratio/") for row in done.rows() for name in row)


@pytest.mark.parametrize("engine", ["ddp", "zero3", "fsdp"])
@pytest.mark.sharded
def test_a_gradient_that_is_not_finite_stops_all_before_a_step(
    engine: str, wide: Path, runs: Path, tmp_path: Path
) -> None:
    words = arguments("flow", wide=wide, runs=runs)
    done = esckit(engine, words, tmp_path / "run", poison_after=2)
    assert done.code == 2, "\n".join(done.logs)
    assert all("training diverged at step 2" in log for log in done.logs), "\n".join(done.logs)
    assert (tmp_path / "run/diverged.json").is_file()


@pytest.mark.sharded
def test_processes_end_quietly_under_a_real_launcher(wide: Path, runs: Path, tmp_path: Path) -> None:
    done = launched("fsdp", arguments("flow", wide=wide, runs=runs, optim__epochs=1), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    _load_flow(tmp_path / "run")


def _said(row: Mapping[str, Any]) -> list[str]:
    """Return what the policy wrote in a dialogue."""
    return [turn["raw"] for turn in row.get("turns", ())]


def _tensors(out: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted((out / "checkpoint").rglob("*.safetensors")):
        found |= {f"{path.name}:{name}": tensor for name, tensor in load_file(path).items()}
    return found


def _assert_close(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], *, bf16: bool) -> None:
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        assert one.keys() == two.keys()
        for name, value in _flat(one).items():
            if name.endswith(_UNEQUAL) or (bf16 and name.startswith(_EXACT_IN_FLOAT32_ONLY)):
                continue
            other = _flat(two)[name]
            if isinstance(value, float) and isinstance(other, float):
                # Norms are sums of squares over many shards.
                tolerance = 1e-4 if "grad_norm" in name and not bf16 else TOLERANCE[bf16]
                assert math.isclose(value, other, abs_tol=tolerance, rel_tol=TOLERANCE[bf16]), (name, value, other)
            elif not bf16:
                assert value == other, name


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    dev = row.get("dev", {})
    return {name: value for name, value in row.items() if name != "dev"} | {f"dev/{name}": dev[name] for name in dev}


def _exact(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _flat(row).items() if not name.endswith("step_s")}


def _load_policy(run: Path) -> None:
    from esckit.training.policy import load_policy

    load_policy(run, dtype="float32")


def _load_reward(run: Path) -> None:
    from esckit.models.checkpoint import read_metadata
    from esckit.reward.model import load_net
    from esckit.reward.text import RewardMetadata

    load_net(run, read_metadata(RewardMetadata, run), dtype=torch.float32)


def _load_flow(run: Path) -> None:
    from esckit.flow.model import load_flow_model

    load_flow_model(run)


LOADERS = {"train-rl": _load_policy, "train-sft": _load_policy, "train-reward": _load_reward, "train-flow": _load_flow}
