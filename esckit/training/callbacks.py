"""Callbacks that flow and rl use until they adopt :mod:`esckit.training.monitor`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from esckit.training.harness import Diverged, not_finite

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
