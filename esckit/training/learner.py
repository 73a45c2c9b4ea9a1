"""A causal language model as it is trained to be a supporter: its chat template, and the ends of its outputs.

``train-sft`` and ``train-rl`` begin with it. This module imports torch; what is stored of a trained supporter, and how
it is loaded again, stands in :mod:`esckit.training.policy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from esckit.models.chat import ChatFormat
from esckit.training.policy import training_format


@dataclass(frozen=True, slots=True)
class Learner:
    """The supporter before training.

    Attributes:
        model: The causal language model without adapter; its generation settings name all ends of an output.
        tokenizer: With the template of the training.
        chat: That template, and how messages come into it.
    """

    model: Any
    tokenizer: Any
    chat: ChatFormat


def learner_of(model: Any, tokenizer: Any) -> Learner:
    """Return a model as a supporter to train: chat template, ends of an output, and no sampling habits of its own.

    Raises:
        ConfigError: If its chat template lacks what training needs and none of ours fits.
    """
    eos = model.generation_config.eos_token_id
    chat = training_format(tokenizer, [] if eos is None else [eos] if isinstance(eos, int) else list(eos))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.generation_config = GenerationConfig(
        eos_token_id=sorted(chat.stop_ids), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
    )
    return Learner(model, tokenizer, chat)
