"""A dialogue as a model sees it: chat messages for who takes part, labelled lines for who judges.

Inside prompts the speakers are called "Patient" and "Therapist", the words of the PPDPP and RLFF-ESC protocol, kept for
comparability; they claim nothing clinical.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from esckit.lines import as_turn, lines_of, starts_with_label, without_label
from esckit.types import Message, Role, Speaker, Turn

LABELS: dict[Speaker, str] = {"seeker": "Patient", "supporter": "Therapist"}


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
    """Return turns as labelled lines, ``Patient: …``; no turn holds a line that reads as another one."""
    return "\n".join(f"{LABELS[turn.speaker]}: {as_turn(turn.text)}" for turn in turns)


def clean_reply(text: str, *, speaking: Speaker) -> str:
    """Return a reply without labels of its own role and without what it says in the other side's name.

    The first line that starts with another label ends it.
    """
    text = text.strip()
    kept: list[str] = []
    lines = lines_of(text)
    for line in lines:
        said = without_label(line, speaking)
        if said == line and starts_with_label(line):
            break
        kept.append(said)
    return text if kept == lines else "\n".join(kept).strip()
