"""What is left of a training run whose numbers are not finite any more: ``diverged.json`` and one clear error."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from esckit.errors import NotFiniteError, TrainingError
from esckit.records import write_json

SCHEMA = "esckit.diverged/1"
N_LAST_ROWS = 20
_ADVICE = "A lower optim.lr may help"
_UNSAMPLEABLE = "probability tensor contains"
"""What torch says where outputs are drawn from logits that are not finite."""


class Diverged:
    """Keeps the last logs, and ends a run with them.

    Args:
        path: Where ``diverged.json`` goes; one of an earlier go is removed.
        input_ids: Returns the ids of what the latest batches were made of.
        writes: False in all processes but one.
        advice: What to do about a :class:`~esckit.errors.NotFiniteError`; None takes that for other divergences.
    """

    def __init__(
        self, path: Path, input_ids: Callable[[], Sequence[str]], *, writes: bool, advice: str | None = None
    ) -> None:
        self._advice = advice
        self._path = path
        self._input_ids = input_ids
        self._writes = writes
        self._rows: deque[Mapping[str, Any]] = deque(maxlen=N_LAST_ROWS)
        if writes:
            path.unlink(missing_ok=True)

    def note(self, step: int, logs: Mapping[str, Any]) -> None:
        """Keep one row of logs."""
        self._rows.append({"step": step, **logs})

    def stop(self, step: int, found: Mapping[str, Any], *, advice: str | None = None) -> NoReturn:
        """Write down what happened and end the training.

        Args:
            step: Optimiser steps that were taken.
            found: What is not finite, by name.
            advice: What to do about it.

        Raises:
            TrainingError: Always.
        """
        if self._writes:
            rows = [{name: _as_json(value) for name, value in row.items()} for row in self._rows]
            what = {name: str(value) for name, value in found.items()}
            ids = list(self._input_ids())
            write_json(self._path, {"schema": SCHEMA, "step": step, "what": what, "input_ids": ids, "rows": rows})
        told = ", ".join(f"{name} is {value}" for name, value in found.items())
        raise TrainingError(
            f"training diverged at step {step}: {told}",
            expected="finite numbers",
            hint=f"{self._path.name} holds the last logs, and what was kept before stays. {advice or _ADVICE}",
        )

    @contextmanager
    def guarded(self, trainer: Any) -> Iterator[None]:
        """Take what the trainer's logs cannot tell of for the divergence that it is.

        Raises:
            TrainingError: If a model or a reward gives a number that is not finite, or no output can be drawn.
        """
        try:
            yield
        except NotFiniteError as error:
            self.stop(trainer.state.global_step, {error.name: error.value}, advice=self._advice)
        except RuntimeError as error:
            if _UNSAMPLEABLE not in str(error):
                raise
            self.stop(trainer.state.global_step, {"a probability of the policy": "not finite"})


def not_finite(logs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return those of the named numbers that are in the logs and not finite; None, a mean of nothing, is not either."""
    return {name: logs[name] for name in names if name in logs and not _is_finite(logs[name])}


def finite_or_none(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of logs for a file: a number that is not finite is no measurement, and whoever watches it stops."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _as_json(value: Any) -> Any:
    """Return a number that strict JSON knows, or its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
