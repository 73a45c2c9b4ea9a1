"""The fields of one record, read and checked: what the readers of all formats share.

:class:`RecordFields` says where in the file something was found. What it notes is held back until the record is
accepted, so the counts are about accepted records only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from esckit.config.data import Side
from esckit.data.containers import RawRecord
from esckit.data.names import SPEAKERS, Names, how_to_tell
from esckit.errors import DataError
from esckit.protocols import Issue
from esckit.registry import nearest
from esckit.text import (
    ANY_FORMAT,
    NOTHING,
    Controls,
    dialogue_id,
    json_type,
    normalise,
    quoted,
    without_surrogates,
)
from esckit.types import Dialogue, Scenario, Source, Speaker, Survey, Turn

OWN = "own"
"""Name of the corpus of dialogues that come in a general format; ids begin with it."""

LONG_TEXT = 20_000

MAX_TEXT = 1_000_000

ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""What an id may be."""

_N_ROLES = 8

_RATING = re.compile(r"([0-9])(?:\.0+)?")

_CONTROLS = Controls(ANY_FORMAT)


class RecordFields:
    """Reads the fields of one record.

    Args:
        raw: The record.
        path: File as the user gave it.
        names: What the names in the file stand for.

    Attributes:
        issues: What was noted so far.
        spoken: Names of speakers that were read so far, and what each stands for.
    """

    def __init__(self, raw: RawRecord, path: Path, names: Names | None = None) -> None:
        self.raw = raw
        self.path = path
        self.names = names or Names()
        self.issues: list[Issue] = []
        self.spoken: list[tuple[str, Side]] = []

    def note(
        self, code: str, field: str | None = None, *, severity: Literal["N", "W"] = "N", detail: str | None = None
    ) -> None:
        """Note a recoverable problem."""
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

    def unknown(self, what: str, word: str, field: str | None, known: Collection[str]) -> DataError:
        """Return the error for a word that is none of the known ones, with the nearest of them."""
        close = nearest(word, known) if len(word) < 100 else None
        asked = f"; did you mean {close!r}?" if close else ""
        return self.error(f"the unknown {what} {quoted(word)}", field, expected=f"one of {', '.join(known)}{asked}")

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
        if not isinstance(value, str):
            raise self.wrong_type(value, field, f"one of {', '.join(SPEAKERS)}")
        found = self.names.side(value)
        if found is None:
            error = self.unknown("speaker", value, field, SPEAKERS)
            known = {side for _, side in self.spoken}
            error.hint = how_to_tell([value], known if len(known) == 1 else ())
            raise error
        if found not in ("seeker", "supporter"):
            raise self.error(
                f"the speaker {quoted(value)}, who stands for {found}",
                field,
                expected="seeker or supporter; only messages, sharegpt and table know more",
            )
        self.spoken.append((value, found))
        if value not in own:
            self.note("speaker_alias", field, detail=quoted(value))
        return found

    def sides(self, words: Sequence[str], field: str, *, more: Mapping[str, Side] | None = None) -> tuple[Side, ...]:
        """Return what every speaker of a dialogue stands for.

        Args:
            words: Who speaks, turn by turn.
            field: Where the names stand.
            more: Names that the format understands beside the usual ones.

        Raises:
            DataError: If that cannot be told of some of them; it names all of them, and says what to write. If it is
                the first record, the whole file needs the user's word, and not one record.
        """
        found = [self.names.side(word, more=more) for word in words]
        unknown = Counter(word for word, side in zip(words, found, strict=True) if side is None)
        if unknown:
            shown = ", ".join(f"{quoted(word)} ({n:,})" for word, n in list(unknown.items())[:_N_ROLES])
            more_of_them = f" and {len(unknown) - _N_ROLES:,} more" if len(unknown) > _N_ROLES else ""
            error = self.error(
                f"speakers whose side cannot be told: {shown}{more_of_them}",
                field,
                expected="names such as seeker, user, client, or supporter, assistant, therapist (docs/data.md)",
                hint=how_to_tell(list(unknown)[:_N_ROLES], {side for side in found if side is not None}),
            )
            error.whole_file = self.raw.index == 0
            raise error
        sides = tuple(side for side in found if side is not None)
        self.spoken += zip(words, sides, strict=True)
        return sides

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


def checked_turns(fields: RecordFields, placed: Iterable[Placed]) -> tuple[Turn, ...]:
    """Return the turns that have text; drop the others with a warning.

    Raises:
        DataError: If none has text.
    """
    kept = []
    for item in placed:
        if item.turn.text:
            kept.append(item)
        else:
            fields.warn("empty_text", item.field)
    if not kept:
        raise fields.error("no utterance", expected="at least one")
    _note_pattern(fields, kept)
    return tuple(item.turn for item in kept)


def _note_pattern(fields: RecordFields, kept: Sequence[Placed]) -> None:
    """Note what is odd, and yet kept, in a sequence of turns."""
    if len({item.turn.speaker for item in kept}) == 1:
        fields.warn("one_sided")
    in_run = False
    for before, item in pairwise(kept):
        same = item.turn.speaker == before.turn.speaker
        if same and not in_run:
            fields.note("same_speaker_run", before.field)
        if same and item.turn.text == before.turn.text:
            fields.note("repeat", item.field)
        in_run = same
    rated_since = False
    for item in kept:
        if item.turn.speaker == "supporter":
            rated_since = True
        elif item.turn.feedback is not None:
            if not rated_since:
                fields.note("feedback_without_target", item.field)
            rated_since = False


def assemble(
    fields: RecordFields,
    placed: Iterable[Placed],
    scenario: Mapping[str, str | None],
    survey: Survey | None,
    *,
    corpus: str,
    format: str,
) -> Dialogue:
    """Return the dialogue of a foreign corpus; ``scenario`` holds the fields of a scenario but its id.

    Raises:
        DataError: If no turn has text.
    """
    turns = checked_turns(fields, placed)
    own_id = dialogue_id(corpus, ((turn.speaker, turn.text) for turn in turns))
    return Dialogue(
        scenario=Scenario.model_validate({**scenario, "situation": scenario["situation"] or "", "id": own_id}),
        turns=turns,
        survey=survey,
        source=Source(corpus=corpus, format=format, file=fields.path.name, record=fields.raw.index),
    )


def assemble_own(
    fields: RecordFields,
    placed: Iterable[Placed],
    scenario: Mapping[str, str | None],
    *,
    format: str,
    own_id: str | None = None,
) -> Dialogue:
    """Return a dialogue of a user's own file, which belongs to no corpus that is known.

    Args:
        fields: The record.
        placed: Its turns.
        scenario: The fields of a scenario but its id.
        format: The format it was in.
        own_id: The id in the record. It is kept if it is one that esckit made and the turns confirm, so that a dialogue
            which was converted is still known to be the same one.

    Raises:
        DataError: If no turn has text.
    """
    found = assemble(fields, placed, scenario, None, corpus=OWN, format=format)
    if own_id is None or not ID.fullmatch(own_id) or own_id.rpartition("-")[2] != found.id.rpartition("-")[2]:
        return found
    return found.model_copy(update={"scenario": found.scenario.model_copy(update={"id": own_id})})
