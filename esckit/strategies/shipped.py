"""The YAML files of taxonomies and mappings, shipped or the user's own, read and checked for their shape.

Not here: what a file means (:mod:`esckit.strategies.taxonomy`, :mod:`esckit.strategies.mapping`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from esckit.documents import read_yaml
from esckit.complaints import complaint
from esckit.errors import ConfigError
from esckit.registry import did_you_mean

Kind = Literal["taxonomy", "mapping"]

_HERE = Path(__file__).resolve().parent
_FOLDERS: dict[Kind, Path] = {"taxonomy": _HERE, "mapping": _HERE / "mappings"}


class Section(BaseModel):
    """A part of a file as the user wrote it; unknown keys are kept, so that they can be reported with the rest."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)


S = TypeVar("S", bound=Section)


def shipped_names(kind: Kind) -> tuple[str, ...]:
    """Return the names of the shipped files of a kind, sorted."""
    return tuple(sorted(path.stem for path in _FOLDERS[kind].glob("*.yaml")))


def is_file_name(name_or_path: str) -> bool:
    """Return whether the user means a file of their own rather than a shipped name."""
    return name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path


def read_shipped(kind: Kind, name_or_path: str) -> dict[str, Any]:
    """Return the content of a shipped file or of the user's own.

    Raises:
        ConfigError: If there is no such name or file, or it holds no YAML mapping.
    """
    path = Path(name_or_path).expanduser() if is_file_name(name_or_path) else _shipped_path(kind, name_or_path)
    content = read_yaml(path, f"{kind} file")
    if not isinstance(content, dict):
        raise ConfigError(f"{kind} file {path} holds a {type(content).__name__}", expected="keys and values")
    return content


def _shipped_path(kind: Kind, name: str) -> Path:
    """Return the path of a shipped file, or say which ones there are."""
    names = shipped_names(kind)
    if name not in names:
        hint = " ".join((did_you_mean(name, names), f"A {kind} of your own is named by its .yaml file")).strip()
        raise ConfigError(f"unknown {kind} {name!r}", expected=f"one of {', '.join(names)}", hint=hint)
    return _FOLDERS[kind] / f"{name}.yaml"


def parse_section(section: type[S], data: Any, place: str, faults: list[str]) -> S | None:
    """Return a part of a file, adding what is wrong with it to ``faults``; None if it cannot be used at all."""
    try:
        parsed = section.model_validate(data)
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False):
            faults.append(f"{field_path(place, *fault['loc'])}: {complaint(fault)}")
        return None
    known = [field.alias or name for name, field in section.model_fields.items()]
    for key in parsed.model_extra or {}:
        hint = did_you_mean(key, known)
        faults.append(f"{field_path(place, key)}: unknown key" + (f" ({hint})" if hint else ""))
    return parsed


def field_path(place: str, *parts: int | str) -> str:
    """Return a dotted path such as ``strategies[2].stage``."""
    steps = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return (place + steps).lstrip(".")


def raise_faults(kind: Kind, name_or_path: str, faults: list[str]) -> None:
    """Raise one error with all faults of a file, if there are any."""
    if faults:
        noun = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(f"{kind} {name_or_path} has {noun}: {'; '.join(faults)}")
