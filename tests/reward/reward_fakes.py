"""Small reward models and talks for the tests of scoring and training."""

import random
from typing import Any

import torch

from esckit.reward.model import Kind, RewardModel, RewardNet
from esckit.reward.text import RewardText, reward_template
from esckit.types import Turn
from tests.tiny import TinyFamily, tiny_random

WORDS = ("I", "feel", "so", "anxious", "and", "you", "do", "not", "know", "ça", "va", "🙂", "today", "it", "hurts")


def tiny_net(kind: Kind = "classifier", *, family: TinyFamily = "qwen2", **options: Any) -> tuple[RewardNet, Any]:
    causal, tokenizer = tiny_random(family)
    torch.manual_seed(1)
    return RewardNet(causal.base_model, kind, lm_head=causal.get_output_embeddings(), **options).eval(), tokenizer


def tiny_reward(
    kind: Kind = "classifier", *, max_batch_tokens: int = 2048, is_invariant: bool = False, **options: Any
) -> RewardModel:
    net, tokenizer = tiny_net(kind, **options)
    text = RewardText(tokenizer, reward_template("reward_model"), max_length=1024)
    return RewardModel(net, text, max_batch_tokens=max_batch_tokens, is_invariant=is_invariant)


def talk(seed: int, n_turns: int) -> tuple[Turn, ...]:
    draw = random.Random(seed)
    return tuple(
        Turn(speaker="supporter" if i % 2 else "seeker", text=" ".join(draw.choices(WORDS, k=draw.randint(2, 9))))
        for i in range(n_turns)
    )


def grouped_inputs(n_dialogues: int = 3, candidates: int = 3) -> tuple[list[tuple[Turn, ...]], list[str]]:
    """Contexts of few dialogues, one the beginning of the other, with several replies each."""
    conversations, responses = [], []
    for dialogue in range(n_dialogues):
        turns = talk(dialogue, 9)
        for cut in (1, 3, 9):
            for candidate in range(candidates):
                conversations.append(turns[:cut])
                responses.append(talk(100 * dialogue + 10 * cut + candidate, 1)[0].text)
    return conversations, responses
