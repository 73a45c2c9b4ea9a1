"""A dialogue as a model sees it: chat messages for who takes part, labelled lines for who judges.

Inside prompts the speakers are called "Patient" and "Therapist", the words of the PPDPP and RLFF-ESC protocol, kept for
comparability; they claim nothing clinical.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from esckit.types import Message, Role, Speaker, Turn

LABELS: dict[Speaker, str] = {"seeker": "Patient", "supporter": "Therapist"}
_ROLE_WORDS: dict[Speaker, str] = {
    "seeker": "patient|seeker|help-seeker|client|user",
    "supporter": "therapist|supporter|counsell?or|assistant|helper",
}


def as_chat(turns: Sequence[Turn], *, speaking: Speaker) -> list[Message]:
    """Return turns as chat messages: one's own as assistant, the other side's as user; neighbours merged."""
    return merge_messages(Message("assistant" if turn.speaker == speaking else "user", turn.text) for turn in turns)


def merge_messages(messages: Iterable[Message]) -> list[Message]:
    """Join neighbouring messages of one chat role with a line break, since chat templates want them to alternate."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role:
            role: Role = message.role
            merged[-1] = Message(role, f"{merged[-1].content}\n{message.content}")
        else:
            merged.append(message)
    return merged


def as_lines(turns: Iterable[Turn]) -> str:
    """Return turns as labelled lines, ``Patient: …``."""
    return "\n".join(f"{LABELS[turn.speaker]}: {turn.text}" for turn in turns)


def _label(speaker: Speaker) -> str:
    return rf"\**(?:{_ROLE_WORDS[speaker]})\**\s*:\**"


_OWN_LABEL = {side: re.compile(rf"^\s*{_label(side)}\s*", re.IGNORECASE) for side in LABELS}
_OTHER_LINE = {
    "seeker": re.compile(rf"^\s*{_label('supporter')}.*", re.IGNORECASE | re.DOTALL | re.MULTILINE),
    "supporter": re.compile(rf"^\s*{_label('seeker')}.*", re.IGNORECASE | re.DOTALL | re.MULTILINE),
}


def clean_reply(text: str, *, speaking: Speaker) -> str:
    """Return a reply without a leading label of its own role and without what it says in the other side's name."""
    text = _OWN_LABEL[speaking].sub("", text.strip(), count=1)
    return _OTHER_LINE[speaking].sub("", text).strip()
