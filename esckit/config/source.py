"""A recipe's YAML: a mapping whose every key knows its line (see :mod:`esckit.documents` for what is refused)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from esckit.documents import Place
from esckit.documents import dotted, parse_yaml, parse_yaml_lines
from esckit.errors import ConfigError


Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """A recipe as it was written.

    Attributes:
        origin: What to call it in messages.
        data: Its content; YAML lists are tuples.
        lines: 1-based line of every key and list item, by path.
    """

    origin: str
    data: Document
    lines: dict[Place, int] = field(default_factory=dict)


def parse_source(text: str, origin: str) -> Source:
    """Parse a recipe.

    Raises:
        ConfigError: If it is not YAML, holds a key twice, or is not a mapping.
    """
    data, lines = parse_yaml_lines(text, origin)
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: no mapping", expected="a recipe: 'command:', 'seed:' and its sections")
    return Source(origin, _frozen(data), lines)


def parse_value(text: str, origin: str) -> Any:
    """Parse the right-hand side of ``--set``; the empty text is None.

    Raises:
        ConfigError: If it is not YAML, or holds a key twice.
    """
    return _frozen(parse_yaml(text, origin))


def _frozen(value: Any) -> Any:
    """Return a value with tuples for lists, as strict validation wants them."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
