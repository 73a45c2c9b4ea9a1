"""The notice that a chat shows when the user's words may be about a crisis: a screen for words, never a judgement.

A locale file holds patterns, by topic, and the text that is shown with its resources. The patterns of all shipped files
and of the user's own are looked for, whichever locale is chosen, since people write in more than one language. A screen
that misses is worse than one that shows too often: negated sentences ("I would never …") are shown the notice too, and
only sayings that a file lists ("dying to see you") are left out. A word that nobody listed is missed.

A pattern is words with blanks between them. ``*`` stands for the rest of a word, and ``a|b`` for one of several words;
``_`` stands for one word, or none. Case, accents on Latin letters, apostrophes and punctuation do not count. In a file
with ``spaceless: true`` a pattern is found anywhere, and blanks in the text do not count.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from esckit.documents import complaint, dotted, read_yaml
from esckit.errors import ConfigError
from esckit.registry import did_you_mean
from esckit.types import Record

_SHIPPED = Path(__file__).parent / "crisis"

DEFAULT = "en"

_WORDS = re.compile(r"[^\W_]+")

_A_PATTERN = re.compile(r"(?:(?:[^\W_]+\*?(?:\|[^\W_]+\*?)*|_) )*[^\W_]+\*?(?:\|[^\W_]+\*?)*")


class Resource(Record):
    """Where help is to be had.

    Attributes:
        place: Country or region.
        name: Of the service.
        contact: Number or address, and when it is open.
        source: Where this is stated.
    """

    place: str
    name: str
    contact: str
    source: str


class Locale(Record):
    """A locale file.

    Attributes:
        locale: Its name: a language, perhaps with a region.
        written: When the resources were written down, as ``YYYY-MM-DD``.
        text: What is shown above the resources; it judges nobody.
        resources: Shown in this order.
        spaceless: Whether its language writes no blanks between words.
        patterns: By topic.
        sayings: Patterns of what is not meant; they are taken out of a text first.
    """

    locale: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,15}$")
    written: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    text: str = Field(min_length=1)
    resources: tuple[Resource, ...] = Field(min_length=1)
    spaceless: bool = False
    patterns: dict[str, tuple[str, ...]] = Field(min_length=1)
    sayings: tuple[str, ...] = ()

    @field_validator("patterns")
    @classmethod
    def _are_patterns(cls, patterns: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for topic, written in patterns.items():
            wrong = next((pattern for pattern in written if not _A_PATTERN.fullmatch(pattern)), None)
            if not written or wrong is not None:
                raise ValueError(f"{topic}: {wrong!r} must be a pattern such as 'end|ending my _ life' or 'suicid*'")
        return patterns

    @cached_property
    def _topics(self) -> dict[str, re.Pattern[str]]:
        return {topic: self._pattern(written) for topic, written in self.patterns.items()}

    @cached_property
    def _not_meant(self) -> re.Pattern[str] | None:
        return self._pattern(self.sayings) if self.sayings else None

    def _pattern(self, written: Iterable[str]) -> re.Pattern[str]:
        if self.spaceless:
            return re.compile("|".join(re.escape(_folded(pattern, spaceless=True)) for pattern in written))
        return re.compile("|".join(map(_worded, written)))

    def topics(self, text: str) -> tuple[str, ...]:
        """Return the topics whose patterns stand in a text, in the order of the file."""
        folded = _folded(text, spaceless=self.spaceless)
        if self._not_meant is not None:
            folded = self._not_meant.sub("  ", folded)
        return tuple(topic for topic, pattern in self._topics.items() if pattern.search(folded))

    def lines(self) -> list[str]:
        """Return the notice, line by line."""
        listed = [f"{one.place}: {one.name}, {one.contact}" for one in self.resources]
        return [*self.text.strip().splitlines(), *(f"- {line}" for line in listed)]


def _folded(text: str, *, spaceless: bool) -> str:
    """Return the words of a text with one blank before, between and behind them; none in a language without blanks."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    letters = "".join(
        char
        for char in plain
        if unicodedata.category(char) not in ("Mn", "Cf") and char not in "'\u2019\u2018\u02bc\u00b4`"
    )
    words = _WORDS.findall(letters)
    return "".join(words) if spaceless else f" {' '.join(words)} "


def _worded(pattern: str) -> str:
    """Return the regular expression of a pattern over folded words; linear, since no two parts can share a word."""
    parts = []
    for word in pattern.split():
        if word == "_":
            parts.append(r"(?:[^ ]+ )?")
            continue
        choices = [
            re.escape(_folded(choice, spaceless=True)) + ("[^ ]*" if choice.endswith("*") else "")
            for choice in word.split("|")
        ]
        parts.append(f"(?:{'|'.join(choices)}) ")
    return f"(?<= ){''.join(parts)[:-1]}(?= )"


@dataclass(frozen=True, slots=True)
class Notice:
    """What is shown.

    Attributes:
        marks: What brought it up, as ``locale/topic``.
        locale: Whose text it is.
    """

    marks: tuple[str, ...]
    locale: Locale

    def facts(self) -> dict[str, Any]:
        """Return it as plain data, for programs."""
        resources = [one.model_dump() for one in self.locale.resources]
        return {
            "locale": self.locale.locale,
            "marks": list(self.marks),
            "text": self.locale.text.strip(),
            "resources": resources,
        }


@dataclass(frozen=True, slots=True)
class CrisisScreen:
    """Looks for words of a crisis.

    Attributes:
        locales: Whose patterns are looked for.
        chosen: Whose text is shown; None shows that of the first one that found something.
    """

    locales: tuple[Locale, ...]
    chosen: Locale | None = None

    def notice(self, text: str) -> Notice | None:
        """Return what to show for a user's words; None if nothing in them is listed."""
        found = [(locale, locale.topics(text)) for locale in self.locales]
        marks = tuple(f"{locale.locale}/{topic}" for locale, topics in found for topic in topics)
        if not marks:
            return None
        first = next(locale for locale, topics in found if topics)
        return Notice(marks, self.chosen or first)


def shipped_locales() -> tuple[str, ...]:
    """Return the names of the locale files that ship, sorted."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.yaml")))


def load_screen(name_or_path: str | None) -> CrisisScreen:
    """Return what looks for words of a crisis.

    Args:
        name_or_path: A shipped locale, or a file of one's own: its text is always the one that is shown. None shows
            that of the language that was written in.

    Raises:
        ConfigError: If there is no such locale, or its file is wrong.
    """
    shipped = tuple(_shipped(name) for name in (DEFAULT, *(name for name in shipped_locales() if name != DEFAULT)))
    if name_or_path is None:
        return CrisisScreen(shipped)
    if name_or_path.endswith((".yaml", ".yml")) or os.sep in name_or_path:
        own = _read(Path(name_or_path))
        return CrisisScreen((own, *shipped), own)
    known = {locale.locale: locale for locale in shipped}
    if name_or_path not in known:
        hint = did_you_mean(name_or_path, known) or "A locale of your own is named by its .yaml file"
        raise ConfigError(f"unknown locale {name_or_path!r}", expected=f"one of {', '.join(known)}", hint=hint)
    return CrisisScreen(shipped, known[name_or_path])


@cache
def _shipped(name: str) -> Locale:
    return _read(_SHIPPED / f"{name}.yaml")


def _read(path: Path) -> Locale:
    data = read_yaml(path, "locale file")
    try:
        return Locale.model_validate(data)
    except ValidationError as error:
        faults = [f"{dotted(detail['loc']) or 'the file'}: {complaint(detail)}" for detail in error.errors()]
        raise ConfigError(f"locale file {path}: {'; '.join(faults)}") from error
