"""The estimate of memory: counts of weights, and bytes of live tensors of small models within a fifth."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from esckit.config.training import Lora, TrainedModel
from esckit.flow.model import LOGIT_ROWS, build_model
from esckit.flow.recipe import TrainFlowRecipe
from esckit.flow.run import RESPONSE_TOKENS
from esckit.flow.run import workload as flow_workload
from esckit.models.backbones import load_backbones
from esckit.models.in_memory import build
from esckit.models.shape import Shape, shape_of, shape_of_backbone
from esckit.reward.model import build_net
from esckit.reward.recipe import TrainRewardRecipe
from esckit.reward.run import workload as reward_workload
from esckit.training.memory import (
    Workload,
    activation_bytes,
    estimate,
    in_gb,
    layer_bytes,
    plan_memory,
    readable,
)
from esckit.training.run import Process

SIZES = {
    "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 512, "head_dim": 16,
}  # fmt: skip
GPT2 = {"vocab_size": 512, "n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 256}
FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma", "gemma2", "gpt2")
ROWS, TOKENS = 2, 96
SEVEN = TrainedModel(backbone="qwen2.5-7b-instruct")


def config(family: str, **own: Any) -> Any:
    if family == "gpt2":
        dropped = dict.fromkeys(("resid_pdrop", "attn_pdrop", "embd_pdrop"), 0.0)
        return AutoConfig.for_model("gpt2", **GPT2, **dropped, bos_token_id=0, eos_token_id=0, **own)
    return AutoConfig.for_model(family, **SIZES, **({"query_pre_attn_scalar": 16} if family == "gemma2" else {}), **own)


def lora_work(**own: Any) -> Workload:
    given: dict[str, Any] = {
        "model": TrainedModel(backbone="any"), "trainable": "lora", "precision": "float32", "rows": ROWS,
        "tokens": TOKENS, "checkpointing": False, "lora": Lora(rank=8, alpha=8),
    }  # fmt: skip
    return Workload(**(given | own))


def close(found: float, expected: float) -> bool:
    return abs(found / expected - 1) < 0.2


# ---------------------------------------------------------------- counts of weights


@pytest.mark.parametrize("name", load_backbones())
def test_the_registrys_sizes_give_its_number_of_weights(name: str) -> None:
    shape, entry = shape_of_backbone(name), load_backbones()[name]
    assert shape is not None
    assert shape.total / 1e6 == pytest.approx(entry.parameters, rel=0.005, abs=0.005)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_counted_as_transformers_builds_them(family: str, tied: bool) -> None:
    ours = config(family, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(ours, trust_remote_code=False)
    shape = shape_of(ours.to_dict())
    assert shape is not None
    assert shape.total == sum(parameter.numel() for parameter in model.parameters())
    assert shape.decoder == sum(parameter.numel() for parameter in model.base_model.parameters())


@pytest.mark.parametrize(
    "change", [{"model_type": "mamba"}, {"num_local_experts": 8}, {"model_type": None}, {"hidden_size": None}]
)
def test_a_model_of_another_kind_is_not_guessed(change: dict[str, Any]) -> None:
    assert shape_of({"model_type": "llama", **SIZES}) is not None
    assert shape_of({"model_type": "llama", **SIZES, **change}) is None


def test_a_folders_config_tells_its_sizes(tmp_path: Path) -> None:
    model, tokenizer = build("tiny-random")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert shape_of_backbone(str(tmp_path)) == shape_of_backbone("tiny-random")
    facts = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(facts | {"model_type": "my-own"}))
    assert shape_of_backbone(str(tmp_path)) is None


def test_a_hub_id_without_a_config_is_unknown() -> None:
    work = lora_work(model=TrainedModel(backbone="nobody/has-this-model"))
    memory = plan_memory(work, Process())
    assert memory is None
    assert readable({"memory_per_device": memory})["memory_per_device"].startswith("unknown")


def test_a_model_beside_it_that_is_unknown_makes_the_sum_unknown() -> None:
    work = lora_work(model=SEVEN)
    assert plan_memory(work, Process(), others={"reward": None}) is None
    both = plan_memory(work, Process(), others={"seeker": "qwen2.5-72b-instruct", "critic": "qwen2.5-72b-instruct"})
    assert both is not None
    assert both["other_models"] == 2 * 72_706_203_648  # one copy, in bfloat16


# ---------------------------------------------------------------- activations


def kept_bytes(model: nn.Module, run: Any) -> int:
    """Return the bytes that a forward pass keeps for the backward pass beside the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def measured(work: Workload, family: str) -> tuple[int, Shape]:
    """Return the bytes that a small model keeps under a workload, and its shape."""
    ours = config(family)
    bf16 = work.precision == "bfloat16"
    model = AutoModelForCausalLM.from_config(
        ours,
        trust_remote_code=False,
        dtype=torch.bfloat16 if bf16 and work.trainable == "lora" else torch.float32,
        attn_implementation="eager" if family == "gemma2" else work.attention,
    )
    if work.trainable == "lora":
        assert work.lora is not None
        adapter = LoraConfig(r=work.lora.rank, lora_dropout=work.lora.dropout, target_modules="all-linear")
        model = get_peft_model(model, adapter)
        model.enable_input_require_grads()
    model.train()
    decoder = model.base_model.model.base_model if work.trainable == "lora" else model.base_model
    if work.checkpointing:
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, 512, (work.rows, work.tokens))
    mask = torch.ones_like(ids)
    mask[0, :5] = int(not work.dense_mask)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            decoder(input_ids=ids, attention_mask=mask, use_cache=False)

    shape = shape_of(ours.to_dict())
    assert shape is not None
    return kept_bytes(model, run), shape


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trainable", ["lora", "full"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_are_what_a_forward_pass_keeps(family: str, trainable: Any, precision: Any) -> None:
    for own in ({"attention": "sdpa"}, {"attention": "eager"}, {"attention": "sdpa", "dense_mask": True}):
        work = lora_work(trainable=trainable, precision=precision, **own)
        found, shape = measured(work, family)
        assert close(activation_bytes(work, shape), found), (own, activation_bytes(work, shape) / found)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_dropout_in_an_adapter_keeps_more(precision: Any) -> None:
    work = lora_work(precision=precision, attention="sdpa", lora=Lora(rank=8, alpha=8, dropout=0.1))
    found, shape = measured(work, "qwen2")
    # A mask has one byte an element on a GPU; on a processor it has the type of the input, float32.
    wider = 3 * ROWS * TOKENS * shape.n_layers * sum(n_in for n_in, _ in shape.linears.values())
    assert close(activation_bytes(work, shape) + wider, found)


@pytest.mark.parametrize(("family", "trainable"), [("qwen2", "lora"), ("llama", "full"), ("gemma2", "lora")])
def test_checkpointing_keeps_the_input_of_each_layer(family: str, trainable: Any) -> None:
    work = lora_work(trainable=trainable, checkpointing=True, attention="sdpa")
    found, shape = measured(work, family)
    # The hooks see what stays; in the backward pass one layer is computed again beside it.
    assert close(activation_bytes(work, shape) - layer_bytes(work, shape), found)


# ---------------------------------------------------------------- weights, gradients, optimiser


def after_a_step(model: nn.Module) -> tuple[int, int, int]:
    """Return the bytes of weights, gradients and optimiser states once a step was taken."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    sum(parameter.float().pow(2).sum() for parameter in trained).backward()  # type: ignore[union-attr]
    optimizer.step()
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    every = (list(model.parameters()), gradients, states)
    weights, grads, moments = (sum(tensor.nbytes for tensor in tensors) for tensors in every)
    return weights, grads, moments


@pytest.mark.parametrize("trainable", ["full", "lora", "head"])
def test_a_reward_model_holds_what_is_estimated(trainable: str) -> None:
    model = {"backbone": "tiny-random", "trainable": trainable, "lora": {"rank": 4}}
    label = {"rule": "goal"}
    recipe = TrainRewardRecipe.model_validate(
        {
            "command": "train-reward",
            "seed": 1,
            "inputs": ["x"],
            "label": label,
            "model": model,
            "optim": {"precision": "float32"},
        }
    )
    shape = shape_of_backbone("tiny-random")
    assert shape is not None
    memory = estimate(reward_workload(recipe, Process(), per_context=1), shape, Process())
    net, _ = build_net(recipe.model, "classifier")
    for found, expected in zip(after_a_step(net), (memory.weights, memory.gradients, memory.optimiser), strict=True):
        assert close(expected, found)


@pytest.mark.parametrize(
    "model", [{"trainable": "lora"}, {"trainable": "full"}, {"trainable": "full", "frozen_layers": 1}]
)
def test_a_flow_model_holds_what_is_estimated(model: dict[str, Any]) -> None:
    recipe = TrainFlowRecipe.model_validate(
        {
            "command": "train-flow",
            "seed": 1,
            "data": {"trees": ["x"]},
            "model": {"backbone": "tiny-random", "precision": "float32", **model},
            "lora": {"rank": 4, "dropout": 0.0},
        }
    )
    shape = shape_of_backbone("tiny-random")
    assert shape is not None
    memory = estimate(flow_workload(recipe, 8), shape, Process())
    built = build_model(recipe, tuple("abcdefgh"), longest_path=64)
    for found, expected in zip(after_a_step(built), (memory.weights, memory.gradients, memory.optimiser), strict=True):
        assert close(expected, found)


def test_the_response_term_has_as_many_logits_as_it_is_counted_with() -> None:
    assert RESPONSE_TOKENS == LOGIT_ROWS


# ---------------------------------------------------------------- processes, and precision


def seven_billion(sharding: Any, n: int, **own: Any) -> Any:
    shape = shape_of_backbone("qwen2.5-7b-instruct")
    assert shape is not None
    return estimate(lora_work(model=SEVEN, precision="auto", **own), shape, Process(0, n, sharding))


def test_processes_divide_what_their_engine_divides() -> None:
    alone, copies, zero2, zero3, fsdp = (
        seven_billion(sharding, n, trainable="full")
        for sharding, n in (("none", 1), ("none", 8), ("zero2", 8), ("zero3", 8), ("fsdp", 8))
    )
    assert copies.weights == alone.weights
    assert copies.gradients == 2 * alone.gradients  # and the buckets in which they are exchanged
    assert zero2.optimiser == alone.optimiser * 3 // 2 // 8  # and float32 originals
    assert zero2.gradients == fsdp.gradients == alone.gradients // 8
    assert fsdp.weights < alone.weights / 3  # a share, and the layers in use
    assert zero3.weights < zero2.weights / 3
    assert seven_billion("fsdp", 8, trainable="full", averaged=True).weights == fsdp.weights + fsdp.gradients


def test_a_frozen_base_of_7b_takes_15_gb_and_in_4_bits_6() -> None:
    shape = shape_of_backbone("qwen2.5-7b-instruct")
    assert shape is not None
    sizes = []
    for own in ({"dtype": "float32"}, {}, {"quantisation": "nf4"}):
        model = TrainedModel.model_validate({"backbone": "qwen2.5-7b-instruct", **own})
        sizes.append(estimate(lora_work(model=model, precision="auto", logits=1), shape, Process()).weights / 1e9)
    assert [round(size, 1) for size in sizes] == [30.5, 15.3, 5.6]


@pytest.mark.parametrize(("size", "text"), [(0, "0 MB"), (12_300_000, "12.3 MB"), (15_270_000_000, "15.3 GB")])
def test_sizes_are_read_in_powers_of_ten(size: int, text: str) -> None:
    assert in_gb(size) == text
