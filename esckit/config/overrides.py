"""``--set a.b=c``: changing single fields of a recipe on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from esckit.documents import Place
from esckit.config.source import Source, parse_value
from esckit.errors import ConfigError

_FIELD = re.compile(r"^[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*$")


def apply_overrides(source: Source, overrides: Sequence[str]) -> tuple[Source, frozenset[Place]]:
    """Return a recipe with some fields replaced, and the paths that were.

    Args:
        source: The recipe as it was written.
        overrides: ``a.b=c`` each; ``c`` is YAML, and replaces the whole of ``a.b``. Later ones win.

    Raises:
        ConfigError: If any of them is not of this form; all of them are named.
    """
    data, changed, problems = source.data, set(), []
    for text in overrides:
        try:
            path, value = _parse(text)
            data = _replaced(data, path, value, text)
        except ConfigError as error:
            problems.append(str(error))
        else:
            changed.add(path)
    if problems:
        raise ConfigError("\n  ".join(problems), hint="Write --set section.field=value")
    return Source(source.origin, data, source.lines), frozenset(changed)


def _parse(text: str) -> tuple[Place, Any]:
    name, equals, value = text.partition("=")
    if not equals or not _FIELD.match(name.strip()):
        raise ConfigError(f"--set {name.strip()!r} names no field" if equals else f"--set {text!r} has no '='")
    return tuple(name.strip().split(".")), parse_value(value, f"--set {name.strip()}")


def _replaced(data: Mapping[str, Any], path: Place, value: Any, text: str) -> dict[str, Any]:
    """Return a copy of nested mappings with one value replaced; missing sections are made."""
    head, *rest = path
    if not rest:
        return {**data, str(head): value}
    inner = data.get(str(head))
    if inner is not None and not isinstance(inner, Mapping):
        raise ConfigError(f"--set {text.partition('=')[0]}: {head!r} is a value, not a section")
    return {**data, str(head): _replaced(inner or {}, tuple(rest), value, text)}
