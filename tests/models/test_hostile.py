"""What others wrote into a folder of weights never runs, and whatever is wrong with it is an error of ours."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from esckit.config.load import load_any_recipe
from esckit.errors import CheckpointError, ConfigError, EsckitError
from esckit.models.backbones import find_backbone
from esckit.models.in_memory import build
from esckit.models.loading import load_adapter, load_base, load_causal, load_tensors, load_tokenizer
from tests.shell import ROOT

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from transformers import LlamaConfig as HostileConfig
from transformers import LlamaForCausalLM as Hostile
from transformers import PreTrainedTokenizerFast as HostileTokenizer
"""
AUTO_MAP = {
    "AutoConfig": "hostile.HostileConfig",
    "AutoModel": "hostile.Hostile",
    "AutoModelForCausalLM": "hostile.Hostile",
    "AutoTokenizer": ["hostile.HostileTokenizer", "hostile.HostileTokenizer"],
}


def saved(folder: Path) -> Path:
    model, tokenizer = build("tiny-random")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def changed(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose model and tokenizer say that they need code that lies beside them."""
    folder = saved(tmp_path / "hostile")
    changed(folder / "config.json", auto_map=AUTO_MAP, model_type="hostile")
    changed(folder / "tokenizer_config.json", auto_map=AUTO_MAP, tokenizer_class="HostileTokenizer")
    (folder / "hostile.py").write_text(CODE)
    return folder


def test_code_in_a_folder_of_weights_is_neither_offered_nor_run(hostile: Path) -> None:
    code = (
        "import torch; from pathlib import Path; from esckit.errors import EsckitError\n"
        "from esckit.models.backbones import find_backbone; from esckit.models.loading import *\n"
        f"folder = Path({str(hostile)!r})\n"
        "for load in (lambda: load_causal(find_backbone(str(folder))),\n"
        "             lambda: load_base(folder, dtype=torch.float32), lambda: load_tokenizer(folder)):\n"
        "    try: load()\n"
        "    except EsckitError: pass\n"
        "    print('tried')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        input="y\n" * 9,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not list(hostile.rglob("ran"))
    assert done.stdout.count("tried") == 3, done.stderr
    assert "Do you wish" not in done.stdout + done.stderr


def named_in(file: str, **fields: Any) -> Any:
    return lambda folder: changed(folder / file, **fields)


def only_pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def weights_elsewhere(folder: Path) -> None:
    tensors = load_file(str(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "other.safetensors").write_bytes(b"")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "../outside.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


REFUSED = {
    "auto_map": (named_in("config.json", auto_map=AUTO_MAP), "config.json: auto_map names code"),
    "auto_map below": (named_in("config.json", text_config={"auto_map": AUTO_MAP}), "config.json: auto_map names code"),
    "of the hub": (named_in("config.json", auto_map={"AutoModel": "owner/repo--x.Y"}), "auto_map names code"),
    "tokenizer": (named_in("tokenizer_config.json", auto_map=AUTO_MAP), "tokenizer_config.json: auto_map names code"),
    "kernel": (named_in("config.json", _attn_implementation="owner/kernel"), "_attn_implementation names code"),
    "pickles": (only_pickled, "weights as pickles only (pytorch_model.bin), which are never read"),
    "weights elsewhere": (weights_elsewhere, "weights in '../outside.safetensors'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_code_and_pickles_are_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    """Also where transformers knows the type of the model, so that it would load without its code."""
    spoil, words = REFUSED[name]
    folder = saved(tmp_path / "model")
    load_causal(find_backbone(str(folder)))
    spoil(folder)
    with pytest.raises(ConfigError) as caught:
        find_backbone(str(folder))  # before a model is built, and in a dry run
    assert words in str(caught.value)
    with pytest.raises(EsckitError):
        load_base(folder, dtype=torch.float32)


@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        ("smoke/simulate", "models.supporter.trust_remote_code"),
        ("smoke/train_flow", "model.trust_remote_code"),
        ("smoke/evaluate", "trust_remote_code"),
    ],
)
def test_a_recipe_that_asks_for_code_of_weights_is_refused(recipe: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_any_recipe(recipe, overrides=[f"{field}=true"])
    assert f"{field} (--set): no such field: esckit never runs code that comes with weights" in str(caught.value)
    assert "1 problem\n" in str(caught.value)


def test_every_call_that_loads_by_name_refuses_foreign_code() -> None:
    """`from_pretrained` stands where one says so, and nowhere else."""
    calls = []
    for path in sorted((ROOT / "esckit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr not in ("from_pretrained", "from_config"):
                    continue
                trust = {word.arg: ast.unparse(word.value) for word in node.keywords}.get("trust_remote_code")
                calls.append((path.relative_to(ROOT).as_posix(), ast.unparse(node.func.value), trust))
    assert calls
    # peft's adapters and generation settings hold no code of their own; ours are read for what they are first.
    assert {call for call in calls if call[2] != "False"} == {
        ("esckit/models/loading.py", "PeftModel", None),
        ("esckit/export/plain/policy.py", "GenerationConfig", None),
    }
    # An export's own code is for those who have no esckit.
    elsewhere = {path for path, _, _ in calls if not path.startswith("esckit/export/")}
    assert elsewhere == {"esckit/models/loading.py", "esckit/models/backbones.py", "esckit/models/in_memory.py"}


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


def pickled(folder: Path) -> None:
    torch.save(load_file(str(folder / "model.safetensors")), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lacking(folder: Path) -> None:
    tensors = load_file(str(folder / "model.safetensors"))
    save_file(dict(sorted(tensors.items())[3:]), str(folder / "model.safetensors"), metadata={"format": "pt"})


def nested(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 100_000)


def odd(folder: Path) -> None:
    changed(folder / "config.json", hidden_size="many", num_attention_heads=None)


def listed(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


@pytest.mark.parametrize("spoil", [cut, pickled, lacking, nested, odd, listed])
def test_weights_that_cannot_be_loaded_are_one_error(tmp_path: Path, spoil: Any) -> None:
    folder = saved(tmp_path / "model")
    spoil(folder)
    with pytest.raises(CheckpointError, match="model cannot be loaded"):
        load_base(folder, dtype=torch.float32)
    with pytest.raises(EsckitError) as caught:
        load_causal(find_backbone(str(folder)))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a":' * 100_000, b"\xff\xfe", b"{}"])
def test_a_tokenizer_that_cannot_be_loaded_is_one_error(tmp_path: Path, content: bytes) -> None:
    folder = saved(tmp_path / "model")
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_tokenizer(folder)


def test_a_tokenizer_of_odd_limits_is_one_error(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    changed(folder / "tokenizer_config.json", model_max_length={"a": 1})
    with pytest.raises(CheckpointError, match="model_max_length is a dict"):
        load_tokenizer(folder)


def test_an_adapter_is_lora_in_safetensors_for_this_model(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    def adapter() -> Path:
        shutil.rmtree(tmp_path / "adapter", ignore_errors=True)
        wrapped = get_peft_model(build("tiny-random")[0], LoraConfig(r=2, target_modules=["q_proj"]))
        wrapped.save_pretrained(str(tmp_path / "adapter"))
        return tmp_path / "adapter"

    load_adapter(build("tiny-random")[0], adapter())
    changed(adapter() / "adapter_config.json", peft_type="PROMPT_TUNING")
    with pytest.raises(CheckpointError, match="type 'PROMPT_TUNING'"):
        load_adapter(build("tiny-random")[0], tmp_path / "adapter")
    changed(adapter() / "adapter_config.json", megatron_config={"a": 1}, megatron_core="hostile")
    with pytest.raises(ConfigError, match="megatron_config names code"):
        load_adapter(build("tiny-random")[0], tmp_path / "adapter")
    (adapter() / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_adapter(build("tiny-random")[0], tmp_path / "adapter")
    changed(adapter() / "adapter_config.json", target_modules=["k_proj"])
    with pytest.raises(CheckpointError, match="does not fit its backbone"):
        load_adapter(build("tiny-random")[0], tmp_path / "adapter")
    (adapter() / "adapter_model.safetensors").rename(tmp_path / "adapter/adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"lacks adapter_model\.safetensors"):
        load_adapter(build("tiny-random")[0], tmp_path / "adapter")


def test_tensors_that_cannot_be_read_are_one_error(tmp_path: Path) -> None:
    (tmp_path / "head.safetensors").write_bytes(b"\xff" * 64)
    for name in ("head.safetensors", "none.safetensors"):
        with pytest.raises(CheckpointError, match="cannot be loaded"):
            load_tensors(tmp_path / name)
