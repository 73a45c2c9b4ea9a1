"""The frame of a run: its folder, what the manifest says of it, and what happens when it stops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esckit.config.sections import Recipe, RoleOptions
from esckit.documents import read_json_object
from esckit.errors import StorageError
from esckit.models.checkpoint import FOLDER
from esckit.play.runner import NoProgress
from esckit.processes import Process, ending_group
from esckit.protocols import Progress
from esckit.roles.pool import ModelPool, checkpoint_ids
from esckit.runs import RunFolder

SUMMARY = "summary.json"

STATES = "states"
"""The folder of the states that an interrupted training goes on from."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where the results are, and what they look like; the summary is empty in processes that do not write."""

    out: Path
    summary: dict[str, Any]


@contextmanager
def playing(
    recipe: Recipe,
    out: Path,
    pool: ModelPool,
    *,
    bindings: Iterable[RoleOptions],
    inputs: Mapping[str, Any],
) -> Iterator[RunFolder]:
    """Hold the folder of a run that plays with models.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        pool: The run's models.
        bindings: Who plays; a run does not go on with another checkpoint under the same name.
        inputs: What else the run is known by beside its recipe.

    Raises:
        StorageError: If the folder is moved or deleted meanwhile.
    """
    checkpoints = checkpoint_ids(bindings)
    known = {**inputs, "checkpoints": checkpoints} if checkpoints else inputs
    with RunFolder.open(
        out, command=recipe.command, recipe=recipe.resolved(), operational=recipe.OPERATIONAL, inputs=known
    ) as folder:
        folder.update_manifest(determinism=pool.determinism(), **pool.facts())
        try:
            yield folder
        finally:
            folder.book(pool.spent())
            folder.update_manifest(**pool.facts())


@contextmanager
def training(recipe: Recipe, out: Path, process: Process, *, inputs: Mapping[str, Any]) -> Iterator[RunFolder | None]:
    """Hold the folder of a run that trains, in the main process; the others only read and get None."""
    with ending_group():
        if not process.is_main:
            yield None
            return
        with RunFolder.open(
            out, command=recipe.command, recipe=recipe.resolved(), operational=recipe.OPERATIONAL, inputs=inputs
        ) as folder:
            if not (out / SUMMARY).is_file():
                folder.begin_attempt()
            yield folder


class StepsInPlace:
    """Shows how far a training is, and ends it at the next step once its folder is gone.

    The Trainer would make a new folder for its states, and hours later there would be nothing to write results to.

    Args:
        folder: The run's, None in processes that do not write.
        progress: What shows it.
    """

    def __init__(self, folder: RunFolder | None, progress: Progress | None) -> None:
        self._folder, self._progress = folder, progress or NoProgress()

    def start(self, total: int, done: int = 0) -> None:
        """Begin."""
        self._progress.start(total, done)

    def advance(self, n: int = 1, **counts: int) -> None:
        """Count steps.

        Raises:
            StorageError: If the folder was moved, replaced or deleted.
        """
        if self._folder is not None:
            self._folder.require_present()
        self._progress.advance(n, **counts)

    def close(self) -> None:
        """End the display."""
        self._progress.close()


def finished(out: Path) -> RunResult | None:
    """Return the result of a training that is over, None while there is none.

    Raises:
        StorageError: If what was trained is not there any more.
    """
    path = out / SUMMARY
    if path.is_file() and not (out / FOLDER).is_dir():
        raise StorageError(
            f"{out} is finished, but its {FOLDER} is gone",
            hint=f"Bring it back, or delete {path} and run the same command to train again",
        )
    return RunResult(out, read_json_object(path)) if path.is_file() else None
