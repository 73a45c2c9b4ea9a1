"""ESConv in the three layouts that circulate: original (also FailedESConv), Hub conversion, PPDPP's cut.

Original (``esconv``), one record::

    {"experience_type": "Current Experience", "emotion_type": "sadness", "problem_type": "job crisis",
     "situation": "…", "survey_score": {"seeker": {"initial_emotion_intensity": "4", "empathy": "5",
     "relevance": "5", "final_emotion_intensity": "2"}, "supporter": {"relevance": "4"}},
     "dialog": [{"speaker": "seeker", "annotation": {"feedback": "5"}, "content": "…"},
                {"speaker": "supporter", "annotation": {"strategy": "Question"}, "content": "…"}],
     "seeker_question1": "…", "seeker_question2": "…", "supporter_question1": "…", "supporter_question2": "…"}

Hub (``esconv-hub``) and ``ppdpp`` have the same keys (``ppdpp`` neither survey nor experience), and turns of the form
``{"text": "…", "speaker": "usr"}`` and ``{"text": "…", "speaker": "sys", "strategy": "Question"}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from esckit.data.fields import Metadata, Placed, RecordFields, assemble
from esckit.text import NOTHING
from esckit.types import Dialogue, Survey, Turn

_METADATA = ("experience_type", "emotion_type", "problem_type", "situation")

_ANSWERS = ("seeker_question1", "seeker_question2", "supporter_question1", "supporter_question2")

_SEEKER_RATINGS = {
    "initial_intensity": "initial_emotion_intensity",
    "final_intensity": "final_emotion_intensity",
    "empathy": "empathy",
    "relevance": "relevance",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """What differs between the layouts."""

    format: str
    text_key: str
    speakers: tuple[str, str]
    has_survey: bool


_ORIGINAL = Layout("esconv", "content", ("seeker", "supporter"), has_survey=True)

_HUB = Layout("esconv-hub", "text", ("usr", "sys"), has_survey=True)

_PPDPP = Layout("ppdpp", "text", ("usr", "sys"), has_survey=False)


def _read(fields: RecordFields, layout: Layout) -> Dialogue:
    record = fields.object(fields.raw.value)
    fields.extra_keys(record, (*_METADATA, *_ANSWERS, "survey_score", "dialog"))
    items = fields.list(record.get("dialog", NOTHING), "dialog")
    turn = _original_turn if layout is _ORIGINAL else _text_turn
    placed = [
        Placed(f"dialog[{i}]", turn(fields, fields.object(item, f"dialog[{i}]"), f"dialog[{i}]", layout))
        for i, item in enumerate(items)
    ]
    metadata = Metadata(
        situation=fields.metadata(record, "situation"),
        emotion_type=fields.metadata(record, "emotion_type"),
        problem_type=fields.metadata(record, "problem_type"),
        experience_type=fields.optional_text(record.get("experience_type"), "experience_type"),
    )
    # A Hub record whose survey was lost reads as PPDPP's layout, so there the survey is taken where it stands.
    survey = _survey(fields, record) if layout.has_survey or "survey_score" in record else None
    return assemble(fields, placed, metadata, survey, corpus="esconv", format=layout.format)


def _original_turn(fields: RecordFields, item: dict[str, Any], place: str, layout: Layout) -> Turn:
    fields.extra_keys(item, ("speaker", "annotation", "content"), place)
    annotation_place = f"{place}.annotation"
    annotation = item.get("annotation")
    if annotation is None:
        fields.note("survey_missing", annotation_place)
        annotation = {}
    fields.object(annotation, annotation_place)
    fields.extra_keys(annotation, ("strategy", "feedback"), annotation_place)
    return _turn(fields, item, annotation, (place, annotation_place), layout)


def _text_turn(fields: RecordFields, item: dict[str, Any], place: str, layout: Layout) -> Turn:
    fields.extra_keys(item, ("speaker", "text", "strategy"), place)
    labels = {"strategy": item["strategy"]} if "strategy" in item else {}
    return _turn(fields, item, labels, (place, place), layout)


def _turn(
    fields: RecordFields, item: dict[str, Any], labels: dict[str, Any], places: tuple[str, str], layout: Layout
) -> Turn:
    """Read one utterance; ``places`` are the field paths of the item and of the object that holds its labels."""
    place, labels_place = places
    speaker = fields.speaker(item.get("speaker", NOTHING), f"{place}.speaker", layout.speakers)
    text = fields.utterance(item.get(layout.text_key, NOTHING), f"{place}.{layout.text_key}")
    strategy_place, feedback_place = f"{labels_place}.strategy", f"{labels_place}.feedback"
    if speaker == "seeker":
        if labels.get("strategy") not in (None, ""):
            fields.warn("misplaced_annotation", strategy_place)
        feedback = fields.rating(labels["feedback"], feedback_place) if "feedback" in labels else None
        return Turn(speaker=speaker, text=text, feedback=feedback)
    if labels.get("feedback") not in (None, ""):
        fields.warn("misplaced_annotation", feedback_place)
    label = fields.label(labels.get("strategy"), strategy_place)
    if label is None:
        fields.warn("unlabelled", strategy_place)
    return Turn(speaker=speaker, text=text, source_strategy=label)


def _survey(fields: RecordFields, record: dict[str, Any]) -> Survey | None:
    """Read ratings and exit answers; None if the record has neither."""
    score = record.get("survey_score")
    ratings: dict[str, int | None] = {}
    if score is None:
        fields.note("survey_missing", "survey_score")
    else:
        fields.object(score, "survey_score")
        fields.extra_keys(score, ("seeker", "supporter"), "survey_score")
        ratings = _side(fields, score, "seeker", _SEEKER_RATINGS)
        ratings |= _side(fields, score, "supporter", {"supporter_relevance": "relevance"})
    answers = {}
    for key in _ANSWERS:
        answers[key] = fields.optional_text(record.get(key), key)
        if answers[key] is None:
            fields.note("survey_missing", key)
    if not score and not any(answers.values()):
        return None
    return Survey(**ratings, answers=answers)


def _side(fields: RecordFields, score: dict[str, Any], side: str, names: dict[str, str]) -> dict[str, int | None]:
    """Read the ratings of one side: our name to the rating; an absent side has none."""
    place = f"survey_score.{side}"
    found = score.get(side)
    if found is None or found == {}:
        fields.note("survey_missing", place)
        return {}
    fields.object(found, place)
    fields.extra_keys(found, names.values(), place)
    return {ours: fields.rating(found.get(key), f"{place}.{key}") for ours, key in names.items()}


original_record = partial(_read, layout=_ORIGINAL)
hub_record = partial(_read, layout=_HUB)
ppdpp_record = partial(_read, layout=_PPDPP)
