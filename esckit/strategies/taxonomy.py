"""Taxonomies of support strategies, and mappings between them: YAML files that ship, or the user's own.

A taxonomy is an ordered set of names with abbreviations, definitions, stages and spellings. The order in the file fixes
display and tensor index *within a run*; files and records hold names, never indices. Stages inform prompts and analyses
and constrain nothing. Mappings are never chained, never chosen silently and never derived backwards.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError

from esckit.documents import complaint, dotted, read_yaml
from esckit.errors import ConfigError, DataError
from esckit.records import digest, write_atomic
from esckit.registry import did_you_mean
from esckit.types import Record

Kind = Literal["taxonomy", "mapping"]


_HERE = Path(__file__).resolve().parent

_FOLDERS: dict[Kind, Path] = {"taxonomy": _HERE, "mapping": _HERE / "mappings"}


S = TypeVar("S", bound=Record)


def shipped_names(kind: Kind) -> tuple[str, ...]:
    """Return the names of the shipped files of a kind, sorted."""
    return tuple(sorted(path.stem for path in _FOLDERS[kind].glob("*.yaml")))


def is_file_name(name_or_path: str) -> bool:
    """Return whether the user means a file of their own rather than a shipped name."""
    return name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path


def _read(kind: Kind, name_or_path: str) -> dict[str, Any]:
    """Return the content of a shipped file or of the user's own.

    Raises:
        ConfigError: If there is no such name or file, or it holds no YAML mapping.
    """
    path, names = Path(name_or_path).expanduser(), shipped_names(kind)
    if not is_file_name(name_or_path):
        path = _FOLDERS[kind] / f"{name_or_path}.yaml"
        if name_or_path not in names:
            own = f"A {kind} of your own is named by its .yaml file"
            hint = " ".join((did_you_mean(name_or_path, names), own)).strip()
            raise ConfigError(f"unknown {kind} {name_or_path!r}", expected=f"one of {', '.join(names)}", hint=hint)
    content = read_yaml(path, f"{kind} file")
    if not isinstance(content, dict):
        raise ConfigError(f"{kind} file {path} holds a {type(content).__name__}", expected="keys and values")
    return content


def _parsed(kind: type[S], content: dict[str, Any], faults: list[str], *parts: type[Record]) -> S | None:
    """Return the content of a file as a record; None if it cannot be used at all.

    Args:
        kind: Class of the record.
        content: As the file has it; unknown keys are reported and removed, since they make no content unusable.
        faults: What is wrong is added here.
        parts: Classes of records inside, for hints.
    """
    try:
        # As JSON, where a list may become a tuple and every other type is taken strictly.
        return kind.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    sections: tuple[type[Record], ...] = (kind, *parts)
    known = [field.alias or name for section in sections for name, field in section.model_fields.items()]
    for detail in details:
        *place, key = detail["loc"]
        if detail["type"] != "extra_forbidden":
            faults.append(f"{dotted(detail['loc'])}: {complaint(detail)}")
            continue
        hint = did_you_mean(str(key), known)
        faults.append(f"{dotted(detail['loc'])}: unknown key" + (f" ({hint})" if hint else ""))
        holder: Any = content
        for step in place:
            holder = holder[step]
        del holder[key]
    only_unknown = all(detail["type"] == "extra_forbidden" for detail in details)
    return kind.model_validate_json(json.dumps(content), strict=True) if only_unknown else None


def _raise_faults(kind: Kind, name_or_path: str, faults: list[str]) -> None:
    """Raise one error with all faults of a file, if there are any."""
    if faults:
        noun = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(f"{kind} {name_or_path} has {noun}: {'; '.join(faults)}")


ANY_STAGE = "any"

_KEPT = "taxonomy.yaml"

_MIN_STRATEGIES, _MAX_STRATEGIES = 2, 64


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

    def spellings(self) -> Iterator[tuple[str, str]]:
        """Yield what the strategy may be called, each with the field that it stands in."""
        yield "name", self.name
        yield "abbr", self.abbr
        for position, alias in enumerate(self.aliases):
            yield f"aliases[{position}]", alias


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
    """Return a shipped taxonomy by name, or the user's own by the path of its YAML file.

    Raises:
        ConfigError: If there is none, or with all faults of the file at once.
    """
    return _load(name_or_path) if is_file_name(name_or_path) else _load_shipped(name_or_path)


def is_shipped(taxonomy: Taxonomy) -> bool:
    """Return whether a taxonomy is one that ships, rather than a user's own."""
    return taxonomy.name in shipped_names("taxonomy") and load_taxonomy(taxonomy.name) == taxonomy


def keep_taxonomy(taxonomy: Taxonomy, folder: Path) -> None:
    """Write a user's own taxonomy beside what is made with it, where :func:`kept_taxonomy` finds it by its name."""
    if not is_shipped(taxonomy):
        content = yaml.safe_dump(taxonomy.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
        write_atomic(folder / _KEPT, content)


def taxonomy_inputs(taxonomy: Taxonomy | None) -> dict[str, str]:
    """Return what a run is known by beside its recipe, which names the file of a user's own taxonomy only."""
    return {} if taxonomy is None or is_shipped(taxonomy) else {"taxonomy": taxonomy.digest}


def kept_taxonomy(name: str, *folders: Path) -> Taxonomy:
    """Return the taxonomy of a name: the copy in one of the folders, else the shipped one.

    Raises:
        ConfigError: If there is neither.
    """
    for folder in folders:
        if (folder / _KEPT).is_file():
            kept = _load(str(folder / _KEPT))
            if kept.name == name:
                return kept
    return _load_shipped(name)


def _load(name_or_path: str) -> Taxonomy:
    """Read and check one file."""
    faults: list[str] = []
    taxonomy = _parsed(Taxonomy, _read("taxonomy", name_or_path), faults, Strategy)
    if taxonomy is not None:
        faults += _faults(taxonomy)
    _raise_faults("taxonomy", name_or_path, faults)
    assert taxonomy is not None
    return taxonomy


@cache
def _load_shipped(name: str) -> Taxonomy:
    """Read a shipped taxonomy once; it is immutable."""
    return _load(name)


def _faults(head: Taxonomy) -> list[str]:
    """Return what is wrong with a taxonomy beyond its shape."""
    faults = [f"{field}: empty" for field, text in (("name", head.name), ("title", head.title)) if not text.strip()]
    if not _MIN_STRATEGIES <= len(head.strategies) <= _MAX_STRATEGIES:
        faults.append(f"strategies: {len(head.strategies)} found, {_MIN_STRATEGIES} to {_MAX_STRATEGIES} expected")
    stages = {*head.stages, ANY_STAGE}
    owners: dict[str, tuple[int, str]] = {}
    for position, strategy in enumerate(head.strategies):
        place = f"strategies[{position}]"
        texts = (("name", strategy.name), ("abbr", strategy.abbr), ("definition", strategy.definition))
        faults += [f"{place}.{field}: empty" for field, text in texts if not text.strip()]
        if strategy.stage not in stages:
            faults.append(f"{place}.stage: unknown stage {strategy.stage!r}, expected one of {', '.join(head.stages)}")
        for index, stage in enumerate(strategy.stages):
            if stage not in stages:
                faults.append(f"{place}.stages[{index}]: unknown stage {stage!r}")
        faults += _collisions(position, strategy, owners)
    fallbacks = sum(strategy.fallback for strategy in head.strategies)
    if fallbacks > 1:
        faults.append(f"strategies: {fallbacks} fallbacks found, at most one expected")
    return faults


def _collisions(position: int, strategy: Strategy, owners: dict[str, tuple[int, str]]) -> list[str]:
    """Return the spellings of a strategy that an earlier one has too; enters the new ones into ``owners``."""
    faults = []
    for field, text in strategy.spellings():
        owner, spelling = owners.setdefault(label_key(text), (position, text))
        if owner != position and text.strip():
            faults.append(f"strategies[{position}].{field}: {text!r} is also {spelling!r} of strategies[{owner}]")
    return faults


class StrategyMapping(Record):
    """Which strategy of ``target`` each strategy of ``source`` becomes.

    Attributes:
        source: Taxonomy mapped from.
        target: Taxonomy mapped to.
        lossy: True if the source's label cannot be had back.
        map: Every source name with its target name, None where there is no counterpart.
    """

    name: str
    source: str = Field(alias="from")
    target: str = Field(alias="to")
    lossy: bool
    note: str
    map: dict[str, str | None]

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of SHA-256 over the mapping's content."""
        return digest(self.model_dump(mode="json"))


def mappings_between(source: str, target: str) -> tuple[str, ...]:
    """Return the names of the shipped mappings from one taxonomy to another."""
    loaded = (load_mapping(name) for name in shipped_names("mapping"))
    return tuple(mapping.name for mapping in loaded if (mapping.source, mapping.target) == (source, target))


def load_mapping(name_or_path: str) -> StrategyMapping:
    """Return a shipped mapping by name, or the user's own by the path of its YAML file.

    Raises:
        ConfigError: If there is none, or with all faults of the file at once.
    """
    faults: list[str] = []
    mapping = _parsed(StrategyMapping, _read("mapping", name_or_path), faults)
    if mapping is not None:
        source, target = (_beside(name_or_path, end) for end in (mapping.source, mapping.target))
        mapping = mapping.model_copy(update={"source": source, "target": target})
        faults += _mapping_faults(mapping)
    _raise_faults("mapping", name_or_path, faults)
    assert mapping is not None
    return mapping


def _beside(mapping: str, end: str) -> str:
    """Return one end of a mapping; a file of a taxonomy may also be named relative to the mapping's own file."""
    here = Path(mapping).expanduser().parent / end
    only_there = is_file_name(mapping) and is_file_name(end) and not Path(end).is_file() and here.is_file()
    return str(here) if only_there else end


def _mapping_faults(section: StrategyMapping) -> list[str]:
    """Return the names that the two taxonomies do not agree with."""
    source, target = load_taxonomy(section.source), load_taxonomy(section.target)
    faults = [f"map: {name!r} of taxonomy {source.name} is missing" for name in source.names if name not in section.map]
    for name, mapped in section.map.items():
        if name not in source.names:
            faults.append(f"map: {name!r} is no strategy of taxonomy {source.name}")
        if mapped is not None and mapped not in target.names:
            faults.append(f"map.{name}: {mapped!r} is no strategy of taxonomy {target.name}")
    return faults
