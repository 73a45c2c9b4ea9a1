"""One rank of a sharded run: tells accelerate what the device is, and plays an esckit command."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any


def play(
    words: Sequence[str], *, pretend: bool, bf16: bool, recorded: bool, stop_after: int | None, poison_after: int | None
) -> None:
    """Run esckit, which leaves with SystemExit."""
    if pretend:
        _pretend_multi_gpu()
    if bf16:
        _pretend_bf16()
    if recorded:
        _record_outputs()
    if stop_after is not None:
        _interrupt_after(stop_after)
    if poison_after is not None:
        _poison_after(poison_after)
    from esckit.__main__ import program

    sys.argv = ["esckit", *words]
    program()


def _pretend_multi_gpu() -> None:
    """Make accelerate take gloo CPU processes for a multi-process device, and let no trainer fall back to one CPU."""
    import os

    import accelerate.state as state
    import deepspeed.comm.torch
    import transformers
    import trl

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    state.PartialState._prepare_backend = lambda self, cpu=False, sagemaker_dp=False, backend=None: (  # type: ignore[method-assign]
        "gloo",
        state.DistributedType.MULTI_GPU,
    )
    deepspeed.comm.torch.build_shm_op = lambda: None  # a kernel for processors, compiled at first use
    for cls in (transformers.TrainingArguments, trl.GRPOConfig, trl.DPOConfig, trl.SFTConfig):
        _without_cpu(cls)


def _without_cpu(cls: Any) -> None:
    inner = cls.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs["use_cpu"] = False
        inner(self, *args, **kwargs)

    cls.__init__ = init


def _pretend_bf16() -> None:
    import transformers.training_args as arguments

    arguments.is_torch_bf16_gpu_available = lambda *args, **kwargs: True


def recorded_output(position: int, step: int, n_tokens: int) -> list[int]:
    """Return the ids of an output that depends on its place in the step's batch alone, end of turn included."""
    draw = random.Random(f"{step}:{position}")
    return [draw.randrange(40, 300) for _ in range(draw.randrange(3, n_tokens - 1))]


def _record_outputs() -> None:
    """Let GRPO learn from the same outputs, however many processes share them."""
    from trl import GRPOTrainer

    def generate(self: Any, prompt_ids: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> tuple[Any, None]:
        first = self.accelerator.process_index * len(prompt_ids)
        end = self.eos_token_ids[0] if hasattr(self, "eos_token_ids") else self._tokenizer.eos_token_id
        outputs = [
            [*recorded_output(first + index, self.state.global_step, self.max_completion_length), end]
            for index in range(len(prompt_ids))
        ]
        return outputs, None

    GRPOTrainer._generate_single_turn = generate


def _interrupt_after(n_steps: int) -> None:
    """Interrupt the training after so many optimiser steps, as Ctrl-C would."""
    from transformers.trainer_callback import CallbackHandler

    inner = CallbackHandler.on_step_begin

    def on_step_begin(self: Any, args: Any, state: Any, control: Any) -> Any:
        if state.global_step == n_steps:
            raise KeyboardInterrupt
        return inner(self, args, state, control)

    CallbackHandler.on_step_begin = on_step_begin


def _poison_after(n_steps: int) -> None:
    """Make the gradients of this process's flow model NaN from some step on."""
    from transformers.trainer_callback import CallbackHandler

    inner = CallbackHandler.on_step_begin

    def on_step_begin(self: Any, args: Any, state: Any, control: Any) -> Any:
        if state.global_step == n_steps:
            # Where gradients enter the backbone: FSDP2's parameters are not those that the backward pass sees.
            self.model.strategy_head.register_full_backward_hook(lambda module, into, out: (into[0] * float("nan"),))
        return inner(self, args, state, control)

    CallbackHandler.on_step_begin = on_step_begin


if __name__ == "__main__":
    # Under torch's own launcher, which sees how a process ends.
    play(sys.argv[1:], pretend=True, bf16=False, recorded=False, stop_after=None, poison_after=None)
