"""What must be known of a trained flow model; reading it loads nothing heavy. Layout: ``flow_checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from esckit.errors import CheckpointError
from esckit.models import checkpoints
from esckit.models.checkpoints import FOLDER as FOLDER
from esckit.models.flow_text import FLOW_TEXT
from esckit.records import digest, file_sha256
from esckit.types import Record

METADATA = "flow.json"
HEADS = "heads.safetensors"


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
        dialogue_ids: Dialogues trained or selected on, those inherited from an earlier checkpoint included.
        dev_ids: Those of them that only selected.
        step: Optimiser steps taken.
        metrics: What was measured on valid at this step.
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
    dialogue_ids: tuple[str, ...] = ()
    dev_ids: tuple[str, ...] = ()
    step: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)


def checkpoint_folder(run: Path) -> Path:
    """Return where the checkpoint of a run folder lies; a checkpoint folder is its own."""
    return checkpoints.checkpoint_folder(run, METADATA)


def read_metadata(folder: Path, *, strategies: tuple[str, ...] | None = None) -> FlowMetadata:
    """Return a checkpoint's metadata.

    Args:
        folder: The checkpoint, or the run folder that holds it.
        strategies: The taxonomy it is wanted for, in order; None to take its own.

    Raises:
        CheckpointError: If there is no whole checkpoint, or it is of another taxonomy or text form.
    """
    metadata = checkpoints.read_metadata(FlowMetadata, folder, METADATA, what="flow model", command="train-flow")
    if metadata.flow_text != FLOW_TEXT:
        raise CheckpointError(f"text form {metadata.flow_text} in {folder}", expected=FLOW_TEXT)
    if strategies is not None and metadata.strategies != strategies:
        raise CheckpointError(
            f"{folder} was trained for taxonomy {metadata.taxonomy} ({', '.join(metadata.strategies)})",
            expected=", ".join(strategies),
        )
    return metadata


def policy_id(run: Path) -> str:
    """Return ``flow/<digest>`` of a checkpoint, for provenance.

    Raises:
        CheckpointError: If the run holds none.
    """
    read_metadata(run)
    folder = checkpoint_folder(run)
    return f"flow/{digest([file_sha256(folder / name) for name in (METADATA, HEADS)])}"
