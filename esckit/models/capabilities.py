"""What the libraries that ``pyproject.toml`` allows can do, each in its own release.

All code of esckit that depends on the release of a library stands here. It asks for a capability (a parameter, a
method, a field), never for a version number.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import fields
from inspect import signature
from typing import Any

from torch import nn


def cache_parameter(model: nn.Module) -> str:
    """Return the name under which ``forward`` of a transformers model takes its cache."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def dequantised_gguf() -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that turn the weights of a GGUF file into plain ones."""
    try:
        from transformers import GgufConfig
    except ImportError:  # such releases can do nothing else
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def keep_soft_caps(model: Any) -> None:
    """Let a transformers model with soft-capped attention scores (Gemma 2) cap them: with SDPA some releases do not."""
    if model.config.to_dict().get("attn_logit_softcapping"):
        model.set_attn_implementation("eager")


def checkpoint_activations(decoder: Any) -> None:
    """Let a transformers model compute its activations again in the backward pass, to save memory."""
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        if hasattr(decoder, name):
            getattr(decoder, name)({"use_reentrant": False})
            return


def checkpointing_arguments(arguments: type, *, wanted: bool) -> dict[str, Any]:
    """Return what to give the training arguments of a ``Trainer`` so that activations are computed again, or kept.

    Args:
        arguments: The class of the arguments.
        wanted: Whether they are to be computed again.
    """
    known = {field.name for field in fields(arguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: wanted, f"{name}_kwargs": {"use_reentrant": False} if wanted else None}


def generating(trainer: Any) -> AbstractContextManager[Any]:
    """Return a context that gives a trainer's model ready to generate: whole under ZeRO-3, without recomputation."""
    from trl.models import unwrap_model_for_generation

    options: dict[str, Any] = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    known = signature(unwrap_model_for_generation).parameters
    given = {name: value for name, value in options.items() if name in known}
    found: AbstractContextManager[Any] = unwrap_model_for_generation(
        trainer.model_wrapped, trainer.accelerator, **given
    )
    return found
