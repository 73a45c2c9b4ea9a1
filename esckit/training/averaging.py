"""The mean of the weights over the last updates of a training, in place of the last weights.

Stochastic weight averaging (Izmailov et al., arXiv 1803.05407), with the learning rate as it is: the noise of single
updates averages out, so the mean is often better on held-out data than any of the weights it is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback, TrainerState

from esckit.training.sharding import whole_tensor

AVERAGE = "average.safetensors"
"""Where the state of a training holds the mean, whole."""


class WeightAverage(TrainerCallback):
    """Keeps the mean of the trained weights from some update on; each process averages the parts that it holds.

    DeepSpeed keeps originals of the weights elsewhere, so it is not for models under ZeRO.

    Args:
        model: Returns the model as it is trained, plain or under DDP or FSDP2.
        start: Share of all updates before the first one that counts, in [0, 1); None keeps no mean.
    """

    def __init__(self, model: Callable[[], nn.Module], start: float | None) -> None:
        self._model, self._start = model, start
        self._means: dict[str, Tensor] = {}

    def count(self, state: TrainerState) -> int:
        """Return how many updates' weights the mean is made of so far; 0 where there is none yet."""
        return 0 if self._start is None else max(0, state.global_step - int(self._start * state.max_steps))

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Take the weights of an update in."""
        count = self.count(state)
        if count == 0:
            return
        with torch.no_grad():
            for name, weight in self._weights():
                if count == 1:
                    self._means[name] = weight.detach().clone()
                else:
                    _own(self._means[name]).lerp_(_own(weight), 1 / count)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the mean in the place of the weights for a while; without one nothing changes."""
        if not self._means:
            yield
            return
        last = {name: _own(weight).detach().clone() for name, weight in self._weights()}
        self._put({name: _own(mean) for name, mean in self._means.items()})
        try:
            yield
        finally:
            self._put(last)

    def save(self, folder: Path, *, writes: bool) -> None:
        """Write the mean beside the other parts of a state; called in every process, one of which ``writes``."""
        whole = {name: whole_tensor(mean) for name, mean in self._means.items()}
        if whole and writes:
            save_file(whole, str(folder / AVERAGE))

    def load(self, folder: Path) -> None:
        """Go on from a state; one from before the first update that counts has no mean."""
        stored = load_file(str(folder / AVERAGE)) if (folder / AVERAGE).is_file() else {}
        weights = dict(self._weights())
        self._means = {name: _like(weights[name], mean) for name, mean in stored.items()}

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, weight) for name, weight in self._model().named_parameters() if weight.requires_grad)

    def _put(self, parts: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._weights():
                _own(weight).copy_(parts[name])
        for module in self._model().modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # so that no layer reads whole weights that it gathered before


def _own(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(weight: Tensor, whole: Tensor) -> Tensor:
    """Return a whole tensor on the device of a weight, split as that is."""
    if isinstance(weight, DTensor):
        return distribute_tensor(whole.to(weight.device), weight.device_mesh, weight.placements)
    return whole.to(weight.device)
