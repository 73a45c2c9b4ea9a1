"""What happens between the steps of a training: numbers are watched and written, states and the best model are kept.

All of it hangs on the callbacks of the Hugging Face ``Trainer``, whose logs of every step are the source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from esckit.documents import parse_json
from esckit.errors import DataError
from esckit.faultpoints import reached
from esckit.records import JsonlAppender, cut_unfinished_line, write_atomic
from esckit.training.harness import Diverged, finite_or_none, not_finite
from esckit.training.run import TrainingRun

METRICS = "metrics.jsonl"

Logs = Mapping[str, Any]


class Monitor(TrainerCallback):
    """Stops on numbers that are not finite, writes ``metrics.jsonl``, and shows how far the training is.

    Stands before all other callbacks, so that nothing is written of a step that diverged.

    Args:
        run: The run; rows after the step that it resumes from are removed first.
        diverged: Ends the run.
        watched: Returns which numbers of a step's logs must be finite.
        means: Returns the row of a window of steps, from their logs.
        epoch: Returns the epoch of a step.
        every: Steps between two rows.
        evaluated: Called after each evaluation of the Trainer in every process, with its metrics.
        step_key: Name of the step in a row.
    """

    def __init__(
        self,
        run: TrainingRun,
        diverged: Diverged,
        *,
        watched: Callable[[Logs], Sequence[str]],
        means: Callable[[Sequence[Logs]], Mapping[str, Any]],
        epoch: Callable[[int], float],
        every: int = 1,
        evaluated: Callable[[TrainerState, Logs], None] | None = None,
        step_key: str = "step",
    ) -> None:
        self._run, self._diverged = run, diverged
        self._watched, self._means, self._epoch, self._every = watched, means, epoch, every
        self._evaluated, self._step_key = evaluated, step_key
        self._window: list[Logs] = []
        if run.process.is_main:
            keep_rows(run.out / METRICS, run.resumed_step, key=step_key)

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Show where training begins."""
        self._run.progress.start(state.max_steps, state.global_step)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Show that a step is done."""
        self._run.advance()

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Logs | None = None, **_: Any) -> None:
        """Look at the logs; those of a step hold its loss.

        Raises:
            TrainingError: If a watched number is not finite.
        """
        logs = logs or {}
        self._diverged.note(state.global_step, logs)
        if found := not_finite(logs, self._watched(logs)):
            self._diverged.stop(state.global_step, found)
        if "loss" in logs or "train/loss" in logs:
            self._window.append(logs)
            # Before the state of a step is saved: a run that goes on from it never writes the rows up to it.
            if state.global_step % self._every == 0 or control.should_save:
                self._flush(state.global_step)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: Logs | None = None, **_: Any) -> None:
        """Write the steps that led to the evaluation, and hand its metrics over."""
        self._flush(state.global_step)
        if self._evaluated is not None:
            self._evaluated(state, metrics or {})

    def on_save(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Write what the window still holds, so that a resumed run writes the same rows."""
        reached("state")
        self._flush(state.global_step)

    def on_train_end(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Write what is left."""
        self._flush(state.global_step)

    def row(self, step: int, values: Logs) -> None:
        """Write a row of other values, such as those of an evaluation."""
        if self._run.process.is_main:
            with JsonlAppender(self._run.out / METRICS) as rows:
                rows.append({self._step_key: step, "epoch": self._epoch(step), **finite_or_none(values)})

    def _flush(self, step: int) -> None:
        if self._window:
            self.row(step, self._means(self._window))
            self._window.clear()


class EpochEnds(TrainerCallback):
    """Evaluates and saves at the end of every epoch, and does each every so many steps.

    Both are asked for at the same step, and the Trainer evaluates before it saves: a saved state never lacks the
    evaluation of its own step. The Trainer's own strategies would save first and evaluate when the epoch is over.

    Args:
        epoch_ends: Number of steps at the end of each epoch.
        every: Save after so many steps as well.
        evaluate_every: Evaluate after so many steps as well.
    """

    def __init__(self, epoch_ends: Sequence[int], every: int | None, *, evaluate_every: int | None = None) -> None:
        self._ends, self._every, self._evaluate_every = frozenset(epoch_ends), every, evaluate_every

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        """Ask for evaluation and saving."""
        if self.evaluates(state.global_step):
            control.should_evaluate = True
        if state.global_step in self._ends or (self._every is not None and state.global_step % self._every == 0):
            control.should_save = True
        return control

    def evaluates(self, step: int) -> bool:
        """Return whether a step above 0 is evaluated."""
        often = self._evaluate_every
        return step in self._ends or (often is not None and step % often == 0)


class EarlyStop(TrainerCallback):
    """Ends a training after some evaluations in a row none of which was the best so far.

    How many there were follows from the step of the best one, which the Trainer's state holds (:func:`is_best`), and
    from the steps that are evaluated. So a resumed training goes on counting, and all processes come to the same end.

    Args:
        ends: Tells which steps are evaluated.
        patience: How many evaluations; None never ends a training.
    """

    def __init__(self, ends: EpochEnds, patience: int | None) -> None:
        self._ends, self._patience = ends, patience

    def is_due(self, state: TrainerState) -> bool:
        """Return whether the training ends at the step of a state, which was evaluated."""
        since = range((state.best_global_step or 0) + 1, state.global_step + 1)
        return self._patience is not None and sum(map(self._ends.evaluates, since)) >= self._patience

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        """Ask for the end, and for a state of it, from which a run that is killed before its summary goes on."""
        if self.is_due(state):
            control.should_training_stop = control.should_save = True
        return control


def is_best(
    state: TrainerState, value: float | None, *, greater_is_better: bool | None, start_counts: bool = False
) -> bool:
    """Return whether an evaluation is the best so far, and remember it.

    It is remembered in the Trainer's own state, so that a resumed training knows it. Equals keep the earlier one, and
    an untrained model (step 0) or one without a value gives way to any later one.

    Args:
        state: The Trainer's; at most one evaluation of a step is asked about.
        value: What decides, None if it could not be measured.
        greater_is_better: Its direction; None takes the latest evaluation for the best.
        start_counts: What training started from was trained before, so step 0 may stay the best.
    """
    best = state.best_metric
    is_known = bool(state.best_global_step) or (start_counts and state.best_global_step is not None)
    is_measured = is_known and best is not None and greater_is_better is not None
    if is_measured and (value is None or not (value > best if greater_is_better else value < best)):
        return False
    state.best_metric, state.best_global_step = value, state.global_step
    return True


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the whole rows of ``metrics.jsonl``; a last line cut by a crash is left out.

    Raises:
        DataError: If a line is not a row.
    """
    return [_row(line, path) for line in _whole_lines(path)]


def keep_rows(path: Path, last_step: int, *, key: str = "step") -> None:
    """Drop the rows of a file that are beyond a step, all of them for step 0, and a last one that was cut."""
    if path.is_file():
        cut_unfinished_line(path)
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
