"""Checkpoints of flow models: an adapter (or a whole backbone), two heads, and what one must know to use them.

::

    flow.json              metadata: taxonomy, text form, objective, inputs, round
    heads.safetensors      strategy head and flow head, float32
    adapter/ or backbone/  as peft or transformers write them (safetensors)
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from esckit.errors import CheckpointError
from esckit.models.flow_model import FlowModel, base_decoder
from esckit.models.flow_text import FLOW_TEXT
from esckit.records import dump_line, parse_line, write_atomic
from esckit.types import Record

METADATA = "flow.json"
HEADS = "heads.safetensors"
ADAPTER = "adapter"
BACKBONE = "backbone"


class FlowMetadata(Record):
    """What belongs to a trained flow model.

    Attributes:
        taxonomy: Name of the taxonomy.
        strategies: Its strategies in the order of the heads' outputs.
        flow_text: Version of the text form.
        strategy_tags: Whether earlier supporter turns carry their strategy.
        situation: Whether scene and situation are in the header.
        backbone: Name, folder or hub id of the backbone.
        trainable: ``lora`` (an adapter is stored) or ``full`` (the backbone is).
        objective: Settings of the objective, for the record.
        inputs: Digest per input file or folder.
        round: Search-train round, 0 for the first.
        selected_by: What the checkpoint was selected by, such as ``best_valid``.
    """

    SCHEMA: ClassVar[str] = "esckit.flow_model/1"

    taxonomy: str
    strategies: tuple[str, ...]
    flow_text: str
    strategy_tags: bool
    situation: bool
    backbone: str
    trainable: str
    objective: dict[str, str | float | int | bool | None]
    inputs: dict[str, str]
    round: int
    selected_by: str


def save_flow_model(model: FlowModel, metadata: FlowMetadata, folder: Path) -> None:
    """Write a checkpoint; the metadata come last, so that a folder with them is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone = model.backbone
    if isinstance(backbone, PeftModel):
        backbone.save_pretrained(str(folder / ADAPTER))
    else:
        base_decoder(backbone).save_pretrained(str(folder / BACKBONE))
    save_file(heads_state(model), str(folder / HEADS))
    write_atomic(folder / METADATA, dump_line(metadata) + "\n")


def read_metadata(folder: Path, *, strategies: tuple[str, ...] | None = None) -> FlowMetadata:
    """Return a checkpoint's metadata.

    Args:
        folder: The checkpoint.
        strategies: The taxonomy it is wanted for, in order; None to take its own.

    Raises:
        CheckpointError: If there is no whole checkpoint, or it is of another taxonomy or text form.
    """
    source = folder / METADATA
    if not source.is_file():
        raise CheckpointError(f"{folder} holds no {METADATA}", expected="a checkpoint written by train-flow")
    metadata = parse_line(FlowMetadata, source.read_text(encoding="utf-8"), path=str(source))
    if metadata.flow_text != FLOW_TEXT:
        raise CheckpointError(f"text form {metadata.flow_text} in {folder}", expected=FLOW_TEXT)
    if strategies is not None and metadata.strategies != strategies:
        raise CheckpointError(
            f"{folder} was trained for taxonomy {metadata.taxonomy} ({', '.join(metadata.strategies)})",
            expected=", ".join(strategies),
        )
    return metadata


def load_adapter(backbone: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """Return a plain backbone with a checkpoint's adapter around it.

    Raises:
        CheckpointError: If the checkpoint holds none.
    """
    if not (folder / ADAPTER).is_dir():
        raise CheckpointError(f"{folder} holds no adapter", expected="a checkpoint trained with LoRA")
    return PeftModel.from_pretrained(backbone, str(folder / ADAPTER), is_trainable=trainable)


def load_heads(model: FlowModel, folder: Path) -> None:
    """Load the heads of a checkpoint into a model.

    Raises:
        CheckpointError: If they do not fit the model.
    """
    stored = load_file(str(folder / HEADS))
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
