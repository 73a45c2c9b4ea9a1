"""Checkpoints of reward models: whole at any moment, refused where they do not fit."""

import json
import shutil
from pathlib import Path

import pytest

from esckit.errors import CheckpointError
from esckit.models.checkpoint import read_metadata
from esckit.reward.model import HEAD, RewardModel
from esckit.reward.text import RewardMetadata, reward_template
from esckit.training.checkpoint import save_checkpoint
from tests.reward.reward_fakes import grouped_inputs, tiny_net, tiny_reward


def saved(folder: Path) -> Path:
    net, tokenizer = tiny_net()
    metadata = RewardMetadata(
        backbone="tiny-random",
        kind="classifier",
        trainable="head",
        pooling="last",
        max_length=1024,
        template=reward_template("reward_model"),
        label={"rule": "goal"},
        delta=None,
        simulation={"preset": "rlff7"},
        inputs={},
        dialogue_ids=("a", "b"),
        dev_ids=("b",),
        selected_by="last",
    )
    state = {name: tensor for name, tensor in net.state_dict().items() if name.startswith("head.")}
    save_checkpoint(
        folder / "checkpoint", metadata, backbone=net.backbone, tokenizer=tokenizer, state=state, heads_file=HEAD
    )
    return folder


def test_a_checkpoint_scores_as_the_net_did(tmp_path: Path):
    conversations, responses = grouped_inputs(1, 2)
    model = RewardModel.load(saved(tmp_path))
    assert model.score(conversations, responses) == pytest.approx(tiny_reward().score(conversations, responses))
    assert read_metadata(RewardMetadata, tmp_path / "checkpoint") == model.metadata


def test_what_is_no_reward_model_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="holds no reward model"):
        RewardModel.load(tmp_path)
    source = saved(tmp_path) / "checkpoint/reward.json"
    source.write_text(source.read_text().replace("reward_model/1", "reward_model/9", 1))
    with pytest.raises(CheckpointError, match="cannot be used"):
        RewardModel.load(tmp_path)


@pytest.mark.parametrize("part", ["head.safetensors", "tokenizer"])
@pytest.mark.parametrize("is_cut", [True, False], ids=["cut", "gone"])
def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path: Path, part: str, is_cut: bool):
    source = saved(tmp_path) / "checkpoint" / part
    if is_cut:
        cut = source / "tokenizer.json" if source.is_dir() else source
        cut.write_bytes(cut.read_bytes()[:20])
    elif source.is_dir():
        shutil.rmtree(source)
    else:
        source.unlink()
    with pytest.raises(CheckpointError, match=r"cannot be loaded|cannot be read"):
        RewardModel.load(tmp_path)


def test_a_head_of_another_backbone_is_refused(tmp_path: Path):
    import torch
    from safetensors.torch import save_file

    folder = saved(tmp_path) / "checkpoint"
    save_file({"head.out.weight": torch.zeros(2, 8), "head.out.bias": torch.zeros(2)}, str(folder / "head.safetensors"))
    with pytest.raises(CheckpointError, match="does not fit"):
        RewardModel.load(tmp_path)
    assert json.loads((folder / "reward.json").read_text())["backbone"] == "tiny-random"
