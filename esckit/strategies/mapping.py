"""Mappings between taxonomies: which strategy of one each strategy of another becomes.

Mappings are never chained, never chosen silently and never derived backwards.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import yaml
from pydantic import Field

from esckit.records import digest
from esckit.registry import did_you_mean
from esckit.strategies.files import Fault, is_file_name, parsed, raise_faults, read
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import Record

_UNFILLED = "?"

_NULLS = frozenset({"null", "none", "~"})
"""What users write for no strategy, and YAML reads as a name: ``null`` in quotes, or ``None``."""


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


def load_mapping(name_or_path: str) -> StrategyMapping:
    """Return a shipped mapping by name, or the user's own by the path of its YAML file.

    Raises:
        ConfigError: If there is none, or with all faults of the file at once.
    """
    faults: list[Fault] = []
    content, lines = read("mapping", name_or_path)
    mapping = parsed(StrategyMapping, content, faults)
    if mapping is not None:
        source, target = (_beside(name_or_path, end) for end in (mapping.source, mapping.target))
        mapping = mapping.model_copy(update={"source": source, "target": target})
        faults += _mapping_faults(mapping)
    raise_faults("mapping", name_or_path, faults, lines)
    assert mapping is not None
    return mapping


def skeleton(source: str, target: str, *, name: str) -> str:
    """Return the text of a mapping to be filled in: only strategies that both taxonomies know by name are mapped.

    The others hold ``?``, which :func:`load_mapping` refuses, so that no label is lost unnoticed.

    Args:
        source: Taxonomy mapped from: name, file or run.
        target: Taxonomy mapped to.
        name: Of the mapping.
    """
    first, second = load_taxonomy(source), load_taxonomy(target)
    found = {one.name: second.find(one.name) for one in first.strategies}
    head = f"""# Which strategy of {second.name} each strategy of {first.name} becomes.
# Replace every '?' with its quotes: by one of these, or by null (without quotes) where there is no counterpart.
# Such a turn then has no label.
#   {", ".join(second.names)}
"""
    body = {
        "name": name,
        "from": source,
        "to": target,
        "lossy": True,
        "note": "Who made this table, and by what rule.",
        "map": {old: new.name if new else _UNFILLED for old, new in found.items()},
    }
    return head + yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=120)


def _beside(mapping: str, end: str) -> str:
    """Return one end of a mapping; a file of a taxonomy may also be named relative to the mapping's own file."""
    here = Path(mapping).expanduser().parent / end
    only_there = is_file_name(mapping) and is_file_name(end) and not Path(end).is_file() and here.is_file()
    return str(here) if only_there else end


def _mapping_faults(section: StrategyMapping) -> list[Fault]:
    """Return the names that the two taxonomies do not agree with."""
    source, target = load_taxonomy(section.source), load_taxonomy(section.target)
    missing = [name for name in source.names if name not in section.map]
    faults = [Fault(("map",), f"{name!r} of taxonomy {source.name} is missing") for name in missing]
    for name, mapped in section.map.items():
        if name not in source.names:
            faults.append(Fault(("map", name), f"{name!r} is no strategy of taxonomy {source.name}"))
        if mapped == _UNFILLED:
            text = f"still {_UNFILLED!r}; a strategy of taxonomy {target.name}, or null for none, is expected"
            faults.append(Fault(("map", name), text))
        elif mapped is not None and mapped.casefold() in _NULLS and mapped not in target.names:
            faults.append(
                Fault(("map", name), f"{mapped!r} is a name here; for no strategy, write null without quotes")
            )
        elif mapped is not None and mapped not in target.names:
            known = did_you_mean(mapped, target.names) or ", ".join(target.names)
            faults.append(Fault(("map", name), f"{mapped!r} is no strategy of taxonomy {target.name} ({known})"))
    return faults
