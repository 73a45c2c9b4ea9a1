"""Score replies with this reward model; needs torch and transformers only."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def load(folder: str) -> tuple[Any, Any]:
    """Return tokenizer and model of a folder or a model id on the hub."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False)
    return tokenizer, model.eval()


def token_ids(tokenizer: Any, template: dict[str, Any], turns: Sequence[tuple[str, str]], reply: str) -> list[int]:
    """Return what the model reads: every piece is tokenised by itself; whole oldest turns go if it is too long."""

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False)) if text else []

    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    head = bos + encode(template["head"])
    after = encode(template["middle"]) + encode(reply.strip()) + encode(template["tail"])
    for first in range(len(turns)):
        lines = [f"{template[speaker]}: {text}" for speaker, text in turns[first:]]
        talk = [token for i, line in enumerate(lines) for token in encode(("\n" if i else "") + line)]
        if len(head) + len(talk) + len(after) <= template["max_length"]:
            return head + talk + after
    raise ValueError("the last turn and the reply are too long for this model")


@torch.no_grad()
def score(tokenizer: Any, model: Any, turns: Sequence[tuple[str, str]], reply: str) -> float:
    """Return p in [0, 1] of a reply, given the turns before it as (speaker, text), oldest first."""
    ids = token_ids(tokenizer, model.config.esckit["template"], turns, reply)
    logits = model(input_ids=torch.tensor([ids], device=model.device)).logits
    return float(torch.sigmoid(logits[0, 0].double()))
