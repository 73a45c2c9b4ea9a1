"""What is left of a training: adapters that depend on it alone, and checkpoints that hold what was trained."""

import json
from importlib import resources
from pathlib import Path
from string import Template

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from esckit.errors import CheckpointError
from esckit.models.loading import check_whole
from esckit.training.checkpoint import check_stored, metrics_table, tidy_adapter, write_card

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


@pytest.mark.parametrize(
    ("targets", "kept"), [(["v_proj", "k_proj"], ["k_proj", "v_proj"]), ("all-linear", "all-linear")]
)
def test_an_adapter_names_its_layers_in_order_and_no_folder(tmp_path: Path, targets: object, kept: object) -> None:
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"r": 4, "target_modules": targets, "base_model_name_or_path": "/some/cache"}))
    (tmp_path / "README.md").write_text("an empty form")
    tidy_adapter(tmp_path, "gpt2")
    assert json.loads(config.read_text()) == {"r": 4, "target_modules": kept, "base_model_name_or_path": "gpt2"}
    assert not (tmp_path / "README.md").exists()


def test_metrics_stand_side_by_side():
    table = metrics_table({"ours": {"auc": 0.61234, "n": 3}, "majority": {"auc": 0.5}}, ["auc", "n"])
    assert table.splitlines() == [
        "| metric | ours | majority |",
        "|---|---|---|",
        "| auc | 0.6123 | 0.5000 |",
        "| n | 3 | – |",
    ]


def test_a_card_names_what_it_is_for(tmp_path: Path):
    template = resources.files("esckit.training").joinpath("cards", "reward_model.md").read_text(encoding="utf-8")
    names = set(Template(template).get_identifiers())
    assert {"backbone", "label", "delta", "metrics", "warnings"} <= names
    write_card(tmp_path, "reward_model", dict.fromkeys(names, "X"))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "no clinical measure" in card
    assert "$" not in card
