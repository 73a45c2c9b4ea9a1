"""The settings of RL training as plain values, and the steps that they come to. Loads nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from esckit.errors import ConfigError, DataError
from esckit.train.optim import share_batch


@dataclass(frozen=True, slots=True)
class PolicyOptim:
    """How a policy is trained: AdamW (0.9, 0.999) with a warm-up.

    Attributes:
        seed: Of adapter, data order and sampling.
        max_steps: Stop after so many steps; None makes all epochs.
        warmup_share: Part of all steps during which the learning rate rises, in [0, 1).
        precision: ``auto`` is bfloat16 on a GPU and float32 on a processor.
        save_every: Steps between two states to resume from; rounded up to a multiple of GRPO's ``iterations``, since no
            state holds the outputs that further updates would use.
        trackers: Integrations of transformers, such as ``tensorboard``.
    """

    seed: int
    lr: float
    epochs: int
    max_steps: int | None = None
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_share: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = True
    save_every: int = 100
    trackers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """How vLLM generates; see TRL's ``vllm_*`` settings of the same names."""

    mode: Literal["colocate", "server"] = "colocate"
    server_base_url: str = "http://127.0.0.1:8000"
    gpu_memory_utilization: float = 0.3
    tensor_parallel_size: int = 1
    sleep: bool = False


@dataclass(frozen=True, slots=True)
class GrpoSettings:
    """What GRPO needs beside the optimiser.

    Attributes:
        n_generations: Outputs of one context, G.
        prompts_per_step: Contexts of one step, over all processes together.
        micro_batch: Outputs that one process takes in a forward pass at most.
        weights: Of R_fut and R_fmt.
        vllm: None generates with transformers.
    """

    n_generations: int
    prompts_per_step: int
    micro_batch: int
    beta: float
    epsilon: float
    iterations: int
    loss_type: Literal["grpo", "dr_grpo"]
    temperature: float
    top_k: int
    top_p: float
    max_prompt_tokens: int
    max_completion_tokens: int
    weights: tuple[float, float]
    vllm: VllmSettings | None = None


@dataclass(frozen=True, slots=True)
class GrpoPlan:
    """How many steps there will be.

    Attributes:
        micro_batch: Outputs of one forward pass of one process.
        accumulate: Forward passes to a step of one process.
        steps_per_epoch: Steps of one pass over the rows; the rest that fills no step is left out.
        steps: Optimiser steps in all.
        epochs: Passes laid out, enough for all steps.
    """

    micro_batch: int
    accumulate: int
    steps_per_epoch: int
    steps: int
    epochs: int


def plan_grpo(settings: GrpoSettings, optim: PolicyOptim, *, n_rows: int, n_processes: int) -> GrpoPlan:
    """Return the steps over a number of rows.

    Raises:
        ConfigError: If the outputs of a step cannot be shared evenly, or the last ones are not used to the end.
        DataError: If there are fewer rows than one step takes.
    """
    if optim.max_steps is not None and optim.max_steps % settings.iterations:
        raise ConfigError(
            f"optim.max_steps {optim.max_steps} with {settings.iterations} updates for each batch of outputs",
            expected="a multiple of grpo.iterations",
        )
    micro_batch, accumulate = share_batch(
        settings.prompts_per_step * settings.n_generations,
        at_most=settings.micro_batch,
        n_processes=n_processes,
        what="outputs (grpo.prompts_per_step · n_generations)",
    )
    per_epoch = n_rows // settings.prompts_per_step
    if not per_epoch:
        raise DataError(
            f"{n_rows} contexts to train on",
            expected=f"at least {settings.prompts_per_step}, those of one step (grpo.prompts_per_step)",
        )
    updates = per_epoch * settings.iterations
    steps = updates * optim.epochs if optim.max_steps is None else optim.max_steps
    return GrpoPlan(micro_batch, accumulate, updates, steps, math.ceil(steps / updates))


@dataclass(frozen=True, slots=True)
class DpoSettings:
    """What DPO needs beside the optimiser.

    Attributes:
        batch_size: Pairs of one step, over all processes together.
        micro_batch: Pairs that one process takes in a forward pass at most.
    """

    beta: float
    batch_size: int
    micro_batch: int
    max_prompt_tokens: int
    max_completion_tokens: int


@dataclass(frozen=True, slots=True)
class DpoPlan:
    """How many steps there will be; see :class:`esckit.train.grpo.GrpoPlan`."""

    micro_batch: int
    accumulate: int
    steps_per_epoch: int
    steps: int
    epochs: int
    batch: int


def plan_dpo(settings: DpoSettings, optim: PolicyOptim, *, n_pairs: int, n_processes: int) -> DpoPlan:
    """Return the steps over a number of pairs; with fewer pairs than a batch, a step takes what there is.

    Raises:
        ConfigError: If the pairs of a step cannot be shared evenly.
        DataError: If there are fewer pairs than processes.
    """
    what = "pairs (dpo.batch_size)"
    share_batch(settings.batch_size, at_most=settings.micro_batch, n_processes=n_processes, what=what)
    batch = min(settings.batch_size, n_pairs - n_pairs % n_processes)
    if not batch:
        raise DataError(
            f"{n_pairs} pairs to train on",
            expected=f"at least {n_processes}, one for each process",
            hint="Simulate more contexts or candidates, or see dpo.require_format and dpo.max_prompt_tokens",
        )
    micro_batch, accumulate = share_batch(batch, at_most=settings.micro_batch, n_processes=n_processes, what=what)
    per_epoch = n_pairs // batch
    steps = per_epoch * optim.epochs if optim.max_steps is None else optim.max_steps
    return DpoPlan(micro_batch, accumulate, per_epoch, steps, math.ceil(steps / per_epoch), batch)
