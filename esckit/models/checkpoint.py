"""What all checkpoints of this package have in common: where they lie, how their metadata is read, which kinds exist.

Not here: what a kind of checkpoint holds (``reward_checkpoint``, ``flow_checkpoint``, ``rl_policy``), and how weights
are loaded (:mod:`esckit.models.loading`).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

from esckit.documents import read_text
from esckit.errors import CheckpointError, DataError
from esckit.protocols import CheckpointKind, Part
from esckit.records import parse_line
from esckit.registry import load_attr
from esckit.runs import refuse_links
from esckit.types import Record

FOLDER = "checkpoint"
"""Where in a run folder the checkpoint lies."""


class Kind(NamedTuple):
    """A kind of checkpoint: what it is, for messages, the file of its metadata, and where its loader is found."""

    what: str
    file: str
    loader: str


KINDS = {
    "train-flow": Kind("flow model", "flow.json", "esckit.flow.writer:FlowKind"),
    "train-reward": Kind("reward model", "reward.json", "esckit.reward.models:RewardKind"),
    "train-rl": Kind("policy", "policy.json", "esckit.rl.policy:PolicyKind"),
}
"""The kinds of checkpoints, by the command that writes them; the metadata file in a run folder tells the kind."""

_USED_AS: dict[Part, str] = {
    "chat": "a chat model",
    "strategist": "a strategist",
    "writer": "a writer of replies",
    "scorer": "a reward model",
}

R = TypeVar("R", bound=Record)


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
        if (checkpoint_folder(run, known.file) / known.file).is_file():
            kind: CheckpointKind = load_attr(known.loader)()
            if part is not None:
                if part not in kind.parts:
                    raise CheckpointError(f"the {known.what} in {run} cannot be used as {_USED_AS[part]}")
                kind.check(run, part, strategies)
            return kind
    raise CheckpointError(f"{run} holds no checkpoint", expected=f"a run folder of {' or '.join(KINDS)}")


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
