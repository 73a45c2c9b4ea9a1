"""Checkpoints on disk: where they lie in a run folder, what kinds there are, and how their metadata is read.

Loads nothing heavy. Not here: how checkpoints are written (:mod:`esckit.training.checkpoint`), and how weights are
loaded (:mod:`esckit.models.loading` and the rooms of the trainings).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, TypeVar

from pydantic import Field

from esckit.documents import read_text
from esckit.errors import CheckpointError, DataError
from esckit.protocols import CheckpointKind, Part
from esckit.records import parse_line
from esckit.registry import load_attr
from esckit.runs import MANIFEST, read_manifest, refuse_links
from esckit.types import Record

FOLDER = "checkpoint"
"""Where in a run folder the checkpoint lies."""

ADAPTER, BACKBONE, TOKENIZER = "adapter", "backbone", "tokenizer"
"""Parts of a checkpoint: a LoRA adapter or a whole backbone (neither if only a head was trained), and the tokenizer."""

START = "start"
"""Part of a policy's checkpoint: the adapter or the whole backbone of the run that its training began with."""


class Kind(NamedTuple):
    """A kind of checkpoint: what it is, for messages, the file of its metadata, and where its loader is found."""

    what: str
    file: str
    loader: str


KINDS = {
    "train-flow": Kind("flow model", "flow.json", "esckit.flow.run:FlowKind"),
    "train-reward": Kind("reward model", "reward.json", "esckit.reward.run:RewardKind"),
    "train-sft": Kind("supporter of train-sft", "sft.json", "esckit.training.policy:sft_kind"),
    "train-rl": Kind("policy", "policy.json", "esckit.training.policy:policy_kind"),
}
"""The kinds of checkpoints, by the command that writes them; the metadata file in a run folder tells the kind."""

_USED_AS: dict[Part, str] = {
    "chat": "a chat model",
    "strategist": "a strategist",
    "writer": "a writer of replies",
    "scorer": "a reward model",
}


FrozenAs = Literal["float32", "bfloat16", "nf4"]


class CheckpointMetadata(Record):
    """What is known of every checkpoint; a subclass adds what belongs to its kind.

    Attributes:
        backbone: Name, folder or hub id of the backbone.
        frozen_as: How the weights that stayed frozen were held in training, in a number type or quantised; None if the
            whole backbone was trained, or by an earlier version. They are loaded as the user asks for.
        inputs: Digest per input file or folder.
        dialogue_ids: Dialogues trained or selected on, those inherited from inputs and earlier checkpoints included.
        dev_ids: Those of them that only selected.
        selected_by: How the checkpoint was selected.
        step: Optimiser steps taken.
        metrics: What was measured on dev (or valid) at this step.
    """

    COMMAND: ClassVar[str]
    """The command that writes this kind, a key of :data:`KINDS`."""

    backbone: str
    frozen_as: FrozenAs | None = None
    inputs: dict[str, str] = Field(default_factory=dict)
    dialogue_ids: tuple[str, ...] = ()
    dev_ids: tuple[str, ...] = ()
    selected_by: str
    step: int = 0
    metrics: dict[str, float | int | None] = Field(default_factory=dict)


M = TypeVar("M", bound=CheckpointMetadata)


def kind_of(run: Path, part: Part | None = None, *, strategies: tuple[str, ...] | None = None) -> CheckpointKind:
    """Return which kind of checkpoint a run folder (or a checkpoint folder) holds; loads nothing heavy.

    Args:
        run: The folder.
        part: As what it will be used; None asks only for the kind.
        strategies: The taxonomy it is wanted for, in order; None takes its own.

    Raises:
        CheckpointError: If there is none, or it cannot be used as this part.
    """
    for known in KINDS.values():
        if (checkpoint_folder(run) / known.file).is_file():
            kind: CheckpointKind = load_attr(known.loader)()
            if part is not None:
                if part not in kind.parts:
                    raise CheckpointError(f"the {known.what} in {run} cannot be used as {_USED_AS[part]}")
                kind.check(run, part, strategies)
            return kind
    raise _without_checkpoint(run, "checkpoint", KINDS)


def _without_checkpoint(run: Path, what: str, commands: Collection[str]) -> CheckpointError:
    """Return the error of a folder without a checkpoint; a run of the right kind may only have to be finished."""
    found, hint = f"{run} holds no {what}", None
    if (run / MANIFEST).is_file():
        manifest = read_manifest(run)
        command, status = manifest["command"], manifest.get("status")
        if command in commands and status != "complete":
            found, hint = f"{found} yet", f"Finish it: give its command, esckit {command} …, again"
        found += f": it is a run of {command} ({status})"
    return CheckpointError(found, expected=f"a run folder of {' or '.join(commands)}", hint=hint)


def checkpoint_folder(run: Path) -> Path:
    """Return where the checkpoint of a run folder lies; a checkpoint folder is its own."""
    return run if any((run / kind.file).is_file() for kind in KINDS.values()) else run / FOLDER


def read_metadata(metadata: type[M], run: Path) -> M:
    """Return the metadata of the checkpoint in a run folder (or of a checkpoint folder).

    Args:
        metadata: Its class.
        run: The folder.

    Raises:
        CheckpointError: If there is no checkpoint of this kind, or its metadata cannot be read.
    """
    kind, folder = KINDS[metadata.COMMAND], checkpoint_folder(run)
    source = folder / kind.file
    if not source.is_file():
        raise _without_checkpoint(run, kind.what, [metadata.COMMAND])
    try:
        refuse_links(folder.rglob("*"))
        return parse_line(metadata, read_text(source), path=str(source))
    except DataError as error:
        raise CheckpointError(f"{source} cannot be used: {error}") from error
