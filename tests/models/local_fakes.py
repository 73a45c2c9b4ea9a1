"""Tiny random models behind the local chat model, and plain transformers beside it to compare with."""

import asyncio
from collections.abc import Sequence
from typing import Any

import torch

from esckit.models.chat import ChatFormat
from esckit.models.local import LocalModel
from esckit.types import Message, Reply, Sampling
from tests.tiny import TinyFamily, tiny_random

LONG = "I feel so anxious about my exam next week and I do not know who to talk to. " * 4


def tiny_local(family: TinyFamily = "qwen2", **options: Any) -> LocalModel:
    model, tokenizer = tiny_random(family)
    return LocalModel(model, tokenizer, name="tiny", **options)


def prompts(n: int = 6) -> list[list[Message]]:
    """Prompts that share a long beginning, and two that share nothing."""
    shared = [[Message("system", LONG), Message("user", f"{'hello ' * i}number {i}")] for i in range(n)]
    return [*shared, [Message("user", "alone")], [Message("user", "quite another text " * 9)]]


def ask_all(
    model: LocalModel, asked: Sequence[Sequence[Message]], sampling: Sampling, seeds: Sequence[int] | None = None
) -> list[Reply]:
    """Ask all at once, so that the requests meet in one batch."""

    async def gather() -> list[Reply]:
        given = seeds if seeds is not None else range(len(asked))
        calls = [model.complete(m, sampling, seed=s) for m, s in zip(asked, given, strict=True)]
        replies = await asyncio.gather(*calls)
        await model.aclose()
        return replies

    return asyncio.run(gather())


class Naive:
    """The same weights, asked one by one the plain way."""

    def __init__(self, family: TinyFamily = "qwen2") -> None:
        self.model, self.tokenizer = tiny_random(family)
        self.chat = ChatFormat.of(self.tokenizer)

    def complete(self, messages: Sequence[Message], **settings: Any) -> str:
        ids = torch.tensor([self.chat.encode(messages)])
        stop = sorted(self.chat.stop_ids)
        settings = {"do_sample": False, "eos_token_id": stop, **settings}
        output = self.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        return self.chat.decode(output[0, ids.shape[1] :].tolist())

    def log_probs(self, ids: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of the token after each token (T, V)."""
        with torch.no_grad():
            return torch.log_softmax(self.model(torch.tensor([list(ids)])).logits[0].double(), dim=-1)
