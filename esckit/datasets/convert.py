"""Writing dialogues in the layout of ESConv's Hub data set.

One line is ``{"experience_type": …, "emotion_type": …, "problem_type": …, "situation": …, "survey_score": …,
"dialog": [{"text": …, "speaker": "usr"}, {"text": …, "speaker": "sys", "strategy": …}, …], "seeker_question1": …, …}``
in ASCII. The project's own record format is written by :func:`esckit.records.write_records`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from esckit.types import Dialogue, Survey, Turn

_SEEKER_RATINGS = (
    ("initial_emotion_intensity", "initial_intensity"),
    ("empathy", "empathy"),
    ("relevance", "relevance"),
    ("final_emotion_intensity", "final_intensity"),
)
_ANSWERS = ("seeker_question1", "seeker_question2", "supporter_question1", "supporter_question2")


def hub_line(dialogue: Dialogue) -> str:
    """Return a dialogue as one line of the Hub layout, without the line end.

    A strategy is written as the source has it; under a mapping, the mapped name takes its place.
    """
    scenario, survey = dialogue.scenario, dialogue.survey or Survey()
    record = {
        "experience_type": scenario.experience_type or "",
        "emotion_type": scenario.emotion_type or "",
        "problem_type": scenario.problem_type or "",
        "situation": scenario.situation,
        "survey_score": _survey_score(survey),
        "dialog": [_item(turn, mapped=dialogue.mapping is not None) for turn in dialogue.turns],
        **{key: survey.answers.get(key) or "" for key in _ANSWERS},
    }
    return json.dumps(record)


def _survey_score(survey: Survey) -> dict[str, dict[str, str]]:
    """Return the ratings as strings; what was not answered is absent."""
    ratings = survey.model_dump()
    seeker = {key: str(ratings[name]) for key, name in _SEEKER_RATINGS if ratings[name] is not None}
    relevance = survey.supporter_relevance
    return {"seeker": seeker, "supporter": {} if relevance is None else {"relevance": str(relevance)}}


def _item(turn: Turn, *, mapped: bool) -> dict[str, Any]:
    """Return one utterance."""
    if turn.speaker == "seeker":
        return {"text": turn.text, "speaker": "usr"}
    label = turn.strategy if mapped or turn.source_strategy is None else turn.source_strategy
    return {"text": turn.text, "speaker": "sys", **({} if label is None else {"strategy": label})}


def hub_losses(dialogues: Sequence[Dialogue]) -> list[str]:
    """Return what the Hub layout cannot hold of these dialogues, one clause each."""
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
