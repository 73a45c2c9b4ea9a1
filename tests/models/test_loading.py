"""Where and in which type models run, and whether adapters fit."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from esckit.errors import CheckpointError, ConfigError
from esckit.flow.policy import CheckpointPolicy
from esckit.models.backbones import tiny_random
from esckit.models.loading import as_dtype, exact_dtype, load_adapter
from esckit.models.local import PerplexityScorer


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        PerplexityScorer.load("tiny-random", device="cuda")
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        CheckpointPolicy.load(tmp_path, abbreviations={}, device="cuda")


def test_exact_numbers_are_float32_on_a_processor() -> None:
    place = torch.device("cpu")
    assert exact_dtype("auto", place) == torch.float32
    assert exact_dtype("bfloat16", place) == torch.bfloat16


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


@torch.no_grad()
def test_a_narrow_type_keeps_the_rotary_frequencies(tmp_path: Path) -> None:
    model, _ = tiny_random()
    model.save_pretrained(tmp_path)
    ids = torch.randint(3, 300, (1, 600))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, trust_remote_code=False)
    assert torch.equal(as_dtype(model, torch.bfloat16)(ids).logits, loaded(ids).logits)
    assert model.dtype == torch.bfloat16
