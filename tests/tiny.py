"""Random models of other families beside ``tiny-random``: Llama, GPT-2, and Gemma 2 (window, caps, no system role)."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from esckit.models import in_memory
from esckit.models.loading import keep_soft_caps

TinyFamily = Literal["qwen2", "llama", "gemma2", "gpt2"]

GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' + message['content'] "
    "+ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def tiny_tokenizer(family: TinyFamily = "qwen2") -> Any:
    tokenizer = in_memory.build_tokenizer("tiny-random")
    if family == "gemma2":
        turns = ["<start_of_turn>", "<end_of_turn>"]
        ends = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<eos>"}
        tokenizer.add_special_tokens({**ends, "additional_special_tokens": turns})
        tokenizer.chat_template = GEMMA
    return tokenizer


def tiny_random(family: TinyFamily = "qwen2") -> tuple[Any, Any]:
    if family == "qwen2":
        return in_memory.build("tiny-random")
    tokenizer = tiny_tokenizer(family)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "gemma2":
        shape |= {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape))
    keep_soft_caps(model)
    return model.eval(), tokenizer


def tiny_folder(folder: Path, family: TinyFamily) -> Path:
    """Write such a model and its tokenizer as a recipe may name them."""
    model, tokenizer = tiny_random(family)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
