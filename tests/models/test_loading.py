"""Where and in which type models run, and whether adapters fit."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from esckit.errors import CheckpointError, ConfigError, NoRoomError
from esckit.flow.policy import CheckpointPolicy
from esckit.models.backbones import BackboneSource, find_backbone, resolve_backbone
from esckit.models.in_memory import build
from esckit.models.loading import (
    as_dtype,
    exact_dtype,
    free_memory,
    load_adapter,
    load_causal,
    load_on,
    load_whole,
    on_device,
    save_tokenizer,
    weight_bytes,
)
from esckit.models.local import LocalModel, PerplexityScorer


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
    model = get_peft_model(build("tiny-random")[0], LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
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
        load_adapter(build("tiny-random")[0], tmp_path)


@torch.no_grad()
def test_a_narrow_type_keeps_the_rotary_frequencies(tmp_path: Path) -> None:
    model, _ = build("tiny-random")
    model.save_pretrained(tmp_path)
    ids = torch.randint(3, 300, (1, 600))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, trust_remote_code=False)
    assert torch.equal(as_dtype(model, torch.bfloat16)(ids).logits, loaded(ids).logits)
    assert model.dtype == torch.bfloat16


def test_a_tokenizer_is_stored_alike_whatever_it_was_asked_last(tmp_path: Path) -> None:
    _, tokenizer = build("tiny-random")
    save_tokenizer(tokenizer, tmp_path / "fresh")
    tokenizer(["one", "one and more"], padding=True, truncation=True, max_length=2)
    save_tokenizer(tokenizer, tmp_path / "used")
    for file in (tmp_path / "fresh").iterdir():
        assert (tmp_path / "used" / file.name).read_bytes() == file.read_bytes()


CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> BackboneSource:
    model, tokenizer = build("tiny-random")
    model.save_pretrained(tmp_path / "tiny", max_shard_size="40KB")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return resolve_backbone(str(tmp_path / "tiny"))


def test_no_bar_is_drawn_where_nobody_watches(folder: BackboneSource, capfd: pytest.CaptureFixture[str]) -> None:
    assert folder.folder is not None
    transformers_logging.enable_progress_bar()
    load_whole(folder.folder, dtype=torch.float32)
    assert "Loading" not in capfd.readouterr().err


def test_the_size_of_weights_is_known_before_they_are_read(folder: BackboneSource) -> None:
    assert folder.folder is not None
    assert len(list(folder.folder.glob("*.safetensors"))) > 1
    model, _ = load_causal(folder)
    n = sum(parameter.numel() for parameter in model.parameters())
    assert weight_bytes(folder, torch.float32) == 4 * n
    assert weight_bytes(folder, torch.bfloat16) == 2 * n
    large = find_backbone("qwen2.5-72b-instruct")  # not downloaded: the registry knows
    assert weight_bytes(large, torch.bfloat16) == pytest.approx(145e9, rel=0.01)
    assert weight_bytes(find_backbone("owner/unknown"), torch.float32) is None
    (folder.folder / "model.safetensors").write_bytes(b"damaged")
    assert weight_bytes(folder, torch.float32) is None


@pytest.mark.parametrize(("free_cpu", "free_gpu", "named"), [(1e9, 80e9, "cpu"), (400e9, 80e9, "cuda:0")])
def test_weights_above_free_memory_are_refused_before_loading(free_cpu: float, free_gpu: float, named: str) -> None:
    source, free = find_backbone("qwen2.5-72b-instruct"), {"cpu": int(free_cpu), "cuda": int(free_gpu)}
    with pytest.raises(NoRoomError) as caught:
        load_on(source, torch.device("cuda", 0), dtype=torch.bfloat16, free=lambda place: free[place.type])
    message = str(caught.value)
    there = {"cpu": "1.0", "cuda:0": "80.0"}[named]
    assert f"do not fit {named}: they take 145.4 GB in bfloat16, {there} GB are free" in message
    assert all(words in message for words in ("rlff/simulate_server", "dtype: bfloat16", "quantises"))
    assert caught.value.exit_code == 2


def test_a_role_whose_weights_do_not_fit_is_refused(folder: BackboneSource) -> None:
    assert folder.folder is not None
    n = 72 * 10**9
    header = json.dumps({"w": {"dtype": "BF16", "shape": [n], "data_offsets": [0, 2 * n]}}).encode()
    with (folder.folder / "model.safetensors").open("wb") as file:  # a file with a hole
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * n)
    with pytest.raises(NoRoomError, match=r"weights of tiny do not fit cpu: they take 144\.0 GB in bfloat16"):
        LocalModel.load(str(folder.folder), dtype="bfloat16", device="cpu")


def test_weights_that_fit_or_of_unknown_size_are_loaded(folder: BackboneSource) -> None:
    for free in (10**9, None):
        model, _ = load_on(folder, CPU, dtype=torch.bfloat16, free=lambda place, n=free: n)
        assert model.dtype == torch.bfloat16
    assert (free_memory(CPU) or 0) > 10**8


class Heavy:
    """A model that does not fit where it is moved to."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def to(self, _: object) -> None:
        raise self.error


OUT = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT)
def test_memory_that_runs_out_says_what_to_do(error: Exception) -> None:
    with pytest.raises(NoRoomError, match=r"weights of big do not fit cuda:1.*simulate_server"):
        on_device(Heavy(error), torch.device("cuda", 1), name="big")
    with pytest.raises(RuntimeError, match="device-side assert"):
        on_device(Heavy(RuntimeError("device-side assert")), CPU, name="big")


@pytest.mark.parametrize("error", OUT)
def test_memory_that_runs_out_while_loading_says_so_too(folder, error: Exception, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(NoRoomError, match="do not fit cpu"):
        load_causal(folder)
