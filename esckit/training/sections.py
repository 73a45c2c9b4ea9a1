"""What the recipes of all trainings share: sections, and how one optimiser step is divided among processes.

A recipe's own subclass of a section states the defaults of its method. Components take the frozen section as it is.
Nothing here imports torch, so that a dry run stays light.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import util
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from esckit.config.sections import Section
from esckit.errors import ConfigError, MissingExtraError

Schedule = Literal["linear", "cosine", "constant"]

Precision = Literal["auto", "float32", "bfloat16"]
"""``auto`` is bfloat16 autocast on a GPU and float32 on a processor."""


class Lora(Section):
    """A LoRA adapter.

    Attributes:
        targets: Names of modules, ``all-linear`` for those of attention and MLP, or None for those that the backbone
            registry names.
    """

    rank: PositiveInt
    alpha: PositiveInt
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: tuple[str, ...] | Literal["all-linear"] | None = None


class Optim(Section):
    """The optimiser: AdamW (0.9, 0.999) with a warm-up.

    Attributes:
        lr: Highest learning rate.
        epochs: Passes over the training part.
        warmup_share: Share of all steps during which the learning rate rises.
    """

    lr: PositiveFloat
    epochs: PositiveInt
    schedule: Schedule = "linear"
    warmup_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0


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
