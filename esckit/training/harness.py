"""The harness of every training on the Hugging Face ``Trainer``, by composition: only losses and batches are not here.

A training prepares its process (:func:`set_up`), opens its run (:class:`TrainingRun`), makes the Trainer's arguments
(:func:`trainer_arguments`) and trains (:func:`fit`). :class:`Diverged` ends a run whose numbers are not finite any
more. What is watched between the steps stands in :mod:`esckit.training.monitor`, what sharded models need in
:mod:`esckit.training.sharding`.
"""

from __future__ import annotations

import math
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from esckit.documents import parse_json
from esckit.errors import DataError, NotFiniteError, TrainingError
from esckit.models.backbones import quiet_off_terminal
from esckit.play.runner import NoProgress
from esckit.play.session import STATES
from esckit.processes import Process
from esckit.protocols import Progress
from esckit.records import write_json
from esckit.training.sections import Optim, Precision, check_trackers
from esckit.training.sharding import one_device

T = TypeVar("T")

A = TypeVar("A", bound=TrainingArguments)

N_LAST_ROWS = 20
"""Rows of logs that ``diverged.json`` keeps."""

_ADVICE = "A lower optim.lr may help"

_UNSAMPLEABLE = "probability tensor contains"
"""What torch says where outputs are drawn from logits that are not finite."""


# ---------------------------------------------------------------- the run


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
    """Return the step that training goes on from, 0 without a state."""
    return int(state.name.rpartition("-")[2]) if state else 0


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A run folder in which this process trains, alone or with others.

    Attributes:
        out: The run folder.
        process: This process; only the main one writes.
        progress: Shows how far the training is.
        state: The state that training goes on from, None for a fresh start.
    """

    out: Path
    process: Process = field(default_factory=Process)
    progress: Progress = field(default_factory=NoProgress)
    state: Path | None = None

    @classmethod
    def open(cls, out: Path, process: Process, progress: Progress) -> TrainingRun:
        """Return the run, to go on from its newest whole state."""
        return cls(out, process, progress, last_state(out / STATES))

    @property
    def states(self) -> Path:
        """Folder of the states to resume from."""
        return self.out / STATES

    @property
    def resumed_step(self) -> int:
        """Step that training goes on from."""
        return step_of(self.state)

    def forget_states(self, trackers: Sequence[str]) -> None:
        """Delete the states of a training that is over; files of trackers, which lie beside them, stay."""
        if self.process.is_main:
            for path in list(self.states.glob("checkpoint-*")) if trackers else [self.states]:
                shutil.rmtree(path, ignore_errors=True)


def set_up(process: Process, *, seed: int, threads: int | None) -> None:
    """Quiet the libraries, choose this process's threads and GPU, and seed the generators."""
    transformers_logging.set_verbosity_error()
    quiet_off_terminal()
    if threads is not None:
        torch.set_num_threads(threads)
    if process.count > 1 and torch.cuda.is_available():
        # Before the Trainer chooses devices: other models of a process belong on the process's own GPU too.
        torch.cuda.set_device(process.rank % torch.cuda.device_count())
    set_seed(seed % 2**32)


def fit(trainer: Any, run: TrainingRun, diverged: Diverged) -> None:
    """Train, from the run's last state if it has one.

    Raises:
        TrainingError: If training diverged; states and checkpoints written before it stay.
    """
    trainer.remove_callback(PrinterCallback)
    with diverged.guarded(trainer):
        trainer.train(resume_from_checkpoint=str(run.state) if run.state else None)


# ---------------------------------------------------------------- the Trainer's arguments


def uses_bf16(precision: Precision) -> bool:
    """Return whether forward passes run under bfloat16 autocast."""
    return precision == "bfloat16" or (precision == "auto" and torch.cuda.is_available())


def trainer_arguments(
    kind: type[A],
    optim: Optim,
    *,
    run: TrainingRun,
    seed: int,
    n_steps: int,
    precision: Precision,
    trackers: Sequence[str],
    **own: Any,
) -> A:
    """Return the Trainer's arguments; every value that matters is passed, since defaults differ between releases.

    Args:
        kind: Their class, the Trainer's or one of TRL's.
        optim: The optimiser's section.
        run: Where states to resume from lie.
        seed: Of data order and dropout.
        n_steps: Optimiser steps in all.
        precision: In which number type forward passes run.
        trackers: Integrations of transformers, such as ``tensorboard``.
        **own: More of them, batch sizes above all; they take the place of those that all trainings share.
    """
    check_trackers(trackers)
    on_gpu = torch.cuda.is_available()
    shared: dict[str, Any] = {
        "output_dir": str(run.states),
        "seed": seed % 2**32,  # what NumPy takes
        "data_seed": seed % 2**32,
        "max_steps": n_steps,
        "learning_rate": optim.lr,
        "lr_scheduler_type": "constant_with_warmup" if optim.schedule == "constant" else optim.schedule,
        "warmup_steps": math.ceil(optim.warmup_share * n_steps),
        "weight_decay": optim.weight_decay,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": optim.max_grad_norm,
        "optim": "adamw_torch",
        "use_cpu": not on_gpu,
        "bf16": uses_bf16(precision),
        "fp16": False,
        "eval_strategy": "no",
        "save_strategy": "no",
        "save_total_limit": 1,
        "logging_strategy": "steps",
        "logging_steps": 1,  # every step is looked at for divergence; what is written is thinned out later
        "logging_nan_inf_filter": False,
        "report_to": list(trackers) or "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": on_gpu,
        "dataloader_num_workers": 0,
        "ddp_find_unused_parameters": False,
    }
    arguments = kind(**(shared | own))
    one_device(arguments)
    return arguments


def in_order(items: Dataset[T]) -> DataLoader[T]:
    """Return a loader of items that are whole batches, laid out in the order of training for this process."""
    return DataLoader(items, batch_size=1, shuffle=False, collate_fn=_only)


def _only(items: list[T]) -> T:
    (item,) = items
    return item


# ---------------------------------------------------------------- divergence


class Diverged:
    """Keeps the last logs, and ends a run with them.

    Args:
        run: Where ``diverged.json`` goes; one of an earlier go is removed.
        input_ids: Returns the ids of what the latest batches were made of.
        advice: What to do about a :class:`~esckit.errors.NotFiniteError`; None takes that for other divergences.
    """

    def __init__(self, run: TrainingRun, input_ids: Callable[[], Sequence[str]], *, advice: str | None = None) -> None:
        self._path = run.out / "diverged.json"
        self._writes = run.process.is_main
        self._input_ids = input_ids
        self._advice = advice
        self._rows: deque[Mapping[str, Any]] = deque(maxlen=N_LAST_ROWS)
        if self._writes:
            self._path.unlink(missing_ok=True)

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
            write_json(
                self._path,
                {
                    "schema": "esckit.diverged/1",
                    "step": step,
                    "what": {name: str(value) for name, value in found.items()},
                    "input_ids": list(self._input_ids()),
                    "rows": rows,
                },
            )
        what = ", ".join(f"{name} is {value}" for name, value in found.items())
        raise TrainingError(
            f"training diverged at step {step}: {what}",
            expected="finite numbers",
            hint=f"{self._path.name} holds the last logs, and what was kept before stays. {advice or _ADVICE}",
        )

    @contextmanager
    def guarded(self, trainer: Any) -> Iterator[None]:
        """End the run in the same way for divergences that do not show in the trainer's logs.

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


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _as_json(value: Any) -> Any:
    """Return a number that strict JSON knows, or its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------- until flow and rl have adopted the above


_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


@dataclass(frozen=True, slots=True)
class OptimSettings:
    """How to train: AdamW (0.9, 0.999) with a warm-up.

    Attributes:
        seed: Of data order, heads and adapters.
        accumulate: Forward passes to a step, over all processes together.
        warmup_share: Part of all steps during which the learning rate rises, in [0, 1).
        precision: ``auto`` is bfloat16 autocast over float32 weights on a GPU, float32 on a processor.
        save_every: Steps between two states to resume from, besides those at the end of each epoch; None: only those.
        eval_batch_size: Inputs of one forward pass in evaluation.
        trackers: Integrations of transformers, such as ``tensorboard``.
    """

    seed: int
    lr: float
    epochs: int
    batch_size: int
    accumulate: int
    schedule: str = "linear"
    warmup_share: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: Precision = "auto"
    save_every: int | None = None
    eval_batch_size: int = 8
    trackers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How many steps there will be.

    Attributes:
        micro_batch: Items of one forward pass of one process.
        accumulate: Forward passes to a step of one process.
        steps_per_epoch: Optimiser steps of one pass over the data.
        steps: Of all of them.
        warmup: Steps of the warm-up.
    """

    micro_batch: int
    accumulate: int
    steps_per_epoch: int
    steps: int
    warmup: int


def training_arguments(
    settings: OptimSettings, plan: StepPlan, *, folder: Path, evaluate_first: bool
) -> TrainingArguments:
    """Return the Trainer's arguments; :class:`~esckit.training.callbacks.EpochEnds` says when to evaluate and save.

    Args:
        settings: The settings.
        plan: What they come to.
        folder: Where states to resume from lie.
        evaluate_first: Evaluate before the first step.
    """
    check_trackers(settings.trackers)
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        seed=settings.seed % 2**32,
        data_seed=settings.seed % 2**32,
        per_device_train_batch_size=plan.micro_batch,
        per_device_eval_batch_size=settings.eval_batch_size,
        gradient_accumulation_steps=plan.accumulate,
        max_steps=plan.steps,
        learning_rate=settings.lr,
        lr_scheduler_type=_SCHEDULES[settings.schedule],
        warmup_steps=plan.warmup,
        weight_decay=settings.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch",
        use_cpu=not on_gpu,
        bf16=settings.precision == "bfloat16" or (settings.precision == "auto" and on_gpu),
        fp16=False,
        eval_strategy="no",
        eval_on_start=evaluate_first,
        save_strategy="no",
        save_total_limit=1,
        logging_strategy="steps",
        logging_steps=1,  # every step is looked at for divergence; what is written is thinned out later
        logging_nan_inf_filter=False,
        report_to=list(settings.trackers) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=on_gpu,
        dataloader_num_workers=0,
        ddp_find_unused_parameters=False,
    )
    one_device(arguments)
    return arguments
