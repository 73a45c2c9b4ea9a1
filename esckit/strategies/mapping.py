"""Mappings from the strategies of one taxonomy to those of another.

They are never chained, never chosen silently and never derived backwards.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from pydantic import Field

from esckit.records import digest
from esckit.strategies.shipped import Section, is_file_name, parse_section, raise_faults, read_shipped, shipped_names
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import Record


class StrategyMapping(Record):
    """Which strategy of ``target`` each strategy of ``source`` becomes.

    Attributes:
        source: Taxonomy mapped from.
        target: Taxonomy mapped to.
        lossy: True if the source's label cannot be had back.
        map: Every source name with its target name, None where there is no counterpart.
    """

    name: str
    source: str
    target: str
    lossy: bool
    note: str
    map: dict[str, str | None]

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of SHA-256 over the mapping's content."""
        return digest(self.model_dump(mode="json"))


class _MappingSection(Section):
    name: str
    source: str = Field(alias="from")
    target: str = Field(alias="to")
    lossy: bool
    note: str
    map: dict[str, str | None]


def mapping_names() -> tuple[str, ...]:
    """Return the names of the shipped mappings, sorted."""
    return shipped_names("mapping")


def mappings_between(source: str, target: str) -> tuple[str, ...]:
    """Return the names of the shipped mappings from one taxonomy to another."""
    loaded = (load_mapping(name) for name in mapping_names())
    return tuple(mapping.name for mapping in loaded if (mapping.source, mapping.target) == (source, target))


def load_mapping(name_or_path: str) -> StrategyMapping:
    """Return a shipped mapping by name, or the user's own by the path of its YAML file.

    Raises:
        ConfigError: If there is none, or with all faults of the file at once.
    """
    faults: list[str] = []
    section = parse_section(_MappingSection, read_shipped("mapping", name_or_path), "", faults)
    if section is not None:
        source, target = (_beside(name_or_path, end) for end in (section.source, section.target))
        section = section.model_copy(update={"source": source, "target": target})
        faults += _faults(section)
    raise_faults("mapping", name_or_path, faults)
    assert section is not None
    return StrategyMapping.model_validate(section.model_dump(include=set(StrategyMapping.model_fields)))


def _beside(mapping: str, end: str) -> str:
    """Return one end of a mapping; a file of a taxonomy may also be named relative to the mapping's own file."""
    here = Path(mapping).expanduser().parent / end
    only_there = is_file_name(mapping) and is_file_name(end) and not Path(end).is_file() and here.is_file()
    return str(here) if only_there else end


def _faults(section: _MappingSection) -> list[str]:
    """Return the names that the two taxonomies do not agree with."""
    source, target = load_taxonomy(section.source), load_taxonomy(section.target)
    faults = [f"map: {name!r} of taxonomy {source.name} is missing" for name in source.names if name not in section.map]
    for name, mapped in section.map.items():
        if name not in source.names:
            faults.append(f"map: {name!r} is no strategy of taxonomy {source.name}")
        if mapped is not None and mapped not in target.names:
            faults.append(f"map.{name}: {mapped!r} is no strategy of taxonomy {target.name}")
    return faults
