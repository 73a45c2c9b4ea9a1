"""From raw records to dialogues: the formats, how they are recognised, and what happens to every record.

Recognition looks at the keys of records, never at file names. :class:`RecordFields` holds one record while it is read:
it checks fields and says where in the file something was found. What it notes is held back until the record is
accepted, so the counts are about accepted records only. :class:`IssueList` is the sink that ships.

What each format looks like inside is in :mod:`esckit.data.readers`, how files are opened in
:mod:`esckit.data.containers`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from esckit.data.containers import RawRecord, raw_records
from esckit.data.decoding import OWN_DATA, Guess, StrictDecoder
from esckit.errors import DataError
from esckit.protocols import Issue, IssueSink
from esckit.registry import Registry, nearest
from esckit.text import (
    ANY_FORMAT,
    NOTHING,
    Controls,
    dialogue_id,
    json_type,
    listed,
    normalise,
    quoted,
    without_surrogates,
)
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


class IssueList:
    """The sink that ships: collects what is noted; raises on the first refusal, or counts refusals and continues.

    Args:
        go_on: Whether to continue after a refused record; an error of a whole file is raised all the same.
        strict: Whether a warning refuses its record (``--strict``).

    Attributes:
        issues: What was noted, in order.
        refusals: Why records were refused, in order.
    """

    def __init__(self, *, go_on: bool = False, strict: bool = False) -> None:
        self.go_on = go_on
        self.strict = strict
        self.issues: list[Issue] = []
        self.refusals: list[DataError] = []

    def note(self, issue: Issue) -> None:
        """Keep the issue; raise a warning that refuses its record, for the reader of records to hand to `refuse`."""
        if self.strict and issue.severity == "W":
            found = f"{issue.code} ({issue.detail})" if issue.detail else issue.code
            hint = "It is a warning: without --strict it is only counted"
            raise DataError(found, path=issue.file, record=issue.record, field=issue.field, hint=hint)
        self.issues.append(issue)

    def refuse(self, error: DataError) -> None:
        """Keep the error, or raise it."""
        if error.whole_file or not self.go_on:
            raise error
        self.refusals.append(error)


AUTO = "auto"


NEEDS: Mapping[str, str] = {
    "esconv": "`dialog` with items that have `content`",
    "esconv-hub": "`dialog` with items that have `text`, and `survey_score`",
    "ppdpp": "`dialog` with items that have `text`",
    "extes": "`content` and `scene` or `description`",
    "jsonl": "`scenario` and `turns`",
}
"""The formats, and the keys that a record of each must have."""


RECORD_READERS = Registry(
    "data set format",
    {
        "esconv": "esckit.data.readers:original_record",
        "esconv-hub": "esckit.data.readers:hub_record",
        "ppdpp": "esckit.data.readers:ppdpp_record",
        "extes": "esckit.data.readers:extes_record",
        "jsonl": "esckit.data.readers:jsonl_record",
    },
)
"""Format name to the function that reads one record of it; a user's own loader of whole files is a ``module:attr``."""


_CHAT = Guess("chat records ('messages' of 'role' and 'content')", f"They cannot be read yet. {OWN_DATA}")

_SHAREGPT = Guess("ShareGPT records ('conversations' of 'from' and 'value')", f"They cannot be read yet. {OWN_DATA}")

_CARDS = Guess(
    "role cards of ESC-Eval ('base' and 'res'), which describe seekers and hold no dialogue",
    "A scenario of self-play comes from a dialogue; docs/data.md lists the corpora that are read",
)

_MULTIESC = Guess(
    "MultiESC's copy of ESConv (items with 'all_strategy'), whose turns are joined and whose labels are fused",
    "Use ESConv itself; docs/data.md says where it is",
)


_N_PROBED = 20

_TEXT_LAYOUTS = frozenset({"esconv-hub", "ppdpp"})


class Shape(NamedTuple):
    """The format that a record looks like; ``certain`` if it is that format or a broken one of no other."""

    format: str | None
    certain: bool


def shape_of(value: Any) -> Shape:
    """Return the format that a record's keys indicate."""
    if not isinstance(value, dict):
        return Shape(None, certain=False)
    if "scenario" in value and "turns" in value:
        return Shape("jsonl", certain=True)
    if "dialog" in value:
        return _dialog_shape(value)
    if "content" in value and ("scene" in value or "description" in value):
        return Shape("extes", certain=isinstance(value["content"], list) and bool(value["content"]))
    if "scenario" in value or "turns" in value:
        return Shape("jsonl", certain=False)
    if "scene" in value and "description" in value:
        return Shape("extes", certain=False)
    return Shape(None, certain=False)


def foreign(value: Any) -> Guess | None:
    """Return which known layout a value has that is not read, None if it has none of these."""
    if isinstance(value, list):
        return foreign({"messages": value})
    if not isinstance(value, dict):
        return None
    if _first(value, "dialog").keys() & {"all_strategy", "vad"}:
        return _MULTIESC
    if shape_of(value).format is not None:
        return None
    if {"base", "res"} <= value.keys():
        return _CARDS
    items = [value, *(_first(value, key) for key in ("messages", "conversations", "conversation"))]
    if any({"from", "value"} <= item.keys() for item in items):
        return _SHAREGPT
    return _CHAT if any({"role", "content"} <= item.keys() for item in items) else None


def _first(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the first item of a list of objects, an empty one if there is none."""
    items = record.get(key)
    return items[0] if isinstance(items, list) and items and isinstance(items[0], dict) else {}


def _dialog_shape(record: Mapping[str, Any]) -> Shape:
    items = record["dialog"] if isinstance(record["dialog"], list) else []
    for item in items:
        if isinstance(item, dict) and "content" in item:
            return Shape("esconv", certain=True)
        if isinstance(item, dict) and "text" in item:
            return Shape("esconv-hub" if "survey_score" in record else "ppdpp", certain=True)
    return Shape("esconv", certain=False)


def agree(found: str, format: str) -> bool:
    """Return whether a record that looks like one format may stand in a file of another.

    The two text layouts differ by the survey only, which a record may lack.
    """
    return found == format or {found, format} <= _TEXT_LAYOUTS


def unwrapped(value: Any) -> Any:
    """Return the object inside the only column ``text`` of a row, or the value itself.

    Raises:
        DataError: If that object holds a fault (a key twice, say); it names no place.
    """
    if not isinstance(value, dict) or value.keys() != {"text"} or not isinstance(value["text"], str):
        return value
    try:
        inner, _, fault = StrictDecoder().whole(value["text"])
    except (ValueError, RecursionError):
        return value
    if not isinstance(inner, dict):
        return value
    if fault is not None:
        raise DataError(fault.found, expected=fault.expected)
    return inner


def recognise(records: Iterable[RawRecord], path: str) -> str:
    """Return the format of the first record that tells, looking at twenty at most.

    Raises:
        DataError: If none of them looks like a known format.
    """
    guess = None
    first: Any = None
    for n_seen, record in enumerate(islice(records, _N_PROBED)):
        try:
            value = unwrapped(record.value)
        except DataError:
            continue
        other = foreign(value)
        if other is not None:
            raise DataError.of_file(path, other.found, expected=", ".join(NEEDS) + " (docs/data.md)", hint=other.hint)
        shape = shape_of(value)
        if shape.format and shape.certain:
            return shape.format
        guess = guess or shape.format
        first = value if n_seen == 0 else first
    if guess:
        return guess
    found = f"the keys {listed(first)}" if isinstance(first, dict) and first else json_type(first)
    raise DataError.of_file(
        path,
        f"{found} in the first record, which is no known format",
        expected="; ".join(f"{name}: {needs}" for name, needs in NEEDS.items()),
        hint=f"If it is one of them, name it with --format. {OWN_DATA}",
    )


def recognise_file(path: Path) -> str:
    """Return the format of a file.

    Raises:
        DataError: If it is not readable, of no known format, or no record of it can be parsed.
    """
    probe = IssueList(go_on=True)
    records = raw_records(path, sink=probe)
    first = next(records, None)
    if first is None:
        raise probe.refusals[0]
    return recognise(chain([first], records), str(path))


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
            raise self.wrong_type(value, field, f"one of {', '.join(_SPEAKERS)}")
        found = _SPEAKERS.get(_SEPARATOR.sub("-", value.strip().casefold()))
        if found is None:
            raise self.unknown("speaker", value, field, _SPEAKERS)
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


RecordReader = Callable[[RecordFields], Dialogue]


# The containers that a format is not usually kept in; lines count from the second on, since one may be a lone object.
_UNUSUAL: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("esconv", "extes"), ("lines",)),
    **dict.fromkeys(("esconv-hub", "ppdpp", "jsonl"), ("array", "object")),
}


def read_dialogues(
    path: Path,
    *,
    format: str,
    sink: IssueSink,
    records: Iterable[RawRecord] | None = None,
    places: dict[str, str] | None = None,
) -> Iterator[Dialogue]:
    """Yield the dialogues of a file; refused records go to the sink and are passed over.

    Args:
        path: The file, for messages alone if ``records`` are given.
        format: Name of a shipped format.
        sink: Takes notes, warnings and refusals.
        records: Raw records from elsewhere.
        places: Where in the corpus each id stands, added to here: an id that already exists is refused. None: ids
            are computed from the dialogues, so one that comes again is the same dialogue.

    Raises:
        DataError: If the whole file is unusable, or the sink raises.
    """
    read: RecordReader = RECORD_READERS.resolve(format)
    container_noted = False
    for raw in raw_records(path, sink=sink) if records is None else records:
        fields = RecordFields(raw, path)
        try:
            _check_shape(fields, format)
            dialogue = read(fields)
            if places is not None:
                place = ", ".join([f"record {raw.index}", *([f"line {raw.line}"] if raw.line else [])])
                first = places.setdefault(dialogue.id, f"{place} of {path.name}")
                if first != f"{place} of {path.name}":
                    found = f"the id {quoted(dialogue.id)} again, first in {first}"
                    raise fields.error(found, "scenario.id", expected="every id once")
        except DataError as error:
            sink.refuse(error)
            continue
        if not container_noted and raw.container in _UNUSUAL[format] and (raw.index or raw.container != "lines"):
            fields.note("container", detail=raw.container)
            container_noted = True
        if accepted(fields.issues, sink):
            yield dialogue


def accepted(issues: Iterable[Issue], sink: IssueSink) -> bool:
    """Note the issues of one record; return False if the sink treats a warning as a refusal and continues."""
    try:
        # Warnings first: other issues of a refused record do not count.
        for issue in sorted(issues, key=lambda issue: issue.severity == "N"):
            sink.note(issue)
    except DataError as error:
        sink.refuse(error)
        return False
    return True


def _check_shape(fields: RecordFields, format: str) -> None:
    """Refuse a record that is no object, or one of another format; a JSON ``text`` column gives way to its content."""
    raw = fields.raw
    try:
        value = unwrapped(raw.value)
    except DataError as error:
        raise fields.error(error.found, "text", expected=error.expected) from error
    if value is not raw.value:
        fields.raw = RawRecord(raw.index, raw.line, value, raw.container)
        fields.note("text_column")
    other = foreign(value)
    if other is not None:
        raise fields.error(other.found, expected=f"format {format!r}: {NEEDS[format]}", hint=other.hint)
    found = shape_of(fields.object(value))
    if found.format and found.certain and not agree(found.format, format):
        wrong = fields.error(
            f"a record of format {found.format!r} ({NEEDS[found.format]})",
            expected=f"format {format!r}: {NEEDS[format]}",
            hint=f"Use --format {found.format} or leave it out",
        )
        wrong.whole_file = raw.index == 0  # then it is the format that is wrong, and not one record
        raise wrong
