"""Models whose random weights are built in memory, always the same, so that nothing has to be fetched.

``tiny-random`` is for tests and trials: what it writes has no meaning. ``practice-tiny`` has half a million weights and
the words of the practice world, each one token, so that it can learn there from nothing, in minutes on a processor.
``practice-speaker`` is as large and has the same words; its attention begins as one that copies, so that it soon learns
to say back what it read.
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
        embedding_spread: That of its embeddings; None takes ``spread``.
        copying: Scale of value and output projections that are each other's transpose, so that a head adds what it
            attends to (the mimetic initialisation of Trockman and Kolter, 2023); None draws both at random.
    """

    texts: Callable[[], Iterable[str]]
    spread: float
    embedding_spread: float | None = None
    copying: float | None = None


def _tiny_texts() -> tuple[str, ...]:
    return (
        "I feel so anxious about my exam next week and I do not know who to talk to.",
        "That sounds really hard. What worries you most about the exam?",
        "Much worse. Worse. Slightly worse. No change. Slightly better. Better. Much better.",
    )


_READ_IN_PRACTICE = ("supporter_practice", "supporter_rlff", "reward_model", "reward_practice")
"""Prompts whose words are tokens of the practice world's models too."""


def _practice_texts() -> tuple[str, ...]:
    """Return texts of which every word becomes one token, at the start of a turn and, behind a blank, within one."""
    words = ("I", "You", "It")
    talks = (f"\nSeeker: {word}\nSupporter: {word}" for word in words)
    labelled = (f"\n{role}: {word}" for role in ("Patient", "Therapist") for word in words)
    asked = (message.content for name in _READ_IN_PRACTICE for message in load_prompt(name).messages)
    return (*every_form(), *talks, *(f" {form}" for form in every_form()), *labelled, *asked)


_RECIPES = {
    # Wide enough that the next token is not a coin toss.
    "tiny-random": _Recipe(_tiny_texts, spread=0.2),
    "practice-tiny": _Recipe(_practice_texts, spread=0.02),
    "practice-speaker": _Recipe(_practice_texts, spread=0.02, embedding_spread=0.1, copying=0.6),
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
    from torch import nn
    from transformers import AutoModelForCausalLM, Qwen2Config

    entry, tokenizer, recipe = load_backbones()[name], build_tokenizer(name), _RECIPES[name]
    config = Qwen2Config(
        **{**entry.config, "vocab_size": len(tokenizer)},
        max_position_embeddings=entry.context,
        initializer_range=recipe.spread,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        if recipe.embedding_spread is not None:
            nn.init.normal_(model.get_input_embeddings().weight, std=recipe.embedding_spread)
        if recipe.copying is not None:
            for layer in model.model.layers:
                value, output = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
                nn.init.orthogonal_(value, gain=recipe.copying)
                output.data.copy_(value.data.T)
    return model.eval(), tokenizer
