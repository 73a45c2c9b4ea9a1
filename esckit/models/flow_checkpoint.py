"""Checkpoints of flow models: an adapter (or a whole backbone), two heads, and what one must know to use them.

::

    checkpoint/flow.json              metadata: taxonomy, text form, objective, inputs, round
    checkpoint/heads.safetensors      strategy head and flow head, float32
    checkpoint/adapter/ or backbone/  as peft or transformers write them (safetensors)
    checkpoint/tokenizer/             as transformers writes it
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn

from esckit.errors import CheckpointError
from esckit.models.flow_metadata import FOLDER, HEADS, METADATA, FlowMetadata, checkpoint_folder, read_metadata
from esckit.models.flow_model import FlowModel, base_decoder
from esckit.models.loading import load_tensors, tidy_adapter
from esckit.models.stored import check_stored
from esckit.records import dump_line, fresh_folder, write_atomic

ADAPTER = "adapter"
BACKBONE = "backbone"
TOKENIZER = "tokenizer"


def save_flow_model(
    model: FlowModel,
    metadata: FlowMetadata,
    folder: Path,
    *,
    tokenizer: Any = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint in place of the last one; a folder that is there is whole.

    Args:
        model: The model.
        metadata: What to know of it.
        folder: Where to; replaced as a whole.
        tokenizer: The backbone's; None leaves it out.
        state: The model's tensors by name where they had to be gathered from several devices; None takes its own.
    """
    tensors = model.state_dict() if state is None else state
    backbone, is_adapted = model.backbone, isinstance(model.backbone, PeftModel)
    inner = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith("backbone.") and (".lora_" in name or not is_adapted)
    }
    heads = {name: tensors[name].detach().cpu().contiguous() for name in heads_state(model)}
    plain = {name.removeprefix("backbone."): tensor for name, tensor in inner.items()}
    with fresh_folder(folder) as fresh:
        if isinstance(backbone, PeftModel):
            backbone.save_pretrained(str(fresh / ADAPTER), state_dict=plain, save_embedding_layers=False)
            tidy_adapter(fresh / ADAPTER, metadata.backbone)
        else:
            base_decoder(backbone).save_pretrained(str(fresh / BACKBONE), state_dict=plain)
        save_file(heads, str(fresh / HEADS))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(fresh / TOKENIZER))
        check_stored({**inner, **heads}, fresh)
        write_atomic(fresh / METADATA, dump_line(metadata) + "\n")


def load_heads(model: FlowModel, folder: Path) -> None:
    """Load the heads of a checkpoint into a model.

    Raises:
        CheckpointError: If they do not fit the model.
    """
    stored = load_tensors(folder / HEADS)
    wanted = heads_state(model)
    if {name: tensor.shape for name, tensor in stored.items()} != {name: t.shape for name, t in wanted.items()}:
        raise CheckpointError(f"the heads in {folder} do not fit this backbone and taxonomy")
    for prefix, head in _heads(model).items():
        head.load_state_dict({name.removeprefix(prefix): t for name, t in stored.items() if name.startswith(prefix)})


def heads_state(model: FlowModel) -> dict[str, Tensor]:
    """Return the heads' tensors by name."""
    return {
        prefix + name: tensor.detach().contiguous()
        for prefix, head in _heads(model).items()
        for name, tensor in head.state_dict().items()
    }


def _heads(model: FlowModel) -> dict[str, nn.Module]:
    return {"strategy_head.": model.strategy_head, "flow_head.": model.flow_head}
