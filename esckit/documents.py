"""Reading text, JSON and YAML that others wrote: every fault becomes an error of ours, with file and place.

The one YAML loader of this package: no aliases (a few hundred bytes of them can stand for gigabytes), no tags, no
dates, no key given twice, bounded nesting, and ``1e-5`` is a number. What pydantic finds wrong with a value is put into
the words of this package. Not here: what the content means, records (:mod:`esckit.records`) and corpora
(:mod:`esckit.data`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from esckit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

Place = tuple[str | int, ...]
"""Keys and list indices that lead to a value."""


M = TypeVar("M", bound="BaseModel")

_MAX_DEPTH = 32

_MAX_JSON_DEPTH = 128

_MAX_YAML = 2**20
"""Characters of a YAML text; reading so many takes half a minute."""

_MAX_DIGITS = 400
"""Characters of a whole number: more than any number of ours, and fewer than Python refuses to write down."""

_MOST_TOLD = 10


def read_text(path: Path) -> str:
    """Return the text of a file, without a byte order mark.

    Raises:
        DataError: If there is no such file, it cannot be read, or it is not UTF-8.
    """
    if not path.is_file():
        raise DataError("a folder" if path.is_dir() else "no such file", path=str(path), expected="a text file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("bytes that are not UTF-8", path=str(path), expected="text in UTF-8") from error
    except OSError as error:
        raise DataError(f"a file that cannot be read ({error.strerror or error})", path=str(path)) from error


def read_yaml(path: Path, what: str) -> Any:
    """Return the plain data of a YAML file.

    Args:
        path: The file.
        what: What kind of file it is, for messages.

    Raises:
        ConfigError: If it cannot be read, or as :func:`parse_yaml`.
    """
    try:
        text = read_text(path)
    except DataError as error:
        raise ConfigError(f"{what} {path}: {error.found}", expected=error.expected) from error
    return parse_yaml(text, f"{what} {path}")


def parse_json(text: str | bytes, path: Path, *, line: int | None = None) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The text.
        path: The file that it is from.
        line: 1-based line in the file, for JSON lines.

    Raises:
        DataError: If it is no JSON, or nested more deeply than anything of ours.
    """
    try:
        value = json.loads(text)
        if _is_deeper(value, _MAX_JSON_DEPTH):  # whoever walks through it would run into the same limit
            raise RecursionError
        return value
    except RecursionError as error:
        raise DataError("JSON that is nested too deeply", path=str(path), line=line) from error
    except ValueError as error:  # text that is not UTF-8 and numbers of too many digits included
        raise DataError("no JSON", path=str(path), line=line) from error


def read_shipped(kind: type[M], package: str, name: str) -> M:
    """Return a YAML file that ships in a package as a model of pydantic.

    Raises:
        DataError: If the file does not hold such a model.
    """
    # Not at the top: `esckit --help` reads documents and needs no pydantic.
    from pydantic import ValidationError

    data = parse_yaml(resources.files(package).joinpath(name).read_text(encoding="utf-8"), name)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise DataError(complaint(first), path=name, field=dotted(first["loc"])) from error


def _is_deeper(value: Any, limit: int) -> bool:
    """Return whether lists and objects are nested more deeply than a limit."""
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        DataError: If it cannot be read, or holds anything else.
    """
    value = parse_json(read_text(path), path)
    if not isinstance(value, dict):
        raise DataError(f"a JSON {type(value).__name__}", path=str(path), expected="an object")
    return value


def parse_yaml(text: str, origin: str) -> Any:
    """Return the plain data of a YAML text; the empty text is None.

    Args:
        text: The text.
        origin: What to call it in messages.

    Raises:
        ConfigError: If it is not YAML, or uses what the module's head refuses.
    """
    return parse_yaml_lines(text, origin)[0]


def parse_yaml_lines(text: str, origin: str) -> tuple[Any, dict[Place, int]]:
    """Return the plain data of a YAML text, and the 1-based line of every key and list item.

    Raises:
        ConfigError: As :func:`parse_yaml`.
    """
    node = _compose(text, origin)
    lines: dict[Place, int] = {}
    if node is None:
        return None, lines
    problems = list(_walk(node, (), lines))
    if problems:
        more = [f"and {len(problems) - _MOST_TOLD:,} more"] if len(problems) > _MOST_TOLD else []
        raise ConfigError(f"{origin}: " + "; ".join([*problems[:_MOST_TOLD], *more]))
    return _construct(node, origin), lines


def dotted(place: Place) -> str:
    """Return ``a.b[0].c``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


class _Loader(yaml.SafeLoader):
    """YAML without merge keys and dates, and with ``1e-5`` as a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own class-level table)
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":merge", ":value"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _compose(text: str, origin: str) -> yaml.Node | None:
    if len(text) > _MAX_YAML:
        raise ConfigError(f"{origin}: {len(text):,} characters", expected=f"at most {_MAX_YAML:,} of YAML")
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
    """Refuse aliases, tags, and nesting that no file of ours needs."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = f", line {event.start_mark.line + 1}" if event.start_mark else ""
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{origin}{line}: an alias", expected="everything written out")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise ConfigError(f"{origin}{line}: a tag ({event.tag})", expected="plain values, text in quotes")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ConfigError(
                f"{origin}{line}: more than {_MAX_DEPTH} levels of nesting", expected=f"at most {_MAX_DEPTH}"
            )


def _construct(node: yaml.Node, origin: str) -> Any:
    """Return the plain data of a composed node."""
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{origin}: {error.problem}", expected="plain YAML values") from error
    except ValueError as error:  # a number such as 0x_
        raise ConfigError(f"{origin}: {error}", expected="plain YAML values") from error
    finally:
        loader.dispose()


def _walk(node: yaml.Node, place: Place, lines: dict[Place, int]) -> Iterator[str]:
    """Fill ``lines`` and yield what is wrong with keys, and with numbers that are too long."""
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:int" and len(node.value) > _MAX_DIGITS:
        yield f"line {node.start_mark.line + 1}: a number of {len(node.value):,} characters"
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*place, index)] = item.start_mark.line + 1
            yield from _walk(item, (*place, index), lines)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            yield f"line {line}: a key that is not plain text (put it in quotes)"
            continue
        here = (*place, key.value)
        if here in lines:
            yield f"line {line}: {dotted(here)} is given twice (first in line {lines[here]})"
            continue
        lines[here] = line
        yield from _walk(value, here, lines)


_PLAIN = {
    "missing": "is missing",
    "extra_forbidden": "is unknown",
    "model_type": "must be a section (a mapping)",
    "dict_type": "must be a section (a mapping)",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_short": "must not be empty",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
}

_BEGINNINGS = (
    ("Value error, ", ""),
    ("Input should be ", "must be "),
    ("String should ", "must "),
    ("Input should ", "must "),
)


def complaint(detail: ErrorDetails) -> str:
    """Return what is wrong with a value, as what it must be: ``must be a whole number``.

    Args:
        detail: One of pydantic's findings.
    """
    kind, text = detail["type"], detail["msg"]
    if kind in _PLAIN:
        return _PLAIN[kind]
    for beginning, ours in _BEGINNINGS:
        if text.startswith(beginning):
            return ours + re.sub(r"^(an?) valid ", r"\1 ", text.removeprefix(beginning))
    return text


def strings_in(value: Any) -> Iterator[str]:
    """Yield every text inside plain data, however deep; keys are no texts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings_in(inner)
