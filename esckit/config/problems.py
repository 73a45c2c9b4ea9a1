"""What is wrong with a recipe, one line each: dotted path, line, what to do; secrets are never quoted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from esckit.documents import Place
from esckit.complaints import complaint
from esckit.config.source import Source, dotted
from esckit.registry import did_you_mean

_NEVER_QUOTED = frozenset({"api_key_env", "base_url"})
_QUOTED_NAME = re.compile(r"'([^']*)'")


def describe_problems(
    error: ValidationError, kind: type[BaseModel], source: Source, changed: frozenset[Place]
) -> list[str]:
    """Return one line for every problem that validation found, in the order of the recipe class."""
    lines: list[str] = []
    for detail in error.errors(include_url=False, include_context=True):
        path = tuple(part for part in detail["loc"] if not _is_tag(part))
        where = _where(path, source, changed)
        lines.append(f"{dotted(path)}{where}: {_what(detail, kind)}" if path else _what(detail, kind))
    return lines


def _where(path: Place, source: Source, changed: frozenset[Place]) -> str:
    """Return where a field was written: on the command line, or in which line of the file."""
    if any(path[: len(given)] == given for given in changed):
        return " (--set)"
    if path not in source.lines and any(given[: len(path)] == path for given in changed):
        return " (--set)"
    above = (path[:length] for length in range(len(path), 0, -1))
    line = next((source.lines[part] for part in above if part in source.lines), None)
    return f" (line {line})" if line else ""


def _what(detail: ErrorDetails, kind: type[BaseModel]) -> str:
    """Return what is wrong and, where it can be told, what was meant."""
    *section, field = detail["loc"] or ("",)
    value = detail["input"]
    if detail["type"] == "extra_forbidden":
        known = known_fields(kind, tuple(section))
        hint = did_you_mean(str(field), known) or f"known here: {', '.join(sorted(known))}"
        return f"unknown field; {hint}"
    text = complaint(detail)
    if detail["type"] in {"missing", "too_short", "value_error", "binding_kind"} or field in _NEVER_QUOTED:
        return text
    text += f", not {_shown(value)}"
    if detail["type"] == "literal_error" and isinstance(value, str):
        hint = did_you_mean(value, _QUOTED_NAME.findall(str(detail.get("ctx", {}).get("expected", ""))))
        text += f"; {hint}" if hint else ""
    return text


def _shown(value: Any) -> str:
    """Return a value as it may stand in a message."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, tuple | list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…" + text[-1:]


def _is_tag(part: str | int) -> bool:
    """Return whether a part of pydantic's location names a member of a union, not a field."""
    return isinstance(part, str) and part.startswith("<")


def known_fields(kind: type[BaseModel], path: Place) -> frozenset[str]:
    """Return the fields of the section at a location of pydantic's, union tags included."""
    here: list[tuple[str | None, type[BaseModel]]] = [(None, kind)]
    for part in path:
        if _is_tag(part):
            here = [(tag, model) for tag, model in here if tag == part]
            continue
        inner = [model.model_fields[part] for _, model in here if part in model.model_fields]
        here = [pair for info in inner for pair in _models(info.annotation)] or here
    return frozenset(name for _, model in here for name in model.model_fields)


def _models(annotation: Any, tag: str | None = None) -> Iterator[tuple[str | None, type[BaseModel]]]:
    """Yield the section classes inside an annotation, each with its union tag."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        tag = next((extra.tag for extra in args[1:] if isinstance(extra, Tag)), tag)
        yield from _models(args[0], tag)
    elif origin in (Union, UnionType, tuple, dict):
        for arg in args:
            yield from _models(arg, tag)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield tag, annotation
