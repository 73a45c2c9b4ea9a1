import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.models.backbones import tiny_random, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@given(st.text(max_size=40))
@settings(max_examples=50, deadline=None)
def test_any_text_comes_back_unchanged(text):
    assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"], skip_special_tokens=False) == text


def test_same_seed_same_weights_and_the_global_state_stays():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, b, c = (tiny_random(seed=seed)[0].model.embed_tokens.weight for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2"])
def test_it_is_tiny(family):
    model, tokenizer = tiny_random(family)
    assert sum(p.numel() for p in model.parameters()) < 50_000
    assert model.config.vocab_size == len(tokenizer)


def test_training_can_find_what_the_assistant_said():
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello you"}]
    encoded = TOKENIZER.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    kept = [t for t, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert TOKENIZER.decode(kept) == "hello you<|im_end|>"
