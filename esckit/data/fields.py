"""One raw record under examination: reads its fields, and says where in the file something was met.

What was noted is held back until the record is accepted, so that the counts speak of accepted records only.

From turns to a dialogue: what every layout has in common once its own keys are read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from esckit.data.containers import RawRecord
from esckit.errors import DataError
from esckit.protocols import Issue
from esckit.registry import nearest
from esckit.text import ANY_FORMAT, NOTHING, Controls, dialogue_id, json_type, normalise, quoted, without_surrogates
from esckit.types import Dialogue, Scenario, Source, Speaker, Survey, Turn

LONG_TEXT = 20_000

MAX_TEXT = 1_000_000

_RATING = re.compile(r"([0-9])(?:\.0+)?")

_CONTROLS = Controls(ANY_FORMAT)

_SEPARATOR = re.compile(r"[\s_]+")

_SPEAKERS: dict[str, Speaker] = {
    **dict.fromkeys(("seeker", "usr", "user", "speaker", "patient", "client", "help-seeker"), "seeker"),
    **dict.fromkeys(
        ("supporter", "sys", "assistant", "listener", "therapist", "counselor", "counsellor", "ai"), "supporter"
    ),
}


class RecordFields:
    """Reads the fields of one record.

    Args:
        raw: The record.
        path: File as the user gave it.

    Attributes:
        issues: What was noted so far.
    """

    def __init__(self, raw: RawRecord, path: Path) -> None:
        self.raw = raw
        self.path = path
        self.issues: list[Issue] = []

    # ------------------------------------------------------------ saying what was met

    def note(
        self, code: str, field: str | None = None, *, severity: Literal["N", "W"] = "N", detail: str | None = None
    ) -> None:
        """Note something that can be lived with."""
        self.issues.append(Issue(code, severity, self.path.name, self.raw.index, field, detail))

    def warn(self, code: str, field: str | None = None, *, detail: str | None = None) -> None:
        """Note something that was dropped, ignored or is doubtful."""
        self.note(code, field, severity="W", detail=detail)

    def error(
        self, found: str, field: str | None = None, *, expected: str | None = None, hint: str | None = None
    ) -> DataError:
        """Return the error that refuses this record."""
        return DataError(
            found,
            path=str(self.path),
            record=self.raw.index,
            line=self.raw.line,
            field=field,
            expected=expected,
            hint=hint,
        )

    def wrong_type(self, value: Any, field: str | None, expected: str) -> DataError:
        """Return the error for a value of a wrong JSON type."""
        return self.error(json_type(value), field, expected=expected)

    # ------------------------------------------------------------ containers

    def object(self, value: Any, field: str | None = None) -> dict[str, Any]:
        """Return the value if it is an object."""
        if not isinstance(value, dict):
            raise self.wrong_type(value, field, "an object")
        return value

    def list(self, value: Any, field: str) -> list[Any]:
        """Return the value if it is an array."""
        if not isinstance(value, list):
            raise self.wrong_type(value, field, "an array")
        return value

    def extra_keys(self, found: Mapping[str, Any], known: Iterable[str], field: str = "") -> None:
        """Note the keys that the layout does not have."""
        names = frozenset(known)
        for key in (key for key in found if key not in names):
            self.note("extra_key", field or None, detail=quoted(key))

    # ------------------------------------------------------------ values

    def text(self, value: Any, field: str) -> str:
        """Return a normalised text."""
        if not isinstance(value, str):
            raise self.wrong_type(value, field, "a string")
        text, codes = normalise(value)
        for code in codes:
            self.note(code, field)
        for control in _CONTROLS.found(text):
            self.note("control_token", field, detail=quoted(control))
        return text

    def utterance(self, value: Any, field: str) -> str:
        """Return a normalised utterance of acceptable length."""
        if isinstance(value, str) and len(value) > LONG_TEXT:
            if len(value) > MAX_TEXT:
                raise self.error(
                    f"an utterance of {len(value):,} characters", field, expected=f"at most {MAX_TEXT:,} characters"
                )
            self.warn("long_text", field, detail=f"{len(value):,} characters")
        return self.text(value, field)

    def optional_text(self, value: Any, field: str) -> str | None:
        """Return a normalised text, None if it is missing, null or empty."""
        if value is None or value is NOTHING:
            return None
        return self.text(value, field) or None

    def metadata(self, record: Mapping[str, Any], key: str) -> str | None:
        """Return a text that the layout has in every record; warn if it is missing."""
        text = self.optional_text(record.get(key), key)
        if text is None:
            self.warn("metadata_missing", key)
        return text

    def rating(self, value: Any, field: str) -> int | None:
        """Return a rating 1-5, given as a number or a string; None if it is missing or outside that range.

        A whole number may be written as 4.0: columns with gaps come so out of pandas and Arrow.
        """
        if value is None or value is NOTHING:
            self.note("survey_missing", field)
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.wrong_type(value, field, "a rating from 1 to 5")
        written = _RATING.fullmatch(value.strip() if isinstance(value, str) else str(value))
        rating = int(written.group(1)) if written else None
        if rating == 0:
            self.note("rating_zero", field)
        elif rating is None or rating > 5:
            self.warn("rating_invalid", field)
        return rating if rating is not None and 1 <= rating <= 5 else None

    def speaker(self, value: Any, field: str, own: Collection[str]) -> Speaker:
        """Return who speaks; ``own`` are the layout's own two words, any other accepted word is noted."""
        expected = f"one of {', '.join(_SPEAKERS)}"
        if not isinstance(value, str):
            raise self.wrong_type(value, field, expected)
        found = _SPEAKERS.get(_SEPARATOR.sub("-", value.strip().casefold()))
        if found is None:
            close = nearest(value, _SPEAKERS) if len(value) < 100 else None
            asked = f"; did you mean {close!r}?" if close else ""
            raise self.error(f"the unknown speaker {quoted(value)}", field, expected=expected + asked)
        if value not in own:
            self.note("speaker_alias", field, detail=quoted(value))
        return found

    def label(self, value: Any, field: str) -> str | None:
        """Return a strategy label exactly as it stands, None if it is missing, null or blank."""
        if value is None or value is NOTHING:
            return None
        if not isinstance(value, str):
            raise self.wrong_type(value, field, "a string")
        return without_surrogates(value) if value.strip() else None


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
