"""Files of taxonomies and mappings: the shipped ones by name, a user's own by path, all faults of one at once.

Not here: what they mean (:mod:`esckit.strategies.taxonomy`, :mod:`esckit.strategies.mapping`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import ValidationError

from esckit.documents import Place, complaint, dotted, parse_yaml_lines, read_text
from esckit.errors import ConfigError, DataError
from esckit.registry import did_you_mean
from esckit.types import Record

Kind = Literal["taxonomy", "mapping"]

_HERE = Path(__file__).resolve().parent

_FOLDERS: dict[Kind, Path] = {"taxonomy": _HERE, "mapping": _HERE / "mappings"}

S = TypeVar("S", bound=Record)


class Fault(NamedTuple):
    """What is wrong with one place of a file."""

    place: Place
    text: str


@cache
def shipped_names(kind: Kind) -> tuple[str, ...]:
    """Return the names of the shipped files of a kind, sorted."""
    return tuple(sorted(path.stem for path in _FOLDERS[kind].glob("*.yaml")))


def is_file_name(name_or_path: str) -> bool:
    """Return whether the user means a file of their own rather than a shipped name."""
    return name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path


def shipped_file(kind: Kind, name: str) -> Path:
    """Return the file of a shipped taxonomy or mapping.

    Raises:
        ConfigError: If none of this name ships.
    """
    names = shipped_names(kind)
    if name not in names:
        own = {
            "taxonomy": "A taxonomy of your own is named by its .yaml file, or by a run that was made with it",
            "mapping": "A mapping of your own is named by its .yaml file",
        }
        hint = " ".join((did_you_mean(name, names), own[kind])).strip()
        raise ConfigError(f"unknown {kind} {name!r}", expected=f"one of {', '.join(names)}", hint=hint)
    return _FOLDERS[kind] / f"{name}.yaml"


def read(kind: Kind, name_or_path: str) -> tuple[dict[str, Any], dict[Place, int]]:
    """Return the content of a shipped file or of the user's own, and the 1-based line of every key and list item.

    Raises:
        ConfigError: If there is no such name or file, or it holds no YAML mapping.
    """
    path = Path(name_or_path).expanduser() if is_file_name(name_or_path) else shipped_file(kind, name_or_path)
    try:
        content, lines = parse_yaml_lines(read_text(path), f"{kind} file {path}")
    except DataError as error:
        raise ConfigError(f"{kind} file {path}: {error.found}", expected=error.expected) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{kind} file {path} holds a {type(content).__name__}", expected="keys and values")
    return content, lines


def parsed(kind: type[S], content: dict[str, Any], faults: list[Fault], *parts: type[Record]) -> S | None:
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
            faults.append(Fault(detail["loc"], complaint(detail)))
            continue
        hint = did_you_mean(str(key), known)
        faults.append(Fault(detail["loc"], "unknown key" + (f" ({hint})" if hint else "")))
        holder: Any = content
        for step in place:
            holder = holder[step]
        del holder[key]
    only_unknown = all(detail["type"] == "extra_forbidden" for detail in details)
    return kind.model_validate_json(json.dumps(content), strict=True) if only_unknown else None


def raise_faults(kind: Kind, name_or_path: str, faults: Sequence[Fault], lines: Mapping[Place, int]) -> None:
    """Raise one error with all faults of a file, each with its line, if there are any."""
    if not faults:
        return
    told = []
    for place, text in faults:
        enclosing = (place[:length] for length in range(len(place), 0, -1))
        line = next((lines[part] for part in enclosing if part in lines), None)
        told.append(f"{dotted(place)}{f' (line {line})' if line else ''}: {text}")
    if len(told) == 1:
        raise ConfigError(f"{kind} {name_or_path} has 1 fault: {told[0]}")
    raise ConfigError("\n  ".join([f"{kind} {name_or_path} has {len(told)} faults:", *told]))


@cache
def _ends(mapping: str) -> tuple[str, str]:
    content, _ = read("mapping", mapping)
    return str(content["from"]), str(content["to"])


def mappings_between(source: str, target: str) -> tuple[str, ...]:
    """Return the names of the shipped mappings from one taxonomy to another."""
    return tuple(name for name in shipped_names("mapping") if _ends(name) == (source, target))
