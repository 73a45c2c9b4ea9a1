"""Whether a checkpoint on disk is whole: its tensors as they were trained, and none that is empty or cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from esckit.errors import CheckpointError

_BUG = "The checkpoint that was there before is kept, and so are the states. Please report this"


def check_stored(state: Mapping[str, Tensor], folder: Path) -> None:
    """Read a checkpoint back and compare it with what was trained, one tensor after the other.

    Args:
        state: The trained tensors by name.
        folder: The checkpoint; in its files a name may lack the beginning, and an adapter's ``default``.

    Raises:
        CheckpointError: If a stored tensor differs from the trained one, or a trained one is not stored.
    """
    with ExitStack() as stack:
        stored = {_plain(name): read for name, read in _tensors(folder, stack)}
        first_name: dict[int, str] = {}
        for name, trained in state.items():
            is_tied = first_name.setdefault(trained.data_ptr(), name) != name
            read = next((stored[end] for end in _ends(_plain(name)) if end in stored), None)
            if read is None and not is_tied:
                raise CheckpointError(f"the checkpoint just written lacks {name}", hint=_BUG)
            if read is not None and not torch.equal(found := read(), trained.to(found.dtype)):
                raise CheckpointError(
                    f"{name} has shape {tuple(found.shape)} or other values in the checkpoint just written",
                    expected=f"the trained tensor, shape {tuple(trained.shape)}",
                    hint=_BUG,
                )


def _tensors(folder: Path, stack: ExitStack) -> Iterator[tuple[str, Any]]:
    """Yield name and a function that reads it for every tensor below a folder."""
    for path in sorted(folder.rglob("*.safetensors")):
        file = stack.enter_context(safe_open(path, framework="pt"))
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            yield name, lambda file=file, name=name: file.get_tensor(name)


def _plain(name: str) -> str:
    return name.replace(".default.", ".")


def _ends(name: str) -> Iterator[str]:
    """Yield a dotted name and its shorter and shorter ends."""
    parts = name.split(".")
    for start in range(len(parts)):
        yield ".".join(parts[start:])


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


def check_adapter(model: nn.Module, folder: Path) -> None:
    """Refuse an adapter that does not fit the model it was put on; peft passes over tensors that are missing.

    Args:
        model: The model with the adapter around it.
        folder: The adapter's.

    Raises:
        CheckpointError: Naming the tensors that are missing, unknown or of another shape.
    """
    from peft import get_peft_model_state_dict

    wanted = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    odd = sorted(name for name in wanted.keys() | stored.keys() if wanted.get(name) != stored.get(name))
    if odd:
        raise CheckpointError(
            f"the adapter in {folder} does not fit its backbone: {', '.join(odd[:3])}{' …' if odd[3:] else ''}",
            expected=f"{len(wanted)} tensors, such as {next(iter(wanted))} of shape {next(iter(wanted.values()))}",
        )
