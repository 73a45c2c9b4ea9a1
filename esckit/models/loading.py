"""Backbones and checkpoints into memory: where and in which number type they run, and whether they are whole.

Every model of this package is loaded here, from safetensors and without code that lies beside the weights. Which
backbones have names is in :mod:`esckit.models.backbones`; the heads on top of a backbone belong to their trainings.

The functions at the end adapt to the installed release of a library. They ask for a capability (a parameter, a method,
a field), never for a version number.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import fields
from inspect import signature
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from esckit.config.training import Attention, Quantisation
from esckit.documents import read_json_object
from esckit.errors import CheckpointError, ConfigError, EsckitError, NoRoomError
from esckit.models import in_memory
from esckit.models.backbones import BackboneSource, fetch_backbone, quiet_off_terminal, require_no_code

_log = logging.getLogger(__name__)


Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_ADAPTER_CONFIG = "adapter_config.json"

_LARGEST_HEADER = 100_000_000  # the format's own limit, in bytes

_ADAPTER_WEIGHTS = "adapter_model.safetensors"


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
    return info.is_file() and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(info.read_text().split())


def load_causal(
    source: BackboneSource,
    *,
    dtype: torch.dtype = torch.float32,
    quantisation: Quantisation | None = None,
    attention: Attention = "auto",
) -> tuple[Any, Any]:
    """Return a causal language model, on the processor (if quantised: on the GPU if there is one), and its tokenizer.

    Args:
        source: What to load.
        dtype: Number type of its weights, or in which quantised ones are computed.
        quantisation: How its linear layers are held; None holds them in ``dtype``.
        attention: Implementation of its attention.

    Raises:
        ConfigError: If transformers cannot load it, or its attention cannot be computed in this way.
    """
    if source.kind == "memory":
        model, tokenizer = in_memory.build(source.name)
        return held_as(model, dtype=dtype, quantisation=quantisation, attention=attention), tokenizer
    from transformers import AutoModelForCausalLM

    folder = source.folder or fetch_backbone(source.name)
    _log.info("loading %s from %s as %s", source.name, folder, dtype)
    with _foreign(folder, ConfigError, "a causal language model in safetensors that needs no code of its own"):
        tokenizer = _tokenizer(folder)
        return _whole(AutoModelForCausalLM, folder, dtype, quantisation, attention), tokenizer


def held_as(model: Any, *, dtype: torch.dtype, quantisation: Quantisation | None, attention: Attention) -> Any:
    """Return a causal language model that is in memory as one that is loaded so, see :func:`load_causal`."""
    if quantisation is not None:  # which transformers does while it reads files
        with TemporaryDirectory() as place:
            model.save_pretrained(place)
            return _whole(type(model), Path(place), dtype, quantisation, attention)
    set_attention(model, attention)
    return as_dtype(model, dtype)


def as_dtype(model: Any, dtype: torch.dtype) -> Any:
    """Give a transformers model's weights a number type, as loading it in this type would; returns the model.

    Buffers that are no weights stay as they are: rotary frequencies in bfloat16 are off by up to 0.4 %, which is a
    radian after some hundred tokens.
    """
    kept = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set
    ]
    model.to(dtype)
    for module, name, buffer in kept:
        setattr(module, name, buffer)
    return model


def load_on(
    source: BackboneSource,
    device: torch.device,
    *,
    dtype: torch.dtype,
    free: Callable[[torch.device], int | None] | None = None,
) -> tuple[Any, Any]:
    """Return a causal language model on a device, and its tokenizer.

    Args:
        source: What to load.
        device: Where it is to run.
        dtype: Number type of its weights.
        free: Tells the free bytes of a device, None if unknown; by default :func:`free_memory`.

    Raises:
        NoRoomError: If its weights do not fit; before anything is read or downloaded where their size is known.
        ConfigError: If transformers cannot load it.
    """
    needed = weight_bytes(source, dtype)
    for place in dict.fromkeys((torch.device("cpu"), device)):  # it comes into the processor's memory first
        room = (free or free_memory)(place)
        if needed is not None and room is not None and needed > room:
            raise NoRoomError(source.name, str(place), needed=(needed, _named(dtype)), free=room)
    model, tokenizer = load_causal(source, dtype=dtype)
    return on_device(model, device, name=source.name), tokenizer


def weight_bytes(source: BackboneSource, dtype: torch.dtype) -> int | None:
    """Return how many bytes the weights of a model take in a number type, None if that is unknown.

    The headers of its files tell; before it is downloaded, the registry.
    """
    if source.folder is None:
        return None if source.backbone is None else int(source.backbone.parameters * 1e6) * dtype.itemsize
    try:
        return sum(_bytes_in(path, dtype) for path in source.folder.glob("*.safetensors")) or None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # loading it says what is wrong


def _bytes_in(path: Path, dtype: torch.dtype) -> int:
    """Return what the tensors of a safetensors file take, by its header; safetensors would map the whole file."""
    with path.open("rb") as file:
        header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), _LARGEST_HEADER)))
    return sum(
        prod(entry["shape"]) * (dtype.itemsize if "F" in entry["dtype"] else 1)  # integers hold quantised weights
        for name, entry in header.items()
        if name != "__metadata__"
    )


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes of a GPU, or of this machine or its container; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        known.append(int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024)
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        in_files = next(line for line in (group / "memory.stat").read_text().splitlines() if line.startswith("file "))
        used = int((group / "memory.current").read_text()) - int(in_files.split()[1])  # files are dropped if need be
        known.append(int((group / "memory.max").read_text()) - used)
    return max(0, min(known)) if known else None


def on_device(model: Any, device: torch.device, *, name: str, dtype: torch.dtype | None = None) -> Any:
    """Return a model on a device, in another number type if one is given (:func:`as_dtype`).

    Raises:
        NoRoomError: If memory ran out.
    """
    try:
        return (model if dtype is None else as_dtype(model, dtype)).to(device)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise NoRoomError(name, str(device)) from error


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out; on a processor torch says so with a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def load_whole(
    folder: Path, *, dtype: torch.dtype, quantisation: Quantisation | None = None, attention: Attention = "auto"
) -> Any:
    """Return the causal language model of a checkpoint's folder, all of whose weights were trained.

    Args:
        folder: Where transformers wrote it.
        dtype: Number type of its weights, or in which quantised ones are computed.
        quantisation: How its linear layers are held; None holds them in ``dtype``.
        attention: Implementation of its attention.

    Raises:
        CheckpointError: If transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    with _foreign(folder):
        return _whole(AutoModelForCausalLM, folder, dtype, quantisation, attention)


def load_base(folder: Path, *, dtype: torch.dtype) -> Any:
    """Return the model of a checkpoint's folder, without an LM head.

    Raises:
        CheckpointError: If transformers cannot load it.
    """
    from transformers import AutoModel

    with _foreign(folder):
        return _whole(AutoModel, folder, dtype)


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder.

    Raises:
        CheckpointError: If transformers cannot load it.
    """
    with _foreign(folder):
        return _tokenizer(folder)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer as it is by itself.

    A fast tokenizer keeps how its last call padded and cut, and would store it: the same checkpoint would then have
    other bytes after another last call.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    tokenizer.save_pretrained(str(folder))


def load_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """Return a model with the LoRA adapter of a folder around it, as a ``PeftModel``.

    Raises:
        CheckpointError: If there is none, or it does not fit the model; the message names the tensors that are
            missing, unknown or of another shape.
    """
    from peft import PeftModel, get_peft_model_state_dict

    with _foreign(folder), warnings.catch_warnings():
        # Both would be looked for on the hub; and peft can also wrap models in other ways than ours.
        for name in (_ADAPTER_CONFIG, _ADAPTER_WEIGHTS):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder} lacks {name}", expected="a LoRA adapter in safetensors")
        require_no_code(folder)
        kind = read_json_object(folder / _ADAPTER_CONFIG).get("peft_type")
        if kind != "LORA":
            raise CheckpointError(f"{folder} holds an adapter of type {kind!r}", expected="LORA")
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # they are named below
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    # peft passes over tensors that are missing.
    trained = get_peft_model_state_dict(adapted, save_embedding_layers=False)  # embeddings themselves are never stored
    wanted = {name: tuple(tensor.shape) for name, tensor in trained.items()}
    with safe_open(folder / _ADAPTER_WEIGHTS, framework="pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    odd = sorted(name for name in wanted.keys() | stored.keys() if wanted.get(name) != stored.get(name))
    if odd:
        raise CheckpointError(
            f"the adapter in {folder} does not fit its backbone: {', '.join(odd[:3])}{' …' if odd[3:] else ''}",
            expected=f"{len(wanted)} tensors, such as {next(iter(wanted))} of shape {next(iter(wanted.values()))}",
        )
    return adapted


def merge_adapter(adapted: Any, *, causal: Any = None) -> Any:
    """Return the model inside a ``PeftModel`` with the adapter added to its weights, so that it costs nothing in use.

    A quantised base is left as it is, with the adapter around it: its weights would be rounded once more.

    Args:
        adapted: The model with its adapter, in which no other model has a share.
        causal: The language model around it, if it writes. An output layer that is tied to input embeddings which the
            adapter changes gets weights of its own, since it was trained beside the adapter without being changed.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if base_decoder(adapted).config.to_dict().get("quantization_config"):
        return adapted
    if causal is not None:
        inputs, outputs = causal.get_input_embeddings(), causal.get_output_embeddings()
        if isinstance(inputs, BaseTunerLayer) and outputs.weight is inputs.weight:
            outputs.weight = nn.Parameter(outputs.weight.detach().clone(), requires_grad=False)
            causal.config.tie_word_embeddings = False
    return adapted.merge_and_unload()


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name.

    Raises:
        CheckpointError: If it cannot be read.
    """
    with _foreign(path):
        return load_file(str(path))


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = _pretrained(AutoTokenizer, folder)
    if not isinstance(tokenizer.model_max_length, int | float):  # transformers takes over whatever the file says
        raise ValueError(f"model_max_length is a {type(tokenizer.model_max_length).__name__}")
    return tokenizer


def _whole(
    kind: Any,
    folder: Path,
    dtype: torch.dtype,
    quantisation: Quantisation | None = None,
    attention: Attention = "auto",
) -> Any:
    """Return a model all of whose weights are in the folder; transformers would draw the others at random."""
    options = {} if quantisation is None else {"quantization_config": _four_bits(dtype)}
    model, info = _pretrained(kind, folder, use_safetensors=True, dtype=dtype, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise ValueError(f"no weights for {', '.join(sorted(info['missing_keys'])[:3])}")
    for module in model.modules():
        # On a processor bitsandbytes repacks weights at the first evaluation, and packed ones pass no gradient on.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    set_attention(model, attention)
    return model


def _four_bits(dtype: torch.dtype) -> Any:
    """Return what transformers is told for ``quantisation: nf4``."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    """Load by one of the Auto classes: from this folder only, and never with code that lies in it."""
    quiet_off_terminal()
    require_no_code(folder)
    return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)


@contextmanager
def _foreign(
    path: Path, kind: type[EsckitError] = CheckpointError, expected: str = "a whole checkpoint in safetensors"
) -> Iterator[None]:
    """Turn what a library raises for damaged or hostile files into one of esckit's errors."""
    try:
        yield
    except EsckitError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            raise NoRoomError(str(path), "cpu") from error
        reason = " ".join(str(error).split())
        if not isinstance(error, OSError | ValueError):  # words of libraries for their users; else the name says more
            reason = f"{type(error).__name__} {reason}"
        raise kind(f"{path} cannot be loaded: {reason}", expected=expected) from error


def check_whole(folder: Path) -> None:
    """Refuse a checkpoint that holds a file which cannot be read, or a tensor without elements.

    A run that saved sharded weights without gathering them leaves such tensors. Only headers are read.

    Raises:
        CheckpointError: Naming the file and the tensor.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                empty = [name for name in file.keys() if 0 in file.get_slice(name).get_shape()]  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error}", expected="a whole safetensors file", hint="Train the model again"
            ) from error
        if empty:
            raise CheckpointError(
                f"{path} holds empty tensors: {', '.join(empty[:3])}{' …' if empty[3:] else ''}",
                expected="trained weights",
                hint="It was saved while its weights were shared out between processes: train the model again",
            )


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, whatever the type of its input and of its weights.

    An engine may keep the weights of a whole model in bfloat16 (DeepSpeed does); a head's arithmetic must not depend on
    it. The cast stands in ``forward``, since that is where an engine that shards weights gathers them.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, dtype=torch.float32)

    def forward(self, input: Tensor) -> Tensor:
        """Return the float32 outputs (…, out) of inputs (…, in)."""
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float(), self.bias.float())


def base_decoder(backbone: nn.Module) -> PreTrainedModel:
    """Return the transformers decoder inside a backbone, with or without an adapter around it.

    Raises:
        ConfigError: If there is none.
    """
    for module in backbone.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise ConfigError(f"{type(backbone).__name__} holds no transformers model")


def layer_classes(backbone: nn.Module) -> list[str]:
    """Return the class names of a backbone's layers, which FSDP shards as one piece each."""
    return sorted(base_decoder(backbone)._no_split_modules or ())


def cache_parameter(model: nn.Module) -> str:
    """Return the name under which ``forward`` of a transformers model takes its cache."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def keep_soft_caps(model: Any) -> None:
    """Let a transformers model with soft-capped attention scores (Gemma 2) cap them: with SDPA some releases do not."""
    if model.config.to_dict().get("attn_logit_softcapping"):
        model.set_attn_implementation("eager")


def set_attention(model: Any, attention: Attention) -> None:
    """Let a transformers model compute its attention in a way; ``auto`` leaves it, but for soft-capped scores.

    Raises:
        ConfigError: If it would leave out soft caps, or there is no GPU for FlashAttention.
    """
    if attention == "flash_attention_2" and not torch.cuda.is_available():
        raise ConfigError("attention: flash_attention_2 without a CUDA GPU", expected="one, or attention: auto")
    if attention == "sdpa" and model.config.to_dict().get("attn_logit_softcapping"):
        raise ConfigError(
            f"attention: sdpa on {model.config.model_type}, whose soft-capped scores it would leave uncapped",
            expected="auto, eager or flash_attention_2",
        )
    if attention == "auto":
        keep_soft_caps(model)
    else:
        model.set_attn_implementation(attention)


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
