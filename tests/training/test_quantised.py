"""QLoRA: adapters on a base in 4 bits, in all three trainings, and what they are afterwards (needs bitsandbytes)."""

from pathlib import Path
from typing import Any

import pytest
import torch

from esckit.errors import ConfigError
from esckit.flow.run import plan
from esckit.flow.run import run as train_flow
from esckit.flow.text import read_metadata as flow_metadata
from esckit.models.backbones import find_backbone
from esckit.models.checkpoint import read_metadata
from esckit.models.loading import load_causal
from esckit.reward.model import RewardModel
from esckit.reward.run import run as train_reward
from esckit.reward.text import RewardMetadata
from esckit.rl.run import run as train_rl
from esckit.training.checkpoint import adapter_config
from esckit.training.policy import PolicyMetadata, load_policy
from esckit.types import Turn
from tests.flow.flow_runs import policy_of, recipe, some_trees, weights, write_trees
from tests.reward.reward_runs import reward_recipe, simulated
from tests.rl import rl_runs

bitsandbytes = pytest.importorskip("bitsandbytes")

FOUR_BITS = {"quantisation": "nf4"}


def quantised(dtype: torch.dtype = torch.float32) -> Any:
    return load_causal(find_backbone("tiny-random"), dtype=dtype, quantisation="nf4")[0]


def test_linear_layers_are_in_4_bits_with_quantised_scales() -> None:
    model = quantised(torch.bfloat16)
    layer = model.model.layers[0].mlp.up_proj
    assert isinstance(layer, bitsandbytes.nn.Linear4bit)
    assert layer.weight.numel() * 2 == 32 * 64  # two weights in a byte
    assert (layer.weight.quant_state.quant_type, layer.weight.quant_state.nested) == ("nf4", True)
    assert layer.compute_dtype == torch.bfloat16
    assert model.get_input_embeddings().weight.dtype == model.lm_head.weight.dtype == torch.bfloat16


def test_a_gradient_passes_after_an_evaluation() -> None:
    from peft import get_peft_model

    model = quantised()
    model = get_peft_model(model, adapter_config(recipe(Path("x")).lora, model))
    ids = torch.arange(3, 12).unsqueeze(0)
    with torch.no_grad():
        before = model.eval()(input_ids=ids).logits
    found = model.train()(input_ids=ids).logits
    assert torch.allclose(before, found, atol=1e-5)
    found.pow(2).mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if "lora_B" in name}
    assert len(gradients) == 4
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())


@pytest.mark.slow
def test_a_flow_policy_learns_on_4_bits_and_is_used_without(tmp_path: Path) -> None:
    trees, out = write_trees(tmp_path, some_trees()), tmp_path / "run"
    result = train_flow(recipe(trees, model={**FOUR_BITS, "gradient_checkpointing": True}), out=out)
    assert result.summary["updates"] > 0
    assert flow_metadata(out).frozen_as == "nf4"
    found = weights(out)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert any(bool(tensor.any()) for name, tensor in found.items() if "lora_B" in name)
    assert not any(isinstance(module, bitsandbytes.nn.Linear4bit) for module in policy_of(out)._model.modules())
    later = recipe(trees, model={**FOUR_BITS, "init": str(out)}, optim={"epochs": 1})
    assert train_flow(later, out=tmp_path / "later").summary["updates"] > 0


def test_a_reward_model_learns_on_4_bits_and_scores_without(tmp_path: Path) -> None:
    futures, out = simulated(tmp_path / "futures"), tmp_path / "run"
    train_reward(reward_recipe(futures, model={"trainable": "lora", **FOUR_BITS}, optim={"epochs": 1}), out=out)
    assert read_metadata(RewardMetadata, out).frozen_as == "nf4"
    scorer = RewardModel.load(out)
    assert 0 < scorer.score([[Turn(speaker="seeker", text="I am sad.")]], ["I hear you."])[0] < 1
    assert all(type(module) is not bitsandbytes.nn.Linear4bit for module in scorer.net.modules())


@pytest.mark.slow
def test_a_policy_learns_on_4_bits_and_talks_without(tmp_path: Path) -> None:
    out = tmp_path / "run"
    policy = {"policy": {"backbone": "tiny-random", **FOUR_BITS}}
    train_rl(rl_runs.recipe(models=policy, optim={"precision": "bfloat16", "gradient_checkpointing": True}), out=out)
    assert read_metadata(PolicyMetadata, out).frozen_as == "nf4"
    from safetensors.torch import load_file

    adapter = load_file(str(out / "checkpoint/adapter/adapter_model.safetensors"))
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}  # TRL alone would leave bfloat16
    assert any(bool(tensor.any()) for name, tensor in adapter.items() if "lora_B" in name)
    assert load_policy(out, dtype="float32").context_length > 0


@pytest.mark.parametrize("sharding", ["zero3", "fsdp"])
def test_processes_cannot_divide_weights_in_4_bits(tmp_path: Path, sharding: Any) -> None:
    trees = write_trees(tmp_path, some_trees())
    with pytest.raises(ConfigError, match="processes divide") as refused:
        plan(recipe(trees, model=FOUR_BITS), n_processes=2, sharding=sharding)
    assert "--accelerate multi-gpu" in str(refused.value)
    assert plan(recipe(trees, model=FOUR_BITS), n_processes=2, sharding="zero2")["memory_per_device"]
