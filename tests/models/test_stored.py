"""Checkpoints that are not whole are named for what they lack."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from esckit.errors import CheckpointError
from esckit.models.backbones import tiny_random
from esckit.models.loading import check_stored, check_whole, load_adapter

STATE = {"net.a.weight": torch.ones(2, 3), "net.b.lora_A.default.weight": torch.zeros(4)}


def stored(folder: Path, **changes: Tensor | None) -> Path:
    tensors = {"a.weight": torch.ones(2, 3), "b.lora_A.weight": torch.zeros(4), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")
    return folder


def test_a_checkpoint_that_holds_what_was_trained_passes(tmp_path: Path) -> None:
    check_stored(STATE, stored(tmp_path))
    check_whole(tmp_path)


def test_a_tied_tensor_is_stored_once(tmp_path: Path) -> None:
    check_stored({**STATE, "net.second_name": STATE["net.a.weight"]}, stored(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a.weight": torch.zeros(0)}, r"net.a.weight has shape \(0,\)"),
        ({"a.weight": torch.zeros(2, 3)}, "net.a.weight has shape"),
        ({"b.lora_A.weight": None}, "lacks net.b.lora_A.default.weight"),
    ],
    ids=["empty", "other values", "missing"],
)
def test_what_differs_from_the_trained_is_named(tmp_path: Path, changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_stored(STATE, stored(tmp_path, **changes))


def test_empty_tensors_and_cut_files_are_refused_by_name(tmp_path: Path) -> None:
    stored(tmp_path, **{"a.weight": torch.zeros(0, 3)})
    with pytest.raises(CheckpointError, match=r"model.safetensors holds empty tensors: a.weight"):
        check_whole(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        check_whole(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "shape"])
def test_an_adapter_that_does_not_fit_is_named(tmp_path: Path, kind: str) -> None:
    model = get_peft_model(tiny_random()[0], LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    if kind == "missing":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(3, 32)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="lora_A"):
        load_adapter(tiny_random()[0], tmp_path)
