"""Dialogues as lines of other layouts, in one direction; what a layout cannot hold is said, never invented.

ESConv's Hub data set, in ASCII, one line each: ``{"experience_type": …, "emotion_type": …, "problem_type": …,
"situation": …, "survey_score": …, "dialog": [{"text": …, "speaker": "usr"}, {"text": …, "speaker": "sys", "strategy":
…}, …], "seeker_question1": …, …}``. Chat records and ShareGPT as :mod:`esckit.data.chat` reads them. The project's own
format is written by :func:`esckit.records.write_records`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from esckit.data.readers import ANSWERS, METADATA, SEEKER_RATINGS
from esckit.types import Dialogue, Survey, Turn

ChatLayout = Literal["messages", "sharegpt"]


def hub_line(dialogue: Dialogue) -> str:
    """Return a dialogue as one line of the Hub layout, without the line end.

    A strategy is written as the source has it; under a mapping, the mapped name takes its place.
    """
    scenario, survey = dialogue.scenario, dialogue.survey or Survey()
    ratings = survey.model_dump()  # as strings; what was not answered is absent
    seeker = {key: str(ratings[name]) for name, key in SEEKER_RATINGS.items() if ratings[name] is not None}
    relevance = survey.supporter_relevance
    record: dict[str, Any] = {
        "experience_type": scenario.experience_type or "",
        "emotion_type": scenario.emotion_type or "",
        "problem_type": scenario.problem_type or "",
        "situation": scenario.situation,
        "survey_score": {"seeker": seeker, "supporter": {} if relevance is None else {"relevance": str(relevance)}},
        "dialog": [],
        **{key: survey.answers.get(key) or "" for key in ANSWERS},
    }
    for turn in dialogue.turns:
        label = _label(dialogue, turn)
        item = {"text": turn.text, "speaker": "usr" if turn.speaker == "seeker" else "sys"}
        record["dialog"].append(item | ({} if turn.speaker == "seeker" or label is None else {"strategy": label}))
    return json.dumps(record)


def hub_losses(dialogues: Sequence[Dialogue]) -> list[str]:
    """Return what the Hub layout cannot hold of these dialogues, one clause each."""
    return _losses(dialogues)


def _losses(dialogues: Sequence[Dialogue]) -> list[str]:
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    n_ratings = sum(1 for turn in turns if turn.feedback is not None)
    n_merged = sum(1 for turn in turns if turn.parts)
    n_mapped = sum(
        1
        for dialogue in dialogues
        if dialogue.mapping is not None
        for turn in dialogue.turns
        if turn.source_strategy is not None and turn.source_strategy != turn.strategy
    )
    losses = (
        (n_ratings, "turns with the seeker's feedback"),
        (n_merged, "merged turns' pieces, with their labels"),
        (n_mapped, "original labels, replaced by mapped ones"),
    )
    return [f"{n:,} {what}" for n, what in losses if n]


_CHAT_KEYS: Mapping[ChatLayout, tuple[str, str, str]] = {
    "messages": ("messages", "role", "content"),
    "sharegpt": ("conversations", "from", "value"),
}

_SHAREGPT_ROLES = {"user": "human", "assistant": "gpt", "system": "system"}


def chat_record(messages: Iterable[tuple[str, str]], to: ChatLayout) -> dict[str, Any]:
    """Return messages as the object that a chat layout puts them into.

    Args:
        messages: Role (``system``, ``user`` or ``assistant``) and text of each.
        to: The layout.
    """
    key, role_key, text_key = _CHAT_KEYS[to]
    named = _SHAREGPT_ROLES if to == "sharegpt" else {}
    return {key: [{role_key: named.get(role, role), text_key: text} for role, text in messages]}


def chat_line(dialogue: Dialogue, to: ChatLayout) -> str:
    """Return a dialogue as one line of a chat layout, without the line end; the seeker is the user.

    A strategy is written beside the message, as the source has it, or as it is mapped.
    """
    scenario = dialogue.scenario
    facts = {"situation": scenario.situation, **scenario.model_dump(include=set(METADATA))}
    record = chat_record(
        (("user" if turn.speaker == "seeker" else "assistant", turn.text) for turn in dialogue.turns), to
    )
    for message, turn in zip(record[_CHAT_KEYS[to][0]], dialogue.turns, strict=True):
        label = _label(dialogue, turn)
        if turn.speaker == "supporter" and label is not None:
            message["strategy"] = label
    known = {key: value for key, value in facts.items() if value}
    return json.dumps({"id": dialogue.id, **known, **record}, ensure_ascii=False)


def chat_losses(dialogues: Sequence[Dialogue]) -> list[str]:
    """Return what a chat layout cannot hold of these dialogues, one clause each."""
    n_surveys = sum(1 for dialogue in dialogues if dialogue.survey is not None)
    return [*_losses(dialogues), *([f"{n_surveys:,} surveys"] if n_surveys else [])]


def _label(dialogue: Dialogue, turn: Turn) -> str | None:
    """Return the label to write: the source's, or what it is mapped to."""
    return turn.strategy if dialogue.mapping is not None or turn.source_strategy is None else turn.source_strategy
