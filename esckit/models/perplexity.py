r"""How surprising a reply is to a language model of this machine, given the conversation before it.

Beside the chat seam on purpose: a perplexity is of plain text under the scorer's own tokenizer, with no chat template
and no system prompt in between. The text form is ``ppl_text/1``::

    Seeker: {text}\nSupporter: {text}\n … Supporter:      the context, which is not counted
     {reply}                                               what is counted, from its first token to its last
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from esckit.controls import Controls
from esckit.errors import NOT_FINITE, BackendError
from esckit.lines import as_turn
from esckit.models.backbones import resolve_backbone
from esckit.models.loading import Dtype, exact_dtype, load_causal, pick_device
from esckit.types import Turn

PPL_TEXT = "ppl_text/1"
_LABELS = {"seeker": "Seeker", "supporter": "Supporter"}


class Surprise(NamedTuple):
    """Summed negative log-likelihood (nats) of a reply, and its number of tokens."""

    nll: float
    n_tokens: int


class PerplexityScorer:
    """Scores replies with a causal language model.

    Args:
        model: A causal language model of transformers, in evaluation mode, where it shall run.
        tokenizer: Its tokenizer.
        name: Name and revision, for provenance.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        self.name = name
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._controls = Controls.of(tokenizer)
        self._device = next(model.parameters()).device
        self._longest = int(model.config.get_text_config(decoder=True).max_position_embeddings)

    @classmethod
    def load(cls, ref: str, *, dtype: Dtype = "auto", device: str = "auto") -> PerplexityScorer:
        """Load a backbone; ``auto`` is float32 on a processor, bfloat16 on a GPU.

        Raises:
            ConfigError: If there is no such backbone, or it cannot be loaded.
        """
        place = pick_device(device)
        model, tokenizer = load_causal(resolve_backbone(ref), dtype=exact_dtype(dtype, place))
        # Asked again: where it had to be downloaded, the revision is known only now.
        return cls(model.to(place), tokenizer, name=resolve_backbone(ref).identity)

    @torch.inference_mode()
    def score(self, turns: Sequence[Turn], reply: str) -> Surprise:
        """Return how surprising a reply is after some turns.

        Args:
            turns: The conversation; the oldest part goes where the model cannot read it all.
            reply: The reply, not blank.

        Raises:
            BackendError: ``too_long`` if the reply alone does not fit, ``not_finite`` if its likelihood is not finite.
        """
        talk = "\n".join([*(f"{_LABELS[turn.speaker]}: {as_turn(turn.text)}" for turn in turns), "Supporter:"])
        counted = self._encode(f" {reply.strip()}")
        if len(counted) >= self._longest:
            raise BackendError(
                f"a reply of {len(counted)} tokens", kind="too_long", expected=f"at most {self._longest - 1}"
            )
        context = self._encode(talk)[-(self._longest - len(counted)) :]
        ids = torch.tensor([context + counted], device=self._device)
        logits = self._model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1].float()
        nll = float(F.cross_entropy(logits, ids[0, len(context) :], reduction="sum"))
        if not math.isfinite(nll):
            raise BackendError(f"a negative log-likelihood of {nll}", kind=NOT_FINITE, expected="a finite number")
        return Surprise(nll, len(counted))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(self._controls.neutralise(text), add_special_tokens=False))
