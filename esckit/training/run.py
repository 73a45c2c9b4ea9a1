"""A run that trains: its folder, the state that it resumes from, and its end. Imports nothing heavy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esckit.config.sections import Recipe
from esckit.documents import parse_json, read_json_object
from esckit.errors import DataError, StorageError
from esckit.models.checkpoint import FOLDER
from esckit.play.runner import SUMMARY, NoProgress, RunResult
from esckit.processes import Process, ending_group, this_process
from esckit.protocols import Progress
from esckit.runs import RunFolder

STATES = "states"
"""The folder of the states that a training resumes from, inside its run folder."""


def last_state(folder: Path) -> Path | None:
    """Return the newest whole state to resume from, None if there is none."""

    def is_whole(path: Path) -> bool:
        # The Trainer writes this file last, and a crash may cut it.
        try:
            parse_json(path.read_bytes(), path)
        except DataError:
            return False
        return True

    found = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if is_whole(path)]
    return max(found, key=step_of, default=None)


def step_of(state: Path | None) -> int:
    """Return the step that training resumes from, 0 without a state."""
    return int(state.name.rpartition("-")[2]) if state else 0


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A run folder in which this process trains, alone or with others.

    Attributes:
        out: The run folder.
        process: This process; only the main one writes.
        folder: The open run folder, None in processes that do not write.
        progress: Shows how far the training is.
        state: The state that training resumes from, None for a fresh start.
    """

    out: Path
    process: Process = field(default_factory=Process)
    folder: RunFolder | None = None
    progress: Progress = field(default_factory=NoProgress)
    state: Path | None = None

    @property
    def states(self) -> Path:
        """Folder of the states to resume from."""
        return self.out / STATES

    @property
    def resumed_step(self) -> int:
        """Step that training resumes from."""
        return step_of(self.state)

    def advance(self) -> None:
        """Count a step.

        The Trainer would make a new folder for its states, and hours later there would be nothing to write results to.

        Raises:
            StorageError: If the folder was moved, replaced or deleted.
        """
        if self.folder is not None:
            self.folder.require_present()
        self.progress.advance()

    def finished(self) -> RunResult | None:
        """Return the result of a training that is over, None while there is none.

        Raises:
            StorageError: If what was trained is not there any more.
        """
        path = self.out / SUMMARY
        if not path.is_file():
            return None
        if not (self.out / FOLDER).is_dir():
            raise StorageError(
                f"{self.out} is finished, but its {FOLDER} is gone",
                hint=f"Bring it back, or delete {path} and run the same command to train again",
            )
        return RunResult(self.out, read_json_object(path))

    def forget_states(self, trackers: Sequence[str]) -> None:
        """Delete the states of a training that is over; files of trackers, which lie beside them, stay."""
        if self.process.is_main:
            for path in list(self.states.glob("checkpoint-*")) if trackers else [self.states]:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def training(
    recipe: Recipe, out: Path, *, inputs: Mapping[str, Any], progress: Progress | None = None
) -> Iterator[TrainingRun]:
    """Hold the folder of a run that trains; only the main process opens it, the others read.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        inputs: What else the run is known by beside its recipe.
        progress: Closed at the end.
    """
    process, shown = this_process(), progress or NoProgress()
    opened: AbstractContextManager[RunFolder | None] = nullcontext()
    if process.is_main:
        opened = RunFolder.open(
            out, command=recipe.command, recipe=recipe.resolved(), operational=recipe.OPERATIONAL, inputs=inputs
        )
    with ending_group(), opened as folder:
        if folder is not None and not (out / SUMMARY).is_file():
            folder.begin_attempt()
        try:
            yield TrainingRun(out, process, folder, shown, last_state(out / STATES))
        finally:
            shown.close()
