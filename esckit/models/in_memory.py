"""Models whose random weights are built in memory, always the same, so that nothing has to be fetched.

``tiny-random`` is for tests and trials: what it writes has no meaning. ``practice-small`` has some two million weights
and the words of the practice world, so that it can learn there from nothing, in minutes on a processor;
``practice-tiny`` has half a million, and reads whole words, for the sake of reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from esckit.models.backbones import load_backbones
from esckit.models.chat import CHATML
from esckit.practice.language import every_form
from esckit.prompts.prompt import load_prompt


class _Recipe(NamedTuple):
    """How a model is made.

    Attributes:
        texts: What the words of its tokenizer are learnt from.
        spread: Standard deviation of its weights.
    """

    texts: Callable[[], Iterable[str]]
    spread: float


def _tiny_texts() -> tuple[str, ...]:
    return (
        "I feel so anxious about my exam next week and I do not know who to talk to.",
        "That sounds really hard. What worries you most about the exam?",
        "Much worse. Worse. Slightly worse. No change. Slightly better. Better. Much better.",
    )


def _practice_texts() -> tuple[str, ...]:
    return (*every_form(), *(f"\nSeeker: {word}\nSupporter: {word}" for word in ("I", "You", "It")))


_READ_IN_PRACTICE = ("supporter_practice", "supporter_rlff", "reward_model", "reward_practice")
"""Prompts whose words are tokens of ``practice-tiny`` too."""


def _whole_words() -> tuple[str, ...]:
    """Return texts of which every word becomes one token, also in the middle of a turn, where a blank precedes it."""
    asked = (message.content for name in _READ_IN_PRACTICE for message in load_prompt(name).messages)
    labelled = (f"\n{role}: {word}" for role in ("Patient", "Therapist") for word in ("I", "You", "It"))
    return (*_practice_texts(), *(f" {form}" for form in every_form()), *labelled, *asked)


_RECIPES = {
    # Wide enough that the next token is not a coin toss.
    "tiny-random": _Recipe(_tiny_texts, spread=0.2),
    "practice-small": _Recipe(_practice_texts, spread=0.02),
    "practice-tiny": _Recipe(_whole_words, spread=0.02),
}


def build_tokenizer(name: str) -> Any:
    """Return the byte-level tokenizer of a model that is built in memory, with ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    entry = load_backbones()[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entry.config["vocab_size"],
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_RECIPES[name].texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
        padding_side="left",
        model_max_length=entry.context,
        clean_up_tokenization_spaces=False,
    )


def build(name: str) -> tuple[Any, Any]:
    """Return a model with random weights, always the same, and its tokenizer; the global random state stays."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    entry, tokenizer = load_backbones()[name], build_tokenizer(name)
    config = Qwen2Config(
        **{**entry.config, "vocab_size": len(tokenizer)},
        max_position_embeddings=entry.context,
        initializer_range=_RECIPES[name].spread,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model.eval(), tokenizer
