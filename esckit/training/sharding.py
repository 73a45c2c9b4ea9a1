"""What every training needs when several processes share a model: whole tensors, the same stop, and one device each.

The Hugging Face ``Trainer`` may run a model under DeepSpeed ZeRO or FSDP2, which split tensors between processes. All
functions here are called in every process, in the same order, and behave alike in a run of one process.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments

from esckit.errors import ConfigError

log = logging.getLogger(__name__)


# ---------------------------------------------------------------- whole tensors


def gathered_state(trainer: Any, *, trained_only: bool) -> dict[str, Tensor]:
    """Return the trainer's tensors whole, by the names of the unwrapped model.

    Where an engine computes in bfloat16 and keeps float32 originals of trained weights, those originals are returned.

    Args:
        trainer: A Hugging Face trainer; its model may be sharded.
        trained_only: Leave out frozen parameters and buffers.

    Returns:
        Copies on the processor in the main process, one for all names of a tied tensor; nothing elsewhere.
    """
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    state: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if trained_only and not tensor.requires_grad:
            continue
        if id(tensor) not in copies:
            whole = whole_tensor(tensor).detach()
            copies[id(tensor)] = (
                whole.to("cpu", copy=True) if trainer.accelerator.is_main_process else whole.new_empty(0)
            )
        state[name] = copies[id(tensor)]
    return state if trainer.accelerator.is_main_process else {}


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor of which this process may hold a part only."""
    if hasattr(tensor, "ds_id") or hasattr(tensor, "_hp_mapping"):
        return _deepspeed_whole(tensor)
    if isinstance(tensor, DTensor):
        whole: Tensor = tensor.full_tensor()
        return whole
    return tensor


def _deepspeed_whole(tensor: Tensor) -> Tensor:
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    original = safe_get_full_fp32_param(tensor) if tensor.requires_grad else None
    if original is not None:
        return original.view(getattr(tensor, "ds_shape", tensor.shape))
    with deepspeed.zero.GatheredParameters([tensor]):
        return tensor.detach().clone()


def store_trained_only(module: nn.Module) -> None:
    """Let the state of a module hold only its trained tensors, and expect only these when it is loaded.

    Frozen weights and second names of tied ones are left out. Engines load states strictly.
    """
    trained = frozenset(name for name, parameter in module.named_parameters() if parameter.requires_grad)

    def keep(_: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
        for name in [name for name in state if name.removeprefix(prefix) not in trained]:
            del state[name]

    def expect(_: nn.Module, found: Any) -> None:
        found.missing_keys[:] = [name for name in found.missing_keys if name in trained]

    module.register_state_dict_post_hook(keep)
    module.register_load_state_dict_post_hook(expect)


# ---------------------------------------------------------------- one device for each process


def one_device(arguments: TrainingArguments) -> None:
    """Keep a process that no launcher started on one GPU, and say how to use all of them.

    With more than one in sight the ``Trainer`` would spread every batch over all of them (``DataParallel``): batches
    grow, steps become fewer, and TRL refuses.

    Args:
        arguments: The Trainer's; changed in place.
    """
    if arguments.n_gpu < 2:
        return
    log.warning(
        "%d GPUs are in sight, and one of them is used. To use all: esckit %s --accelerate multi-gpu",
        arguments.n_gpu,
        shlex.join(sys.argv[1:]),
    )
    arguments._n_gpu = 1


# ---------------------------------------------------------------- while it trains


class EngineGuard(TrainerCallback):
    """Stops an engine before a gradient that is not finite reaches the weights, and lets a sharded model generate.

    DeepSpeed frees gradients while the backward pass runs and takes its step inside of it, before any callback. There,
    hooks on the parameters look at the gradients, and the engine steps only if no process saw a bad one. FSDP2 gathers
    the root's weights before ``forward`` only, so ``generate`` is registered as a second way in, and transformers is
    informed that all processes take part in every step of it.

    Args:
        trainer: Returns the trainer.
        stop: Called in all processes with the step and what was found; raises.
    """

    def __init__(self, trainer: Callable[[], Any], stop: Callable[[int, Mapping[str, Any]], NoReturn]) -> None:
        self._trainer = trainer
        self._stop = stop

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Prepare the engine.

        Raises:
            ConfigError: For FSDP version 1, which PyTorch has replaced and esckit cannot save from.
        """
        trainer = self._trainer()
        if trainer.is_deepspeed_enabled:
            self._guard_step(trainer, state)
        elif trainer.is_fsdp_enabled:
            model: nn.Module = trainer.model_wrapped
            if not isinstance(model, FSDPModule):
                raise ConfigError("fsdp_version: 1 in the launcher settings", expected="fsdp_version: 2")
            assert isinstance(model, nn.Module)
            if hasattr(model, "generate"):
                register_fsdp_forward_method(model, "generate")
            for module in model.modules():
                if isinstance(module, PreTrainedModel):
                    module._is_fsdp_managed_module = True

    def _guard_step(self, trainer: Any, state: TrainerState) -> None:
        engine = trainer.accelerator.deepspeed_engine_wrapped.engine
        n_bad = torch.zeros((), device=trainer.args.device)

        def look(gradient: Tensor) -> None:
            n_bad.add_((~torch.isfinite(gradient)).any())

        for parameter in engine.module.parameters():
            if parameter.requires_grad:
                parameter.register_hook(look)
        step = engine.step

        def guarded_step(*args: Any, **kwargs: Any) -> Any:
            if engine.is_gradient_accumulation_boundary() and trainer.accelerator.reduce(n_bad).item():
                self._stop(state.global_step, {"the gradient": "not finite"})
            return step(*args, **kwargs)

        engine.step = guarded_step

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Look at the gradients where the Trainer takes the step."""
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if gradients and not torch.isfinite(whole_tensor(torch.nn.utils.get_total_norm(gradients))):
            self._stop(state.global_step, {"the gradient": "not finite"})
