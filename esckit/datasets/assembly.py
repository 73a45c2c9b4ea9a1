"""From turns to a dialogue: what every layout has in common once its own keys are read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from esckit.datasets.fields import RecordFields
from esckit.datasets.text import dialogue_id
from esckit.types import Dialogue, Scenario, Source, Survey, Turn


class Placed(NamedTuple):
    """A turn and the field path that it was read from."""

    field: str
    turn: Turn


class Metadata(NamedTuple):
    """What a record says about the dialogue as a whole."""

    situation: str | None
    emotion_type: str | None = None
    problem_type: str | None = None
    experience_type: str | None = None


def keep_spoken(fields: RecordFields, placed: Sequence[Placed]) -> list[Placed]:
    """Drop turns without text, with a warning.

    Raises:
        DataError: If none is left.
    """
    kept = []
    for item in placed:
        if item.turn.text:
            kept.append(item)
        else:
            fields.warn("empty_text", item.field)
    if not kept:
        raise fields.error("no utterance", expected="at least one")
    return kept


def note_turn_pattern(fields: RecordFields, placed: Sequence[Placed]) -> None:
    """Note what is odd, and yet kept, in the sequence of turns."""
    if len({item.turn.speaker for item in placed}) == 1:
        fields.warn("one_sided")
    in_run = False
    for before, item in pairwise(placed):
        if item.turn.speaker != before.turn.speaker:
            in_run = False
            continue
        if not in_run:
            fields.note("same_speaker_run", before.field)
        in_run = True
        if item.turn.text == before.turn.text:
            fields.note("repeat", item.field)
    rated_since = False
    for item in placed:
        if item.turn.speaker == "supporter":
            rated_since = True
        elif item.turn.feedback is not None:
            if not rated_since:
                fields.note("feedback_without_target", item.field)
            rated_since = False


def assemble(
    fields: RecordFields,
    placed: Sequence[Placed],
    metadata: Metadata,
    survey: Survey | None,
    *,
    corpus: str,
    format: str,
) -> Dialogue:
    """Return the dialogue of a foreign corpus.

    Raises:
        DataError: If no turn has text.
    """
    kept = keep_spoken(fields, placed)
    note_turn_pattern(fields, kept)
    turns = tuple(item.turn for item in kept)
    return Dialogue(
        scenario=Scenario(
            id=dialogue_id(corpus, ((turn.speaker, turn.text) for turn in turns)),
            situation=metadata.situation or "",
            emotion_type=metadata.emotion_type,
            problem_type=metadata.problem_type,
            experience_type=metadata.experience_type,
        ),
        turns=turns,
        survey=survey,
        source=Source(corpus=corpus, format=format, file=fields.path.name, record=fields.raw.index),
    )
