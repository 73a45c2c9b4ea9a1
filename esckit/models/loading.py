"""Loading of backbones, and where and in which number type they run; every model of this package goes through here."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from esckit.errors import ConfigError
from esckit.models.backbones import BackboneSource, fetch_backbone
from esckit.models.embedded import quiet_off_terminal
from esckit.models.tiny import tiny_random
from esckit.records import write_json

_log = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def load_causal(source: BackboneSource, *, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return a causal language model and its tokenizer.

    Raises:
        ConfigError: If transformers cannot load it.
    """
    if source.kind == "memory":
        model, tokenizer = tiny_random()
        return model.to(dtype), tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = source.folder or fetch_backbone(source.name)
    quiet_off_terminal()
    _log.info("loading %s from %s as %s", source.name, folder, dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=dtype
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"transformers cannot load {folder}: {error}",
            expected="a causal language model that needs no code of its own",
        ) from error
    return model, tokenizer


def check_lora_targets(model: nn.Module, targets: Iterable[str]) -> None:
    """Refuse adapters on layers that a model lacks: peft passes over a missing one as long as it finds another.

    Raises:
        ConfigError: If no layer that peft can adapt bears one of the names, or there is no name.
    """
    layers = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Embedding | Conv1D)}
    wanted = tuple(targets)
    missing = [target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in layers)]
    if missing or not wanted:
        raise ConfigError(
            f"lora.targets: no layer {', '.join(missing) or 'is named'}",
            expected=f"some of {', '.join(sorted({name.rpartition('.')[2] for name in layers}))}",
        )


def tidy_adapter(folder: Path, backbone: str) -> None:
    """Make what peft wrote a function of the adapter alone, so that equal trainings leave equal bytes.

    Args:
        folder: The adapter's.
        backbone: Name of the backbone, which takes the place of the folder that it happened to lie in.
    """
    config = folder / "adapter_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    targets = settings["target_modules"]
    # A set to peft, so every process would write it in another order.
    ordered = sorted(targets) if isinstance(targets, list) else targets
    write_json(config, {**settings, "base_model_name_or_path": backbone, "target_modules": ordered})
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty form; the card says what there is


def pick_device(device: str) -> torch.device:
    """Return a device by name; ``auto`` is the GPU where there is one.

    Raises:
        ConfigError: If there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}", expected="auto, cpu, cuda or cuda:N") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' is named, but torch sees no GPU", hint="Use device: auto or cpu.")
    return place


def pick_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """Return a number type by name; ``auto`` is bfloat16 where the device computes in it, else float32.

    Raises:
        ConfigError: If there is no such type.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype != "auto":
        if dtype not in names:
            raise ConfigError(f"unknown dtype {dtype!r}", expected=f"auto, {', '.join(names)}")
        return names[dtype]
    has_bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else _processor_has_bf16()
    return torch.bfloat16 if has_bf16 else torch.float32


def exact_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """Return the number type of a model whose numbers are compared in their last digits.

    On a processor ``auto`` is float32, even where it knows bfloat16; all else is as in :func:`pick_dtype`.
    """
    return torch.float32 if dtype == "auto" and device.type == "cpu" else pick_dtype(dtype, device)


def _processor_has_bf16() -> bool:
    """Return whether the processor multiplies in bfloat16 itself; emulated, it is slower than float32."""
    info = Path("/proc/cpuinfo")
    return info.is_file() and not _BF16_FLAGS.isdisjoint(info.read_text().split())
