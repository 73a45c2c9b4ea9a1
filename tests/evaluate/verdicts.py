"""Scripted speakers and judges for evaluation tests: plain functions of (messages, sampling, seed)."""

import json
import re
from collections.abc import Sequence

from esckit.errors import BackendError
from esckit.types import Message, Sampling

LEVELS = (
    "Same",
    "Slightly better",
    "Moderately better",
    "Significantly better",
    "Significantly better",
    "Worse",
    "Solved",
)
NAMES = ("Question", "Restatement or Paraphrasing", "Reflection of feelings", "Others")
ABBRS = ("Que", "R&P", "RoF", "SD", "A&R", "PS", "Inf", "Oth")


def supporter(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return f"<think>Hm.</think> <response>I hear you ({len(messages[-1].content)}).</response>"


def other_supporter(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return f"<think>Hm.</think> <response>Tell me more about it, will you ({len(messages[-1].content) % 7})?</response>"


def sometimes_blank(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return "" if _odd(messages) else supporter(messages, sampling, seed)


def sometimes_down(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    if _odd(messages):
        raise BackendError("scripted failure")
    return supporter(messages, sampling, seed)


def down(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    raise BackendError("scripted failure")


def seeker(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return f"I still feel low, {len(messages)}."


def critic(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    n_levels = 7 if "Moderately" in messages[-1].content else 4
    mapped = ("Worse", "Same", "Better", "Solved")
    return LEVELS[seed % 4] if n_levels == 7 else mapped[(seed >> 3) % 4]


def nonsense(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return "What a lovely day."


def critic_with_nonsense(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    """Answer like ``critic``, but nothing readable in some talks, whatever is asked."""
    return "Hm." if _odd(messages) else critic(messages, sampling, seed)


def strategist(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    keys = re.findall(r'"([^"]+)"', re.search(r"keys are exactly (.*?);", messages[-1].content, re.DOTALL)[1])
    best = sum(map(ord, messages[-1].content)) % len(keys)
    shares = [1.0 if index == best else 0.0 for index in range(len(keys))]
    return json.dumps(dict(zip(keys, shares, strict=True)))


def sure_strategist(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    """Answer as ``strategist`` does, but only where it feels sure."""
    return "I am not sure." if _odd(messages) else strategist(messages, sampling, seed)


def _dimensions(messages: Sequence[Message]) -> list[str]:
    return re.findall(r'"([a-z]+)"', re.search(r"keys are exactly (.*?);", messages[-1].content)[1])


def judge(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    """Prefer the shorter reply of two, and say yes or no by the length of a single one."""
    text = messages[-1].content
    if "Answer with one JSON object" not in text:
        return "yes" if len(text) % 3 else "no"
    first, second = re.search(r"Reply 1:\n(.*?)\n\nReply 2:\n(.*?)\n\nWhich", text, re.DOTALL).groups()
    said = "tie" if len(first) == len(second) else "1" if len(first) < len(second) else "2"
    return json.dumps(dict.fromkeys(_dimensions(messages), said))


def always_first(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    text = messages[-1].content
    return json.dumps(dict.fromkeys(_dimensions(messages), "1")) if "JSON object" in text else "yes"


def judge_with_nonsense(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    """Answer like ``judge``, but nothing readable about some cases, in whichever order they are shown."""
    text = messages[-1].content
    place = text.partition("Reply 1:")[0]
    return "Hm." if sum(map(ord, place)) % 3 == 0 else judge(messages, sampling, seed)


def _odd(messages: Sequence[Message]) -> bool:
    return sum(map(ord, "".join(message.content for message in messages))) % 3 == 0
