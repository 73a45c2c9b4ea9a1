"""Taxonomies of support strategies: YAML files that ship, or the user's own.

A taxonomy is an ordered set of names with abbreviations, definitions, stages and spellings. The order in the file fixes
display and tensor index *within a run*; files and records hold names, never indices. Stages inform prompts and analyses
and constrain nothing. Not here: mappings between them (:mod:`esckit.strategies.mapping`), and how a user's own travels
with what is made with it (:mod:`esckit.strategies.kept`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path

from esckit.documents import Place
from esckit.errors import ConfigError, DataError
from esckit.records import digest
from esckit.strategies.files import Fault, mappings_between, parsed, raise_faults, read, shipped_names
from esckit.types import Record

ANY_STAGE = "any"

KEPT = "taxonomy.yaml"
"""The file in which a run folder keeps a taxonomy of the user's own."""

_MIN_STRATEGIES, _MAX_STRATEGIES = 2, 64

_UNFIT = frozenset('"\n\r[]')


class Strategy(Record):
    """One support strategy.

    Attributes:
        stage: The stage it belongs to first, or ``any``.
        stages: Further stages in which it is used.
        aliases: Other spellings found in corpora.
        fallback: True for the catch-all.
    """

    name: str
    abbr: str
    definition: str
    stage: str
    stages: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    fallback: bool = False

    def spellings(self) -> Iterator[tuple[Place, str]]:
        """Yield what the strategy may be called, each with the field that it stands in."""
        yield ("name",), self.name
        yield ("abbr",), self.abbr
        for position, alias in enumerate(self.aliases):
            yield ("aliases", position), alias


class Taxonomy(Record):
    """An ordered set of strategies with lookup by name, abbreviation and alias."""

    name: str
    title: str
    source: str
    stages: tuple[str, ...]
    strategies: tuple[Strategy, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names in taxonomy order."""
        return tuple(strategy.name for strategy in self.strategies)

    @property
    def abbrs(self) -> tuple[str, ...]:
        """Abbreviations in taxonomy order."""
        return tuple(strategy.abbr for strategy in self.strategies)

    @property
    def fallback(self) -> Strategy | None:
        """The catch-all, None if the taxonomy has none."""
        return next((strategy for strategy in self.strategies if strategy.fallback), None)

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of SHA-256 over the taxonomy's content."""
        return digest(self.model_dump(mode="json"))

    @cached_property
    def _by_key(self) -> dict[str, Strategy]:
        """Every spelling's key with its strategy."""
        return {label_key(text): strategy for strategy in self.strategies for _, text in strategy.spellings()}

    def by_name(self, name: str) -> Strategy:
        """Return the strategy of exactly this name.

        Raises:
            DataError: If there is none.
        """
        return self.strategies[self.index(name)]

    def index(self, name: str) -> int:
        """Return the position of exactly this name.

        Raises:
            DataError: If there is none.
        """
        if name not in self.names:
            raise self._unknown(name)
        return self.names.index(name)

    def find(self, label: str) -> Strategy | None:
        """Return the strategy that a label means, None if it means none or more than one."""
        key = label_key(label)
        if key in self._by_key:
            return self._by_key[key]
        head, bracket, abbr = key.removesuffix(")").rpartition("(")
        strategy = self._by_key.get(head.strip()) if bracket and key.endswith(")") else None
        return strategy if strategy is not None and label_key(strategy.abbr) == abbr.strip() else None

    def resolve(self, label: str) -> Strategy:
        """Return the strategy that a label means.

        Case, one pair of brackets around the label, its own abbreviation in round brackets behind it, ``&`` for "and"
        and the kind of space or hyphen do not matter.

        Raises:
            DataError: If the taxonomy does not know the label, or the label names two of its strategies.
        """
        strategy = self.find(label)
        if strategy is None:
            raise self._unknown(label)
        return strategy

    def _fused(self, label: str) -> tuple[str, str] | None:
        """Return the two strategies that a label such as "A or B" runs together, None if it is no such label."""
        key = label_key(label)
        for joint in re.finditer(r" or | and |/|,", key):
            left, right = self.find(key[: joint.start()]), self.find(key[joint.end() :])
            if left is not None and right is not None and left is not right:
                return left.name, right.name
        return None

    def _unknown(self, label: str) -> DataError:
        """Return the error for a label that means no strategy of this taxonomy."""
        shown, known = f"{label[:60]!r}", ", ".join(self.names)
        keep = "unknown_strategy: keep reads such a turn as unlabelled"
        fused = self._fused(label)
        if fused is not None:
            return DataError(
                f"the ambiguous strategy {shown}, which may be {fused[0]} or {fused[1]}",
                field="strategy",
                expected=f"one strategy of taxonomy {self.name} ({known})",
                hint=keep,
            )
        near = self._nearest(label)
        hints = [f"nearest: {', '.join(near)}"] if near else []
        return DataError(
            f"the unknown strategy {shown}",
            field="strategy",
            expected=f"one of taxonomy {self.name} ({known})",
            hint="; ".join([*hints, *self._known_elsewhere(label), keep]),
        )

    def _nearest(self, label: str) -> list[str]:
        """Return up to two names that come closest: those that hold all words of the label, then the similar ones."""
        key = label_key(label)
        words = set(key.split())
        holding = [strategy.name for known, strategy in self._by_key.items() if words and words <= set(known.split())]
        similar = [self._by_key[known].name for known in difflib.get_close_matches(key, list(self._by_key), cutoff=0.0)]
        return list(dict.fromkeys(holding + similar))[:2]

    def _known_elsewhere(self, label: str) -> list[str]:
        """Return a clause that names the other shipped taxonomies which know the label, if there are any."""
        others = [name for name in shipped_names("taxonomy") if name != self.name and load_taxonomy(name).find(label)]
        if not others:
            return []
        mappings = [name for other in others for name in mappings_between(other, self.name)]
        through = f" (mapping: {' or '.join(mappings)})" if mappings else ""
        return [f"known to taxonomy {', '.join(others)}{through}"]


def label_key(label: str) -> str:
    """Return what labels are compared by: case, enclosing brackets, ``&`` and the kind of space or hyphen aside."""
    text = " ".join(re.split(r"[\s_\-\u2010\u2011]+", label.casefold().replace("&", " and "))).strip()
    inner = re.fullmatch(r"\[(.*)\]|\((.*)\)", text)
    return (inner[1] or inner[2] or "").strip() if inner else text


def load_taxonomy(name_or_path: str) -> Taxonomy:
    """Return a shipped taxonomy by name, or the user's own by its YAML file or by a run that was made with it.

    Raises:
        ConfigError: If there is none, or with all faults of the file at once.
    """
    if name_or_path in shipped_names("taxonomy"):
        return _load_shipped(name_or_path)
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        return read_taxonomy(name_or_path)
    if not (folder / KEPT).is_file():
        raise ConfigError(
            f"taxonomy {name_or_path}: a folder that keeps no taxonomy of its own",
            expected=f"a run that was made with a taxonomy of your own (it holds {KEPT}), a .yaml file, "
            f"or one of {', '.join(shipped_names('taxonomy'))}",
        )
    return read_taxonomy(str(folder / KEPT))


def read_taxonomy(name_or_path: str) -> Taxonomy:
    """Read and check one file, see :func:`load_taxonomy`."""
    faults: list[Fault] = []
    content, lines = read("taxonomy", name_or_path)
    taxonomy = parsed(Taxonomy, content, faults, Strategy)
    if taxonomy is not None:
        faults += _faults(taxonomy)
    raise_faults("taxonomy", name_or_path, faults, lines)
    assert taxonomy is not None
    return taxonomy


@cache
def _load_shipped(name: str) -> Taxonomy:
    """Read a shipped taxonomy once; it is immutable."""
    return read_taxonomy(name)


def _faults(head: Taxonomy) -> list[Fault]:
    """Return what is wrong with a taxonomy beyond its shape."""
    faults = [
        Fault((field,), "empty") for field, text in (("name", head.name), ("title", head.title)) if not text.strip()
    ]
    n = len(head.strategies)
    if not _MIN_STRATEGIES <= n <= _MAX_STRATEGIES:
        faults.append(Fault(("strategies",), f"{n} found, {_MIN_STRATEGIES} to {_MAX_STRATEGIES} expected"))
    stages, known = {*head.stages, ANY_STAGE}, f"expected one of {', '.join((*head.stages, ANY_STAGE))}"
    owners: dict[str, tuple[int, str]] = {}
    for position, strategy in enumerate(head.strategies):
        place = ("strategies", position)
        if not strategy.definition.strip():
            faults.append(Fault((*place, "definition"), "empty"))
        for field, stage in (("stage", strategy.stage), *(("stages", stage) for stage in strategy.stages)):
            if stage not in stages:
                faults.append(Fault((*place, field), f"unknown stage {stage!r}, {known}"))
        faults += _spelling_faults(position, strategy, owners)
    fallbacks = sum(strategy.fallback for strategy in head.strategies)
    if fallbacks > 1:
        faults.append(Fault(("strategies",), f"{fallbacks} fallbacks found, at most one expected"))
    return faults


def _spelling_faults(position: int, strategy: Strategy, owners: dict[str, tuple[int, str]]) -> Iterator[Fault]:
    """Yield what is wrong with the names of a strategy; enters those that are new into ``owners``.

    Names and abbreviations stand in prompts, in JSON and in square brackets, on one line.
    """
    for field, text in strategy.spellings():
        key = label_key(text)
        owner, spelling = owners.setdefault(key, (position, text))
        if not key:
            yield Fault(("strategies", position, *field), "empty")
        elif unfit := sorted({repr(sign) for sign in text if sign in _UNFIT}):
            yield Fault(("strategies", position, *field), f"{text!r} holds {' and '.join(unfit)}")
        elif owner != position:
            yield Fault(("strategies", position, *field), f"{text!r} is also {spelling!r} of strategies[{owner}]")
