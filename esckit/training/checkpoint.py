"""Adapters and checkpoints of trainings: how they are made, written, read back, and described in a model card.

Every checkpoint folder holds its metadata (:mod:`esckit.models.checkpoint`), ``tokenizer/``, the trained part of the
backbone in ``adapter/`` or ``backbone/``, and trained heads, if there are any, in one safetensors file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn

from esckit.models.checkpoint import ADAPTER, BACKBONE, KINDS, TOKENIZER, CheckpointMetadata
from esckit.models.loading import check_lora_targets, check_stored, tidy_adapter
from esckit.records import dump_line, fresh_folder, write_atomic
from esckit.training.sections import Lora

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
        check_lora_targets(model, targets)
        targets = list(targets)
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
        tokenizer.save_pretrained(str(fresh / TOKENIZER))
        check_stored(state, fresh)
        write_atomic(fresh / KINDS[metadata.COMMAND].file, dump_line(metadata) + "\n")


# ---------------------------------------------------------------- model cards


def render_card(name: str, **facts: object) -> str:
    """Return the shipped card ``name`` with every fact filled in.

    Raises:
        KeyError: If the template names a fact that is not given.
    """
    text = resources.files("esckit.training").joinpath("cards", f"{name}.md").read_text(encoding="utf-8")
    return Template(text).substitute(facts)


def metrics_table(columns: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return metrics as a Markdown table, a row for each name; ``–`` where there is none."""
    lines = [f"| metric | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
    for name in names:
        found = [column.get(name) for column in columns.values()]
        cells = ["–" if cell is None else f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
