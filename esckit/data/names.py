"""What the names in a file stand for: speakers and columns, as the user says, or as they are usually called."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from esckit.config.data import Columns, Side
from esckit.errors import ConfigError, DataError
from esckit.registry import nearest
from esckit.text import listed, quoted
from esckit.types import Speaker

SPEAKERS: Mapping[str, Speaker] = {
    **dict.fromkeys(
        (
            *("seeker", "usr", "user", "speaker", "patient", "client", "help-seeker", "human"),
            *("求助者", "来访者", "患者", "病人", "用户"),
        ),
        "seeker",
    ),
    **dict.fromkeys(
        (
            *("supporter", "sys", "assistant", "listener", "therapist", "counselor", "counsellor", "ai", "helper"),
            *("gpt", "支持者", "帮助者", "咨询师", "心理咨询师", "治疗师", "助手"),
        ),
        "supporter",
    ),
}
"""Names of speakers that are understood in every format, whatever their case."""

INSTRUCTIONS: Mapping[str, Side] = dict.fromkeys(("system", "developer"), "ignore")
"""Names in chat records of those who instruct a model; what they say is no turn."""

_USUAL: Mapping[str, tuple[str, ...]] = {
    "dialogue": (
        *("dialogue", "dialog", "conversation", "conv", "session"),
        *("dialogue_id", "dialog_id", "conversation_id", "conv_id", "session_id"),
    ),
    "messages": ("messages", "conversations", "conversation"),
    "speaker": ("role", "from", "speaker"),
    "text": ("content", "value", "text", "utterance"),
}
"""Usual names of columns and keys; any other column is usually called what it holds."""

_SEPARATOR = re.compile(r"[\s_]+")

_PLAIN = re.compile(r"[A-Za-z][\w-]*")


class Names:
    """The names of one corpus.

    Args:
        roles: Names of speakers, and what each stands for.
        columns: Names of columns or keys, by what they hold (the fields of :class:`~esckit.config.data.Columns`).

    Attributes:
        columns: As given.
        spoken: How many turns or messages each name has in the records accepted so far, and what it stands for.
        found: The column that holds each thing, where a table was read.

    Raises:
        ConfigError: If two spellings of one name stand for different sides, or there is no such column.
    """

    def __init__(self, roles: Mapping[str, Side] | None = None, columns: Mapping[str, str] | None = None) -> None:
        self.columns = dict(columns or {})
        self.spoken: Counter[tuple[str, Side]] = Counter()
        self.found: dict[str, str] = {}
        self._given = dict(roles or {})
        self._roles: dict[str, Side] = {}
        for word, side in self._given.items():
            if self._roles.setdefault(role_key(word), side) != side:
                raise ConfigError(f"the role {quoted(word)} in two spellings that stand for different sides")
        unknown = next((what for what in self.columns if what not in Columns.model_fields), None)
        if unknown is not None:
            close = nearest(unknown, Columns.model_fields)
            asked = f"; did you mean {close!r}?" if close else ""
            raise ConfigError(
                f"no column can be given for {quoted(unknown)}",
                expected=f"one of {', '.join(Columns.model_fields)}{asked}",
            )

    def side(self, word: str, *, more: Mapping[str, Side] | None = None) -> Side | None:
        """Return what a speaker's name stands for, None if that cannot be told.

        Args:
            word: The name.
            more: What a format understands beside the usual names; what the user says wins.
        """
        key = role_key(word)
        return self._roles.get(key) or (more or {}).get(key) or SPEAKERS.get(key)

    def column(self, what: str, keys: Collection[str]) -> str | None:
        """Return the key that holds something: the one that the user names, else the first usual one, or None."""
        return next(iter(self.candidates(what, keys)), None)

    def candidates(self, what: str, keys: Collection[str]) -> list[str]:
        """Return the keys that may hold something; only one if the user names it."""
        if what in self.columns:
            return [key for key in keys if key == self.columns[what]]
        usual = {_column_key(name): place for place, name in enumerate(_USUAL.get(what, (what,)))}
        free = [key for key in keys if _column_key(key) in usual and key not in self.columns.values()]
        return sorted(free, key=lambda key: usual[_column_key(key)])

    def is_column(self, name: str) -> bool:
        """Return whether a name is that of a column, as the user says or as columns are usually called."""
        usual = (*_USUAL, *(word for words in _USUAL.values() for word in words), *Columns.model_fields)
        return name in self.columns.values() or _column_key(name) in {_column_key(word) for word in usual}

    def unspoken(self) -> list[str]:
        """Return the roles given that no record has."""
        seen = {role_key(word) for word, _ in self.spoken}
        return [word for word in self._given if role_key(word) not in seen]


def role_key(word: str) -> str:
    """Return a speaker's name as it is compared: case, outer space, ``_`` and inner space do not count."""
    return _SEPARATOR.sub("-", word.strip().casefold())


def _column_key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def how_to_tell(words: Sequence[str], known: Collection[Side]) -> str:
    """Return what to write so that the sides of these speakers are known.

    Args:
        words: Names that cannot be told, in order of appearance.
        known: Sides that other names of the same dialogue stand for.
    """
    open_sides = [side for side in ("seeker", "supporter") if side not in known]
    words = [quoted(word)[1:-1] for word in words]
    pairs = dict(zip(words, [*open_sides, *("ignore" for _ in words)], strict=False))
    options = " ".join(f"--role {shlex.quote(f'{word}={side}')}" for word, side in pairs.items())
    recipe = ", ".join(
        f"{word if _PLAIN.fullmatch(word) else json.dumps(word)}: {side}" for word, side in pairs.items()
    )
    either = f", if {quoted(words[0])} is the one who seeks help" if len(open_sides) > 1 else ""
    return f"Say who is who: {options} (in a recipe: data: {{roles: {{{recipe}}}}}){either}"


def check_distinct(path: object, columns: Sequence[str]) -> None:
    """Refuse a table of which two columns have one name.

    Raises:
        DataError: With the first such name.
    """
    name, n = max(Counter(columns).items(), key=lambda item: item[1], default=("", 0))
    if n > 1:
        found = f"{n} columns that are called {quoted(name)}"
        raise DataError.of_file(path, found, expected="a name of its own for every column")


def missing_columns(path: object, missing: Sequence[str], keys: Sequence[str], names: Names) -> DataError:
    """Return the error for a table that lacks columns, with the nearest of those it has."""
    wanted = ", ".join(f"{what} ({quoted(names.columns[what])})" if what in names.columns else what for what in missing)
    guesses: dict[str, str] = {}
    for what in missing:
        usual = (names.columns[what],) if what in names.columns else _USUAL.get(what, (what,))
        free = [key for key in keys if key not in {*guesses.values(), *names.columns.values()}]
        close = next((close for name in usual if (close := nearest(name, free))), None)
        guesses[what] = close or "NAME"
    options = " ".join(f"--column {shlex.quote(f'{what}={name}')}" for what, name in guesses.items())
    recipe = ", ".join(f"{what}: {name}" for what, name in guesses.items())
    return DataError.of_file(
        path,
        f"no column for {wanted} among {listed(keys)}",
        expected="columns that tell dialogue, speaker and text",
        hint=f"Say which it is: {options} (in a recipe: data: {{columns: {{{recipe}}}}})",
    )
