"""Adapters and checkpoints of trainings: how they are made, written, read back, and described in a model card.

Every checkpoint folder holds its metadata (:mod:`esckit.models.checkpoint`), ``tokenizer/``, the trained part of the
backbone in ``adapter/`` or ``backbone/``, and trained heads, if there are any, in one safetensors file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import esckit
from esckit.config.training import Lora
from esckit.errors import CheckpointError, ConfigError
from esckit.models.checkpoint import ADAPTER, BACKBONE, KINDS, START, TOKENIZER, CheckpointMetadata
from esckit.models.loading import save_tokenizer
from esckit.prompts.prompt import Prompt, keep_prompt
from esckit.records import dump_line, fresh_folder, write_atomic, write_json

_BUG = "The checkpoint that was there before is kept, and so are the states. Please report this"


# ---------------------------------------------------------------- adapters


def adapter_config(
    lora: Lora, model: nn.Module, *, usual: Sequence[str] | None = None, task_type: str | None = None
) -> LoraConfig:
    """Return peft's configuration of an adapter.

    Args:
        lora: The recipe's section.
        model: What is to be adapted.
        usual: Layers to adapt where the section names none; None then takes all linear ones.
        task_type: As peft names it.

    Raises:
        ConfigError: If the model lacks a layer that is named.
    """
    targets = usual if lora.targets is None else lora.targets
    if targets is not None and not isinstance(targets, str):
        targets = list(targets)
        # peft passes over a missing layer as long as it finds another.
        layers = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Embedding | Conv1D)}
        missing = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in layers)]
        if missing or not targets:
            raise ConfigError(
                f"lora.targets: no layer {', '.join(missing) or 'is named'}",
                expected=f"some of {', '.join(sorted({name.rpartition('.')[2] for name in layers}))}",
            )
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets or "all-linear",
        task_type=task_type,
    )


# ---------------------------------------------------------------- checkpoints


def save_checkpoint(
    folder: Path,
    metadata: CheckpointMetadata,
    *,
    backbone: Any,
    tokenizer: Any,
    state: Mapping[str, Tensor],
    heads_file: str | None = None,
    start: Path | None = None,
    prompt: Prompt | None = None,
) -> None:
    """Write a checkpoint in place of the last one; a folder that is there is whole.

    Args:
        folder: Where to; replaced as a whole.
        metadata: What to know of it.
        backbone: The backbone, inside a ``PeftModel`` if an adapter was trained; its weights may be sharded.
        tokenizer: The backbone's.
        state: The trained tensors, whole (:func:`esckit.training.sharding.gathered_state`).
        heads_file: File of the heads: the tensors whose names do not begin with ``backbone.``; None for a model
            without heads, all of whose tensors are the backbone's.
        start: The checkpoint that training began with, whose weights are taken along; None for the plain backbone.
        prompt: The prompt of a supporter, kept if it is a user's own; None for what reads none.

    Raises:
        CheckpointError: If what was written is not what was trained; the old folder stays.
    """
    prefix = "" if heads_file is None else "backbone."
    trained = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    with fresh_folder(folder) as fresh:
        if isinstance(backbone, PeftModel):
            # Embeddings are never trained beside an adapter, and TRL may have put a second one on the model.
            backbone.save_pretrained(
                str(fresh / ADAPTER), state_dict=trained, selected_adapters=["default"], save_embedding_layers=False
            )
            tidy_adapter(fresh / ADAPTER, metadata.backbone)
        elif trained:
            backbone.save_pretrained(str(fresh / BACKBONE), state_dict=trained)
        if heads_file is not None:
            heads = {name: t.detach().cpu().contiguous() for name, t in state.items() if not name.startswith(prefix)}
            save_file(heads, str(fresh / heads_file))
        save_tokenizer(tokenizer, fresh / TOKENIZER)
        check_stored(state, fresh)
        if start is not None:
            _take_along(start, fresh / START)
        if prompt is not None:
            keep_prompt(prompt, fresh)
        write_atomic(fresh / KINDS[metadata.COMMAND].file, dump_line(metadata) + "\n")


def _take_along(checkpoint: Path, folder: Path) -> None:
    """Put the adapter or whole model of a checkpoint into a folder; where the file system can, without a second copy.

    Files of a checkpoint are replaced and never changed, so two names of one file stay equal.
    """
    for part in (ADAPTER, BACKBONE):
        for source in sorted((checkpoint / part).glob("*")):
            target = folder / part / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)


def tidy_adapter(folder: Path, backbone: str) -> None:
    """Make the files that peft wrote depend on the adapter alone, so that equal trainings leave equal bytes.

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
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty template; the model card is written by esckit


def check_stored(state: Mapping[str, Tensor], folder: Path) -> None:
    """Read a checkpoint back and compare it with what was trained, one tensor after the other.

    Args:
        state: The trained tensors by name.
        folder: The checkpoint; in its files a name may lack the beginning, and an adapter's ``default``.

    Raises:
        CheckpointError: If a stored tensor differs from the trained one, or a trained one is not stored.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.rglob("*.safetensors"))]
        stored = {_plain(name): (file, name) for file in files for name in file.keys()}  # noqa: SIM118 - no mapping
        first_name: dict[int, str] = {}
        for name, trained in state.items():
            is_tied = first_name.setdefault(trained.data_ptr(), name) != name
            parts = _plain(name).split(".")
            ends = (".".join(parts[start:]) for start in range(len(parts)))
            file, stored_name = next((stored[end] for end in ends if end in stored), (None, ""))
            if file is None and not is_tied:
                raise CheckpointError(f"the checkpoint just written lacks {name}", hint=_BUG)
            if file is not None and not torch.equal(found := file.get_tensor(stored_name), trained.to(found.dtype)):
                raise CheckpointError(
                    f"{name} has shape {tuple(found.shape)} or other values in the checkpoint just written",
                    expected=f"the trained tensor, shape {tuple(trained.shape)}",
                    hint=_BUG,
                )


def _plain(name: str) -> str:
    # An adapter of embeddings has its name at the end: lora_embedding_A.default.
    return ".".join(part for part in name.split(".") if part != "default")


# ---------------------------------------------------------------- model cards


def write_card(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    """Write the shipped card ``name`` beside a checkpoint, with every fact filled in.

    Raises:
        KeyError: If the template names a fact that is not given.
    """
    text = resources.files("esckit.training").joinpath("cards", f"{name}.md").read_text(encoding="utf-8")
    write_atomic(folder / "README.md", Template(text).substitute(facts, version=esckit.__version__))


def metrics_table(columns: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return metrics as a Markdown table, a row for each name; ``–`` where there is none."""
    lines = [f"| metric | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
    for name in names:
        found = [column.get(name) for column in columns.values()]
        cells = ["–" if cell is None else f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
