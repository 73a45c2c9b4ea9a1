"""What is left of a training run whose numbers are not finite any more: ``diverged.json`` and one clear error.

From plain settings to the arguments of the Hugging Face ``Trainer``; everything that matters is passed explicitly.

Shared by the training commands that use the ``Trainer`` by composition: only their losses and batches are their own.
Nothing heavy is imported before the arguments are made, so that a dry run can count steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from esckit.documents import parse_json
from esckit.errors import ConfigError, DataError, MissingExtraError, NotFiniteError, TrainingError
from esckit.records import write_json

if TYPE_CHECKING:
    from transformers import TrainingArguments


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


Schedule = Literal["linear", "cosine", "constant"]

Precision = Literal["auto", "float32", "bfloat16"]


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
    schedule: Schedule = "linear"
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


def plan_steps(settings: OptimSettings, *, n_items: int, n_processes: int) -> StepPlan:
    """Return the steps over a number of items.

    Raises:
        ConfigError: If the processes cannot share a step evenly, so that the effective batch would change.
    """
    batch = settings.batch_size * settings.accumulate
    micro_batch, accumulate = share_batch(
        batch, at_most=settings.batch_size, n_processes=n_processes, what="examples (optim.batch_size · accumulate)"
    )
    per_epoch = math.ceil(n_items / batch)
    steps = per_epoch * settings.epochs
    return StepPlan(micro_batch, accumulate, per_epoch, steps, math.ceil(settings.warmup_share * steps))


def share_batch(total: int, *, at_most: int, n_processes: int, what: str) -> tuple[int, int]:
    """Return how one optimiser step is shared: items of a forward pass, and forward passes of a process.

    The items of a step are the same whatever the number of processes.

    Args:
        total: Items of a step, over all processes together.
        at_most: Items that one process can take in a forward pass.
        n_processes: Processes that share the step.
        what: What the items are and which fields set their number, for the message.

    Raises:
        ConfigError: If the processes cannot share a step evenly; names the numbers that can.
    """
    if total % n_processes:
        able = [n for n in range(1, total + 1) if total % n == 0]
        raise ConfigError(
            f"{total} {what} in a step over {n_processes} processes",
            expected=f"a number of processes that divides them: {', '.join(map(str, able))}",
            hint="Start fewer processes, or change the size of a step",
        )
    own = total // n_processes
    micro_batch = max(n for n in range(1, min(at_most, own) + 1) if own % n == 0)
    return micro_batch, own // micro_batch


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
    import torch
    from transformers import TrainingArguments

    from esckit.training.sharding import one_device

    check_trackers(settings.trackers)
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        seed=_seed32(settings.seed),
        data_seed=_seed32(settings.seed),
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


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that transformers does not know, or that are not installed.

    Raises:
        ConfigError: If there is one; for those that are extras of esckit it names the command that installs them.
    """
    if not names:
        return
    from transformers.integrations import get_available_reporting_integrations

    for name in ("tensorboard", "wandb"):
        if name in names and util.find_spec(name) is None:
            raise MissingExtraError(f"trackers: {name}", name)
    installed = get_available_reporting_integrations()
    if missing := [name for name in names if name not in installed]:
        raise ConfigError(
            f"trackers: {', '.join(missing)}",
            expected=f"trackers that transformers knows and that are installed (here {', '.join(installed) or 'none'})",
        )


def last_state(folder: Path) -> Path | None:
    """Return the newest whole state to resume from, None if there is none."""
    # The Trainer writes this file last, and a crash may cut it.
    found = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if _is_json(path)]
    return max(found, key=step_of, default=None)


def step_of(state: Path | None) -> int:
    """Return the step that training goes on from, 0 without a state."""
    return int(state.name.rpartition("-")[2]) if state else 0


def _is_json(path: Path) -> bool:
    try:
        parse_json(path.read_bytes(), path)
    except DataError:
        return False
    return True


def _seed32(seed: int) -> int:
    """Return a seed that NumPy takes too."""
    return seed % 2**32
