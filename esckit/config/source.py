"""Reading a recipe's YAML: duplicate keys, aliases and tags are refused, and every key knows its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from esckit.errors import ConfigError

Path = tuple[str | int, ...]
Document = dict[str, Any]
_MAX_DEPTH = 32


class _Loader(yaml.SafeLoader):
    """YAML without merge keys and dates, and with ``1e-5`` as a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own class-level table)
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


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
    lines: dict[Path, int] = field(default_factory=dict)


def parse_source(text: str, origin: str) -> Source:
    """Parse a recipe.

    Raises:
        ConfigError: If it is not YAML, holds a key twice, or is not a mapping.
    """
    node = _compose(text, origin)
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{origin}: no mapping", expected="a recipe: 'command:', 'seed:' and its sections")
    lines: dict[Path, int] = {}
    problems = list(_walk(node, (), lines))
    if problems:
        raise ConfigError(f"{origin}: " + "; ".join(problems))
    return Source(origin, dict(_construct(node, origin)), lines)


def parse_value(text: str, origin: str) -> Any:
    """Parse the right-hand side of ``--set``; the empty text is None.

    Raises:
        ConfigError: If it is not YAML, or holds a key twice.
    """
    node = _compose(text, origin)
    if node is None:
        return None
    problems = list(_walk(node, (), {}))
    if problems:
        raise ConfigError(f"{origin}: " + "; ".join(problems))
    return _construct(node, origin)


def _compose(text: str, origin: str) -> yaml.Node | None:
    try:
        _check_events(text, origin)
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{origin}{line}: {error.problem or error.context}", expected="YAML") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: {type(error).__name__}", expected="YAML") from error


def _check_events(text: str, origin: str) -> None:
    """Refuse aliases, and nesting that no recipe needs."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = f", line {event.start_mark.line + 1}" if event.start_mark else ""
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{origin}{line}: an alias", expected="everything written out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ConfigError(f"{origin}{line}: more than {_MAX_DEPTH} levels of nesting", expected="a recipe")


def _construct(node: yaml.Node, origin: str) -> Any:
    """Return the plain data of a composed node."""
    loader = _Loader("")
    try:
        return _frozen(loader.construct_document(node))
    except (yaml.MarkedYAMLError, ValueError) as error:
        raise ConfigError(f"{origin}: {_one_line(error)}", expected="plain YAML values") from error
    finally:
        loader.dispose()


def _one_line(error: Exception) -> str:
    return str(error.problem) if isinstance(error, yaml.MarkedYAMLError) else str(error)


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int]) -> Iterator[str]:
    """Fill ``lines`` and yield what is wrong with the keys."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            yield from _walk(item, (*path, index), lines)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            yield f"line {line}: a key that is not plain text"
            continue
        here = (*path, key.value)
        if here in lines:
            yield f"line {line}: {dotted(here)} is given twice (first in line {lines[here]})"
            continue
        lines[here] = line
        yield from _walk(value, here, lines)


def _frozen(value: Any) -> Any:
    """Return a value with tuples for lists, as strict validation wants them."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def dotted(path: Path) -> str:
    """Return ``a.b[0].c``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
