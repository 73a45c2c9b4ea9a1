"""What all checkpoints of this package have in common: where they lie in a run folder, and how their metadata is read.

Not here: what a kind of checkpoint holds (``reward_checkpoint``, ``flow_checkpoint``, ``rl_policy``), and how weights
are loaded (:mod:`esckit.models.loading`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from esckit.documents import read_text
from esckit.errors import CheckpointError, DataError
from esckit.records import parse_line
from esckit.runs import refuse_links
from esckit.types import Record

FOLDER = "checkpoint"
"""Where in a run folder the checkpoint lies."""


R = TypeVar("R", bound=Record)


def checkpoint_folder(run: Path, metadata: str) -> Path:
    """Return where the checkpoint of a run folder lies; a checkpoint folder is its own.

    Args:
        run: Either of them.
        metadata: Name of the metadata's file.
    """
    return run if (run / metadata).is_file() else run / FOLDER


def read_metadata(kind: type[R], run: Path, name: str, *, what: str, command: str) -> R:
    """Return the metadata of the checkpoint in a run folder (or of a checkpoint folder); loads nothing heavy.

    Args:
        kind: Its class.
        run: The folder.
        name: Name of the metadata's file.
        what: What the checkpoint is, for messages.
        command: Which command writes such checkpoints.

    Raises:
        CheckpointError: If there is none, or it cannot be read.
    """
    folder = checkpoint_folder(run, name)
    source = folder / name
    if not source.is_file():
        raise CheckpointError(f"{run} holds no {what}", expected=f"a run folder of {command}")
    try:
        refuse_links(folder.rglob("*"))
        return parse_line(kind, read_text(source), path=str(source))
    except DataError as error:
        raise CheckpointError(f"{source} cannot be used: {error}") from error
