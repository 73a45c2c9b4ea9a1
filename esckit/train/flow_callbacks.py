"""What happens between the optimiser steps of flow training: keep the best, write rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from esckit.train.flow import Metrics
from esckit.errors import TrainingError
from esckit.records import JsonlAppender
from esckit.train.diverged import finite_or_none

log = logging.getLogger(__name__)


LOW_ENTROPY = 0.3
"""Nats of π below which training warns: eight equal strategies have 2.08, two have 0.69."""


class Keep(TrainerCallback):
    """Hands the model over after every evaluation that is better than all before; equals keep the earlier.

    Args:
        key: Name of the deciding value; None hands it over after every evaluation.
        greater_is_better: Its direction.
        keep: Called on every process with step and values.
    """

    def __init__(self, key: str | None, *, greater_is_better: bool, keep: Callable[[int, Metrics], None]) -> None:
        self._key, self._sign, self._keep = key, 1.0 if greater_is_better else -1.0, keep

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Metrics, **_: Any
    ) -> None:
        """Compare and keep."""
        value = metrics[self._key] if self._key is not None else float(state.global_step)
        if not math.isfinite(value):
            raise TrainingError(
                f"{self._key} is {value} after update {state.global_step}", hint="A lower optim.lr may help"
            )
        sign = self._sign if self._key is not None else 1.0
        if state.best_metric is None or sign * value > sign * state.best_metric:
            # In the Trainer's own state, so that a resumed training knows it.
            state.best_metric, state.best_global_step = value, state.global_step
            self._keep(state.global_step, metrics)


class Rows(TrainerCallback):
    """Writes what is logged to ``metrics.jsonl``; only in the process that writes.

    Args:
        metrics: The open file.
        epoch_ends: Number of updates at the end of each epoch.
        tokens: Token counts per epoch, written with its last update.
    """

    def __init__(self, metrics: JsonlAppender, epoch_ends: Sequence[int], tokens: Mapping[str, int]) -> None:
        self._metrics, self._ends, self._tokens = metrics, epoch_ends, tokens
        self._warned = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Metrics, **_: Any) -> None:
        """Write a row."""
        values = {name: value for name, value in logs.items() if "/" in name}
        if not values:
            return
        epoch = 1 + sum(end < state.global_step for end in self._ends)
        if "train/loss" in values and state.global_step in self._ends:
            values |= {f"tokens/{name}": count for name, count in self._tokens.items()}
        self._metrics.append({"update": state.global_step, "epoch": epoch, **finite_or_none(values)})
        entropy = values.get("train/policy_entropy", math.inf)
        if entropy < LOW_ENTROPY and not self._warned:
            self._warned = True
            log.warning(
                "the policy's entropy is %.2f nats at update %d: it is close to always choosing the same",
                entropy,
                state.global_step,
            )
