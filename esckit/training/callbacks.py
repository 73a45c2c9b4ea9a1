"""What is watched while the Hugging Face ``Trainer`` trains: callbacks, by composition."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from esckit.documents import parse_json
from esckit.errors import DataError
from esckit.records import JsonlAppender, write_atomic
from esckit.training.harness import Diverged, finite_or_none, not_finite

_WATCHED = ("loss", "grad_norm")


class DivergenceGuard(TrainerCallback):
    """Stops training as soon as a watched number is not finite; states and checkpoints written before it stay.

    Args:
        diverged: Ends the run.
        watched: Names of logged numbers.
    """

    def __init__(self, diverged: Diverged, *, watched: Sequence[str] = _WATCHED) -> None:
        self._diverged = diverged
        self._watched = tuple(watched)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at a row.

        Raises:
            TrainingError: If a watched number is not finite.
        """
        self._diverged.note(state.global_step, logs or {})
        if found := not_finite(logs or {}, self._watched):
            self._diverged.stop(state.global_step, found)


class MetricsLog(TrainerCallback):
    """Writes ``metrics.jsonl``: means of training numbers every so many steps, and every evaluation.

    Args:
        path: The file; rows beyond the step that training goes on from are cut off first.
        every: Steps between two rows.
        steps_per_epoch: Steps of one pass; to the Trainer all passes, laid out one after another, are a single epoch.
        resumed_step: Step that training goes on from, 0 for a fresh start.
        writes: False in all processes but one.
    """

    def __init__(self, path: Path, *, every: int, steps_per_epoch: int, resumed_step: int, writes: bool) -> None:
        self._path = path
        self._steps_per_epoch = steps_per_epoch
        self._every = every
        self._writes = writes
        self._window: list[Mapping[str, Any]] = []
        if writes:
            keep_rows(path, resumed_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take a row in, and write the window where it is full."""
        if logs is None or "loss" not in logs:
            return
        self._window.append(logs)
        if state.global_step % self._every == 0:
            self._flush(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write what the window holds, so that a resumed run writes the same rows."""
        self._flush(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is left."""
        self._flush(state.global_step)

    def evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write a row of dev metrics, behind what led to them."""
        self._flush(step)
        self._append({**self._place(step), "dev": finite_or_none(metrics)})

    def _place(self, step: int) -> dict[str, float]:
        return {"step": step, "epoch": round(step / self._steps_per_epoch, 4)}

    def _flush(self, step: int) -> None:
        if not self._window:
            return
        means = {
            name: math.fsum(float(row[name]) for row in self._window) / len(self._window)
            for name in _WATCHED
            if all(name in row for row in self._window)
        }
        self._append({**self._place(step), **means, "lr": self._window[-1]["learning_rate"]})
        self._window.clear()

    def _append(self, row: Mapping[str, Any]) -> None:
        if self._writes:
            with JsonlAppender(self._path) as rows:
                rows.append(row)


class StepProgress(TrainerCallback):
    """Tells how far training is.

    Args:
        start: Called with all steps and the ones done before.
        advance: Called after each step.
    """

    def __init__(self, start: Callable[[int, int], None], advance: Callable[[], None]) -> None:
        self._start = start
        self._advance = advance

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin."""
        self._start(state.max_steps, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count a step."""
        self._advance()


class EpochEnds(TrainerCallback):
    """Evaluates and saves at the end of every epoch, and saves every so many steps.

    Both are asked for at the same step, and the Trainer evaluates before it saves: a saved state never lacks the
    evaluation of its own step. The Trainer's own strategies would save first and evaluate when the epoch is over.

    Args:
        epoch_ends: Number of steps at the end of each epoch.
        every: Save after so many steps as well.
    """

    def __init__(self, epoch_ends: Sequence[int], every: int | None) -> None:
        self._ends, self._every = frozenset(epoch_ends), every

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Ask for evaluation and saving."""
        if state.global_step in self._ends:
            control.should_evaluate = control.should_save = True
        elif self._every is not None and state.global_step % self._every == 0:
            control.should_save = True
        return control


class OnEvaluation(TrainerCallback):
    """Calls a function after each evaluation, in every process, with the step."""

    def __init__(self, handle: Callable[[int], None]) -> None:
        self._handle = handle

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Call it."""
        self._handle(state.global_step)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the whole rows of ``metrics.jsonl``; a last line cut by a crash is left out."""
    return [_row(line, path) for line in _whole_lines(path)]


def keep_rows(path: Path, last_step: int, *, key: str = "step") -> None:
    """Drop the rows of a file that are beyond a step, all of them for step 0, and a last one that was cut."""
    if path.is_file():
        kept = [line for line in _whole_lines(path) if last_step and _row(line, path, key)[key] <= last_step]
        write_atomic(path, b"".join(kept))


def _row(line: bytes, path: Path, key: str | None = None) -> dict[str, Any]:
    row = parse_json(line, path)
    if not isinstance(row, dict) or (key is not None and not isinstance(row.get(key), int)):
        raise DataError("a line that no training wrote", path=str(path), expected=f"an object with {key or 'numbers'}")
    return row


def _whole_lines(path: Path) -> list[bytes]:
    # As bytes: a text may hold characters that also end a line, such as U+2028.
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if line.endswith(b"\n")]
