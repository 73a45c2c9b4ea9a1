"""``tiny-random``: a language model of some ten thousand random weights, built in memory for tests and dry plumbing.

What it writes has no meaning. Its byte-level tokenizer gives back any text unchanged, emoji and accents included.
"""

from __future__ import annotations

from typing import Any, Literal

TinyFamily = Literal["qwen2", "llama", "gemma2"]

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' + message['content'] "
    "+ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_TRAINING_TEXT = (
    "I feel so anxious about my exam next week and I do not know who to talk to.",
    "That sounds really hard. What worries you most about the exam?",
    "Much worse. Worse. Slightly worse. No change. Slightly better. Better. Much better.",
)


def tiny_tokenizer(family: TinyFamily = "qwen2") -> Any:
    """Return the byte-level tokenizer of ``tiny-random``, about 360 tokens, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if family == "gemma2":
        specials = ["<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TRAINING_TEXT, trainer)
    is_gemma = family == "gemma2"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>" if is_gemma else "<|im_end|>",
        pad_token="<eos>" if is_gemma else "<|endoftext|>",
        bos_token="<bos>" if is_gemma else None,
        additional_special_tokens=specials[2:] if is_gemma else specials[1:2],
        chat_template=_GEMMA if is_gemma else _CHATML,
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def tiny_random(family: TinyFamily = "qwen2", *, seed: int = 0) -> tuple[Any, Any]:
    """Return a random model of two layers and its tokenizer; the global random state stays as it was.

    Args:
        family: Architecture; ``gemma2`` has a sliding window of 64, soft caps and no system role.
        seed: Fixes the weights.
    """
    import torch
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    tokenizer = tiny_tokenizer(family)
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,  # wide enough that the next token is not a coin toss
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    from esckit.models.capabilities import keep_soft_caps

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "llama":
            model = LlamaForCausalLM(LlamaConfig(**common))
        elif family == "gemma2":
            window = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}
            model = Gemma2ForCausalLM(Gemma2Config(**common, **window))
        else:
            model = Qwen2ForCausalLM(Qwen2Config(**common))
    keep_soft_caps(model)
    return model.eval(), tokenizer
