"""A run that trains: its folder, its processes and their shares of a step, the state to resume from, and its end.

accelerate and torchrun say in the environment which of several processes this is. Imports nothing heavy.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import util
from math import ceil
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar, cast

from esckit.config.sections import Recipe
from esckit.config.training import Attention, FrozenWeights
from esckit.documents import parse_json, read_json_object
from esckit.errors import ConfigError, DataError, EsckitError, MissingExtraError, StorageError
from esckit.ledger import derive_seed
from esckit.models.checkpoint import FOLDER
from esckit.play.runner import SUMMARY, NoProgress, RunResult
from esckit.protocols import Progress
from esckit.runs import RunFolder

T = TypeVar("T")


Sharding = Literal["none", "zero2", "zero3", "fsdp"]
"""What processes divide: nothing, gradients and optimiser states (``zero2``), or weights too (``zero3``, ``fsdp``)."""


@dataclass(frozen=True, slots=True)
class Process:
    """One of the processes of a run.

    Attributes:
        rank: 0 in the main process, which alone writes.
        count: Number of processes.
        sharding: What they divide among themselves.
    """

    rank: int = 0
    count: int = 1
    sharding: Sharding = "none"

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def planned(self, count: int | None, sharding: Sharding | None) -> Process:
        """Return a process of a run that is planned; None stands for what this one says."""
        return Process(self.rank, count or self.count, sharding or self.sharding)


def this_process() -> Process:
    """Return which process this is; the only one where no launcher says otherwise."""
    known = os.environ.get
    sharding = sharding_of(
        fsdp=known("ACCELERATE_USE_FSDP") == "true",
        zero_stage=known("ACCELERATE_DEEPSPEED_ZERO_STAGE") if known("ACCELERATE_USE_DEEPSPEED") == "true" else None,
        deepspeed_file=known("ACCELERATE_DEEPSPEED_CONFIG_FILE"),
    )
    return Process(int(known("RANK", "0")), int(known("WORLD_SIZE", "1")), sharding)


def sharding_of(*, fsdp: bool, zero_stage: object, deepspeed_file: str | None) -> Sharding:
    """Return what processes divide, from what the launcher's settings or environment say.

    Args:
        fsdp: Whether FSDP is used.
        zero_stage: The stage of DeepSpeed's ZeRO; None without one.
        deepspeed_file: DeepSpeed's own file, which then tells the stage.
    """
    if fsdp:
        return "fsdp"
    if deepspeed_file not in (None, "none"):
        section = read_json_object(Path(str(deepspeed_file))).get("zero_optimization")
        zero_stage = section.get("stage") if isinstance(section, dict) else None
    stages: dict[str, Sharding] = {"2": "zero2", "3": "zero3"}
    return stages.get(str(zero_stage), "none")


@contextmanager
def ending_group() -> Iterator[None]:
    """End the process group that a training opened, however it ends.

    A group that is left open aborts the process when Python ends, so that the launcher reports a failure.
    """
    try:
        yield
    finally:
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def gathered(values: Sequence[T]) -> list[list[T]]:
    """Return the values of every process, by rank; they must be picklable. Called in all processes."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        return [list(values)]
    shares: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(shares, list(values))
    return shares


def together(compute: Callable[[], T]) -> T:
    """Compute something, and fail in all processes if one of them fails: one that is left alone would wait for ever.

    Raises:
        EsckitError: This process's own, else the first one by rank.
    """
    result, failure = None, None
    try:
        result = compute()
    except EsckitError as error:
        failure = error
    failures = [found for share in gathered([failure]) for found in share if found is not None]
    if failures:
        raise failure or failures[0]
    return cast(T, result)


STATES = "states"
"""The folder of the states that a training resumes from, inside its run folder."""

STATE_FILE = "trainer_state.json"
"""Where a state holds the Trainer's own: steps, and what was best so far. The Trainer writes it last."""


def last_state(folder: Path) -> Path | None:
    """Return the newest whole state to resume from, None if there is none."""

    def is_whole(path: Path) -> bool:
        # The Trainer writes this file last, and a crash may cut it.
        try:
            parse_json(path.read_bytes(), path)
        except DataError:
            return False
        return True

    found = [path.parent for path in folder.glob(f"checkpoint-*/{STATE_FILE}") if is_whole(path)]
    return max(found, key=lambda state: int(state.name.rpartition("-")[2]), default=None)


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
        """Step that training resumes from, 0 without a state."""
        return int(self.state.name.rpartition("-")[2]) if self.state else 0

    def advance(self) -> None:
        """Count a step.

        The Trainer would make a new folder for its states, and hours later there would be nothing to write results to.

        Raises:
            StorageError: If the folder was moved, replaced or deleted.
        """
        if self.folder is not None:
            self.folder.require_present()
        self.progress.advance()

    def finished(self, trackers: Sequence[str]) -> RunResult | None:
        """Return the result of a training that is over, None while there is none.

        Its states are deleted, as far as a kill between the summary and their deletion has left any.

        Args:
            trackers: As for :meth:`forget_states`.

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
        self.forget_states(trackers)
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


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The optimiser steps of a training.

    Attributes:
        batch: Contexts (GRPO), pairs (DPO) or examples (SFT) of one step, over all processes together.
        micro_batch: Outputs, pairs or examples of one forward pass of one process.
        accumulate: Forward passes of one process in one step.
        n_batches: Batches in all; with GRPO each one is used in ``grpo.iterations`` steps.
        steps_per_epoch: Steps of one pass over the rows; the rest that fills no batch is left out.
        steps: Steps in all.
    """

    batch: int
    micro_batch: int
    accumulate: int
    n_batches: int
    steps_per_epoch: int
    steps: int


def training_order(n_rows: int, *, n_batches: int, batch: int, seed: int) -> list[int]:
    """Return the row indices of all batches in the order of training, each epoch shuffled by a seed of its own.

    The order is laid out beforehand, since TRL's sampler starts anew when a run is resumed and would draw the first
    epoch's order again in the second. Each epoch leaves out the rest that fills no batch. There are no more rows than
    will be used: the Trainer would take one step more when it is resumed from the last state.

    Args:
        n_rows: Rows, at least one batch.
        n_batches: Batches of all epochs together.
        batch: Rows of one batch.
        seed: Of the run.
    """
    order: list[int] = []
    for epoch in range(ceil(n_batches / (n_rows // batch))):
        indices = list(range(n_rows))
        Random(derive_seed(seed, "rl-epoch", epoch)).shuffle(indices)
        order += indices[: n_rows - n_rows % batch]
    return order[: n_batches * batch]


def check_model(model: FrozenWeights, field: str, sharding: Sharding, *, attention: Attention = "auto") -> None:
    """Refuse what a trained model needs and is not installed, and what cannot be combined with its quantisation.

    Args:
        model: The section.
        field: Its place in the recipe, for messages.
        sharding: What the processes divide.
        attention: Implementation of its attention.

    Raises:
        ConfigError: If something is missing (with the command that installs it) or does not go together.
    """
    if attention == "flash_attention_2" and util.find_spec("flash_attn") is None:
        command = "pip install flash-attn --no-build-isolation"
        raise MissingExtraError(f"{field}.attention: flash_attention_2", "flash-attn", command=command)
    if model.quantisation is None:
        return
    if util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(f"{field}.quantisation: {model.quantisation}", "bitsandbytes")
    if sharding in ("zero3", "fsdp"):
        raise ConfigError(
            f"{field}.quantisation: {model.quantisation} with weights that processes divide ({sharding})",
            expected="launcher settings single, multi-gpu or zero2, which leave each process its own 4-bit copy",
            hint=f"Use --accelerate multi-gpu, or leave out {field}.quantisation",
        )


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
