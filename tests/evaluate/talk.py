"""Scripted talk for pipeline tests: plain functions of (messages, sampling, seed)."""

import time
from collections.abc import Sequence

from esckit.types import Message, Sampling

LEVELS = (
    "Same",
    "Slightly better",
    "Moderately better",
    "Significantly better",
    "Slightly worse",
    "I cannot say",
)


def supporter(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return f"<think>They said {len(messages)} things.</think> <response>I hear you ({seed % 97}).</response>"


def seeker(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return f"I still feel low, {seed % 89}."


def critic(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return LEVELS[seed % len(LEVELS)]


def nonsense(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return "What a lovely day."


def sometimes_nonsense(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    """Say nothing readable in about one talk of eight, decided by what is judged."""
    text = messages[-1].content
    return "Hm." if sum(map(ord, text[:400])) % 8 == 0 else critic(messages, sampling, seed)


def slow_supporter(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    time.sleep(0.02)
    return supporter(messages, sampling, seed)


def slow_seeker(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    time.sleep(0.02)
    return seeker(messages, sampling, seed)


def slow_critic(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    """Say a level, always: what cannot be read would count for ``max_failure_rate``."""
    return LEVELS[seed % 5]


def mostly_nonsense(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return LEVELS[seed % 5] if seed % 3 == 0 else "I would rather not say."


def rarely_nonsense(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return LEVELS[seed % 5] if seed % 40 else "I would rather not say."
