"""What every training does with a backbone: find the decoder in its wrappers, and put float32 layers on its states.

Not here: how backbones and adapters are loaded (:mod:`esckit.models.loading`), and the heads themselves, which belong
to their trainings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from esckit.errors import ConfigError


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, whatever the type of its input and of its weights.

    An engine may keep the weights of a whole model in bfloat16 (DeepSpeed does); a head's arithmetic must not depend on
    it. The cast stands in ``forward``, since that is where an engine that shards weights gathers them.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, dtype=torch.float32)

    def forward(self, input: Tensor) -> Tensor:
        """Return the float32 outputs (…, out) of inputs (…, in)."""
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float(), self.bias.float())


def base_decoder(backbone: nn.Module) -> PreTrainedModel:
    """Return the transformers decoder inside a backbone, with or without an adapter around it.

    Raises:
        ConfigError: If there is none.
    """
    for module in backbone.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise ConfigError(f"{type(backbone).__name__} holds no transformers model")


def layer_classes(backbone: nn.Module) -> list[str]:
    """Return the class names of a backbone's layers, which FSDP shards as one piece each."""
    return sorted(base_decoder(backbone)._no_split_modules or ())
