"""A trained reward model as scorer: R_fut of (conversation, response), no simulation needed (arXiv 2508.12935).

Inputs are packed into rows under a token budget, without padding, and what they begin with in common (instruction,
conversation) is read once. The score of an input does not depend on what else is scored with it, but for the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from esckit.errors import BackendError, NotFiniteError
from esckit.models.checkpoint import read_metadata
from esckit.models.loading import Dtype, exact_dtype, pick_device
from esckit.models.packing import PackedStates, States
from esckit.reward.checkpoint import RewardMetadata, load_net
from esckit.reward.network import RewardNet, probability
from esckit.reward.text import RewardInput, RewardTemplate, RewardText, another_prompt
from esckit.types import Turn

_BATCH_TOKENS = {"cpu": 8_192, "cuda": 16_384}


class RewardModel:
    """Scores responses.

    Args:
        net: The trained net, in evaluation mode, where it shall run; adapters are merged.
        text: Makes its inputs.
        metadata: What it was trained on; None for a net that was not trained.
        max_batch_tokens: Tokens in one forward pass; None takes a default for the device.
    """

    def __init__(
        self,
        net: RewardNet,
        text: RewardText,
        *,
        metadata: RewardMetadata | None = None,
        max_batch_tokens: int | None = None,
    ) -> None:
        device = next(net.parameters()).device
        self.net = net
        self.text = text
        self.metadata = metadata
        budget = max_batch_tokens or _BATCH_TOKENS.get(device.type, _BATCH_TOKENS["cpu"])
        self.states = PackedStates(net.backbone, max_tokens=budget, longest=text.max_length)

    @classmethod
    def load(
        cls,
        run: Path,
        *,
        template: RewardTemplate | None = None,
        dtype: Dtype = "auto",
        device: str = "auto",
        max_batch_tokens: int | None = None,
    ) -> RewardModel:
        """Load what ``esckit train-reward`` left in a run folder.

        Args:
            run: The run folder.
            template: The prompt as it is today; None reads as the model was trained, whatever became of the prompt.
            dtype: ``auto`` is float32 on a processor, bfloat16 on a GPU.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            max_batch_tokens: Tokens in one forward pass; None takes a default for the device.

        Raises:
            CheckpointError: If there is no reward model, its files do not fit, or it was trained with another prompt.
            ConfigError: If its backbone cannot be had.
        """
        metadata = read_metadata(RewardMetadata, run)
        if template is not None and template != metadata.template:
            raise another_prompt(run, metadata.template.prompt, template.prompt)
        place = pick_device(device)
        net, tokenizer = load_net(run, metadata, dtype=exact_dtype(dtype, place))
        text = RewardText(tokenizer, metadata.template, max_length=metadata.max_length)
        return cls(net.to(place), text, metadata=metadata, max_batch_tokens=max_batch_tokens)

    def score(self, conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> list[float]:
        """Return R_fut in [0, 1] of each response.

        Args:
            conversations: Turns before each response, oldest first; too long ones lose their oldest turns.
            responses: The replies themselves, without any reasoning.

        Raises:
            BackendError: ``too_long`` if a response does not fit.
            NotFiniteError: If the model gives a number that is not finite.
        """
        inputs = [self._input(turns, response) for turns, response in zip(conversations, responses, strict=True)]
        distinct = list(dict.fromkeys(inputs))
        of_input = dict(zip(distinct, self._score_inputs(distinct), strict=True))
        return [of_input[each] for each in inputs]

    def _input(self, turns: Sequence[Turn], response: str) -> RewardInput:
        found = self.text.encode(turns, response)
        if found is None:
            raise BackendError(f"a response beyond {self.text.max_length} tokens", kind="too_long")
        return found

    @torch.inference_mode()
    def _score_inputs(self, inputs: Sequence[RewardInput]) -> list[float]:
        if not inputs:
            return []
        # A ranker reads the states from the one before the response on.
        n_tail = [len(each.ids) - each.response_start + 1 if self.net.kind == "rrhf" else 1 for each in inputs]
        states = self.states.read([each.ids for each in inputs], n_tail)
        scores = probability(self.net.kind, self._outputs(inputs, states)).tolist()
        for score in scores:
            if not math.isfinite(score):
                raise NotFiniteError("p of the reward model", score)
        return scores

    def _outputs(self, inputs: Sequence[RewardInput], states: Sequence[States]) -> Tensor:
        """Return what the net gives for each input."""
        if self.net.kind == "rrhf":
            return torch.stack([self._mean_log_p(each, read) for each, read in zip(inputs, states, strict=True)])
        if self.net.pooling == "last":
            return self.net.read(torch.stack([read.tail[-1].float() for read in states]))
        pairs = zip(inputs, states, strict=True)
        return self.net.read(torch.stack([read.total / len(each.ids) for each, read in pairs]))

    def _mean_log_p(self, each: RewardInput, read: States) -> Tensor:
        n_response = each.response_end - each.response_start
        target = torch.tensor(each.ids[each.response_start : each.response_end], device=read.tail.device)
        return self.net.token_log_p(read.tail[:n_response], target).mean()
