"""How the frozen base of a training is held and computed: number type, attention, and what is refused without a GPU."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from esckit.config.training import TrainedModel
from esckit.errors import ConfigError, MissingExtraError
from esckit.flow.run import run as train_flow
from esckit.flow.text import read_metadata as flow_metadata
from esckit.models.backbones import find_backbone
from esckit.models.checkpoint import read_metadata
from esckit.models.loading import load_causal, set_attention
from esckit.reward.model import build_net
from esckit.reward.run import run as train_reward
from esckit.reward.text import RewardMetadata
from esckit.rl.trainer import load_learner
from esckit.training.harness import frozen_as, frozen_dtype
from esckit.training.run import check_model
from tests import tiny
from tests.flow.flow_runs import policy_of, recipe, some_trees, weights, write_trees
from tests.reward.reward_runs import reward_recipe, simulated
from tests.rl import rl_runs

TINY = TrainedModel(backbone="tiny-random")


@pytest.mark.parametrize(
    ("dtype", "precision", "expected"),
    [
        ("auto", "auto", torch.float32),  # on a processor
        ("auto", "bfloat16", torch.bfloat16),
        ("auto", "float32", torch.float32),
        ("float32", "bfloat16", torch.float32),
        ("bfloat16", "float32", torch.bfloat16),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is bfloat16 on a GPU")
def test_frozen_weights_take_the_type_of_the_forward_passes(dtype: Any, precision: Any, expected: Any) -> None:
    assert frozen_dtype(TINY.model_copy(update={"dtype": dtype}), precision) == expected


def test_the_name_of_how_weights_are_held() -> None:
    names = [frozen_as(TINY, "float32"), frozen_as(TINY, "bfloat16")]
    assert [*names, frozen_as(TINY.model_copy(update={"quantisation": "nf4"}), "auto")] == [
        "float32",
        "bfloat16",
        "nf4",
    ]


def test_a_bfloat16_base_trains_float32_adapters_and_heads(tmp_path: Path) -> None:
    trees = write_trees(tmp_path, some_trees())
    out = tmp_path / "flow"
    train_flow(recipe(trees, model={"precision": "bfloat16"}, optim={"epochs": 1}), out=out)
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.float32}
    assert flow_metadata(out).frozen_as == "bfloat16"
    assert policy_of(out) is not None


def test_a_reward_models_frozen_base_takes_its_type(tmp_path: Path) -> None:
    futures = simulated(tmp_path / "futures")
    out = tmp_path / "reward"
    model = {"trainable": "lora", "dtype": "bfloat16"}
    train_reward(reward_recipe(futures, model=model, optim={"epochs": 1}), out=out)
    assert read_metadata(RewardMetadata, out).frozen_as == "bfloat16"
    train_reward(reward_recipe(futures, model={"trainable": "full"}, optim={"epochs": 1}), out=tmp_path / "full")
    assert read_metadata(RewardMetadata, tmp_path / "full").frozen_as is None


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_of_a_trained_model_is_its_field(attention: str) -> None:
    policy = {"backbone": "tiny-random", "attention": attention}
    learner = load_learner(rl_runs.recipe(models={"policy": policy}))
    assert learner.model.config._attn_implementation == attention
    network = reward_recipe(Path("x"), model={"trainable": "head", "attention": attention}).model
    net, _ = build_net(network, "classifier")
    assert net.backbone.config._attn_implementation == attention


def test_sdpa_is_refused_for_soft_capped_scores() -> None:
    model, _ = tiny.tiny_random("gemma2")
    with pytest.raises(ConfigError, match="soft-capped"):
        set_attention(model, "sdpa")
    set_attention(model, "auto")
    assert model.config._attn_implementation == "eager"


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused without a GPU")
def test_flash_attention_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="without a CUDA GPU"):
        load_causal(find_backbone("tiny-random"), attention="flash_attention_2")


def test_what_is_not_installed_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError) as no_flash:
        check_model(TINY, "model", "none", attention="flash_attention_2")
    assert "pip install flash-attn --no-build-isolation" in str(no_flash.value)
    with pytest.raises(MissingExtraError) as no_bits:
        check_model(TINY.model_copy(update={"quantisation": "nf4"}), "model", "none")
    assert "model.quantisation: nf4 needs bitsandbytes" in str(no_bits.value)
    assert "pip install 'esckit[bitsandbytes]'" in str(no_bits.value)


@pytest.mark.parametrize("own", [{"quantisation": "nf4"}, {"dtype": "bfloat16"}])
def test_a_backbone_that_is_trained_whole_is_not_frozen(own: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="is for frozen weights"):
        reward_recipe(Path("x"), model={"trainable": "full", **own})
    with pytest.raises(ValidationError, match="is for frozen weights"):
        recipe(Path("x"), model={"trainable": "full", **own})


def test_vllm_takes_no_quantised_policy() -> None:
    with pytest.raises(ValidationError, match=r"grpo\.engine: transformers"):
        rl_runs.recipe(models={"policy": {"backbone": "tiny-random", "quantisation": "nf4"}}, grpo={"engine": "vllm"})


def test_flash_attention_takes_no_packed_trees() -> None:
    with pytest.raises(ValidationError, match=r"needs encoding\.mode: path or prefix"):
        recipe(Path("x"), encoding={"attention": "flash_attention_2"})
    assert recipe(Path("x"), encoding={"attention": "flash_attention_2", "mode": "path"})
