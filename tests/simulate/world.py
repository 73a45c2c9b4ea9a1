"""A scripted world in which every seeker turn names a need, and one strategy answers each need best."""

import re
from collections.abc import Sequence

from esckit.types import Message, Sampling

BEST = {"hurts": "Emotional Validation", "what next": "Collaborative Planning", "unsure": "Share Information"}
SAYINGS = ("It hurts.", "And what next?", "I am unsure.")

_LAST_SEEKER = re.compile(r"^Seeker: (.*)$", re.MULTILINE)
_LAST_SUPPORTER = re.compile(r"^Supporter \[([^\]]+)\]: ", re.MULTILINE)


def need_of(text: str) -> str:
    return next(need for need in BEST if need in text)


def supporter(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return "I am with you."


def seeker(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return SAYINGS[seed % len(SAYINGS)]


def critic(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    text = messages[-1].content
    fits = _LAST_SUPPORTER.findall(text)[-1] == BEST[need_of(_LAST_SEEKER.findall(text)[-1])]
    rating = 5 if fits else 1 + seed % 3
    return "\n".join(f"{number}: {rating}" for number in range(1, 5))


def strategist(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    """Know nothing: all strategies alike."""
    return '{"RS": 0.125, "Cla": 0.125, "EV": 0.125, "ES": 0.125, "Aff": 0.125, "CP": 0.125, "SO": 0.125, "SI": 0.125}'
