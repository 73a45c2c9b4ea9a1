"""The harness of every training on the Hugging Face ``Trainer``; only losses, batches and networks are not here.

A training opens its run (:mod:`esckit.training.run`), prepares its process (:func:`set_up`), makes the Trainer's
arguments (:func:`trainer_arguments`) and trains (:func:`fit`). :class:`Diverged` ends a run whose numbers are no longer
finite. What is watched between the steps stands in :mod:`esckit.training.monitor`, what sharded models need in
:mod:`esckit.training.sharding`.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from esckit.config.training import FrozenWeights, Optim, Precision
from esckit.errors import NotFiniteError, TrainingError
from esckit.models.backbones import quiet_off_terminal
from esckit.models.checkpoint import FrozenAs
from esckit.records import write_json
from esckit.storage import writing
from esckit.training.memory import in_gb
from esckit.training.run import Process, TrainingRun, check_trackers
from esckit.training.sharding import one_device

log = logging.getLogger(__name__)

T = TypeVar("T")

A = TypeVar("A", bound=TrainingArguments)

N_LAST_ROWS = 20
"""Rows of logs that ``diverged.json`` keeps."""

_ADVICE = "A lower optim.lr may help"

_UNSAMPLEABLE = "probability tensor contains"
"""What torch says where outputs are drawn from logits that are not finite."""


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


def warn_of_memory(estimate: Mapping[str, int] | None, process: Process) -> None:
    """Warn if a training is estimated to need more memory than this process's GPU has."""
    if estimate is None or not process.is_main or not torch.cuda.is_available():
        return
    has = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    if estimate["total"] > has:
        log.warning(
            "this training is estimated to need %s on each device, and the GPU has %s; --dry-run shows the parts",
            in_gb(estimate["total"]),
            in_gb(has),
        )


def fit(trainer: Any, run: TrainingRun, diverged: Diverged) -> None:
    """Train, from the run's last state if it has one.

    Raises:
        TrainingError: If training diverged; states and checkpoints written before it stay.
        StorageError: If a state cannot be written; those before it stay.
    """
    trainer.remove_callback(PrinterCallback)
    with diverged.guarded(trainer), writing(run.out):
        trainer.train(resume_from_checkpoint=str(run.state) if run.state else None)


# ---------------------------------------------------------------- the Trainer's arguments


def uses_bf16(precision: Precision) -> bool:
    """Return whether forward passes run under bfloat16 autocast; ``auto`` asks whether the GPU computes in it."""
    able = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16" or (precision == "auto" and able)


def frozen_dtype(model: FrozenWeights, precision: Precision) -> torch.dtype:
    """Return the number type of weights that stay frozen."""
    if model.dtype == "auto":
        return torch.bfloat16 if uses_bf16(precision) else torch.float32
    return torch.bfloat16 if model.dtype == "bfloat16" else torch.float32


def frozen_as(model: FrozenWeights, precision: Precision) -> FrozenAs:
    """Return how weights stay frozen, as the metadata of a checkpoint says it."""
    if model.quantisation is not None:
        return model.quantisation
    return "bfloat16" if frozen_dtype(model, precision) == torch.bfloat16 else "float32"


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
    return DataLoader(items, batch_size=1, shuffle=False, collate_fn=lambda items: items[0])


# ---------------------------------------------------------------- divergence


class Diverged:
    """Keeps the last logs, and ends a run whose numbers are no longer finite.

    Args:
        run: Where ``diverged.json`` goes; one of an earlier attempt is removed.
        input_ids: Returns the ids of what the latest batches were made of.
        advice: What to do about a :class:`~esckit.errors.NotFiniteError`; None gives the same advice as otherwise.
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
            facts = {
                "schema": "esckit.diverged/1",
                "step": step,
                "what": {name: str(value) for name, value in found.items()},
                "input_ids": list(self._input_ids()),
                # Strict JSON knows no NaN, but its name.
                "rows": [{name: str(v) if _is_odd(v) else v for name, v in row.items()} for row in self._rows],
            }
            write_json(self._path, facts)
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
    return {name: logs[name] for name in names if name in logs and (logs[name] is None or _is_odd(logs[name]))}


def finite_or_none(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for a file: a number that is not finite is not a measurement, and the watching code stops."""

    def finite(value: Any) -> Any:
        return finite_or_none(value) if isinstance(value, Mapping) else None if _is_odd(value) else value

    return {name: finite(value) for name, value in row.items()}


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
