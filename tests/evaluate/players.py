"""Scripted AFlow roles for pipeline tests: plain functions of (messages, sampling, seed)."""

import json
import time
from collections.abc import Sequence

from esckit.types import Message, Sampling

ABBRS = ("RS", "Cla", "EV", "ES", "Aff", "CP", "SO", "SI")


def supporter(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return f"I hear you ({seed % 97})."


def seeker(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    if seed % 13 == 0:
        return "</end/>"
    return f"I still feel low, {seed % 89}." + (" <ok>" if seed % 11 == 0 else "")


def critic(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return "\n".join(f"{number}: {1 + (seed >> (4 * number)) % 5}" for number in range(1, 5))


def strategist(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    weights = [1 + (seed >> (4 * number)) % 9 for number in range(8)]
    return json.dumps({abbr: weight / sum(weights) for abbr, weight in zip(ABBRS, weights, strict=True)})


def nonsense(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return "What a lovely day."


def sometimes_nonsense(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    """Say nothing readable in about one talk of sixteen, decided by what is judged."""
    return "Hm." if sum(map(ord, messages[-1].content)) % 16 == 0 else critic(messages, sampling, seed)


def leaving(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return "</end/>"


def slow_supporter(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    time.sleep(0.005)
    return supporter(messages, sampling, seed)
