"""The reference of recipes: every field with its type in words, its default, its meaning, and whether it may change.

What a field means is written once, under ``Attributes:`` in the docstring of its class or of a class above it; a
section without such an entry says what the first sentence of its own class says. From these, :func:`recipe_schema`
makes the JSON Schema of a command's recipes for editors, and :func:`recipe_fields` reads that schema as a tree, which
``esckit recipes fields`` prints and ``.ci/reference.py`` makes ``docs/recipes.md`` of.

Not here: what is wrong with a recipe (:mod:`esckit.config.load`).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from esckit.config.load import RECIPES
from esckit.config.sections import DECIMAL, RoleDefaults
from esckit.errors import ConfigError
from esckit.registry import did_you_mean

_ATTRIBUTES = re.compile(r"^Attributes:\n((?:    .*\n?|\n)*)", re.MULTILINE)

_ENTRY = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.MULTILINE)

_CODE = re.compile(r"(?::\w+:)?(`+)~?(.+?)\1")

_SENTENCE = re.compile(r"(?<=\.) (?=[A-Z`])")


def plain(text: str) -> str:
    """Return a piece of a docstring as Markdown on one line: code between single backticks, and ``null`` for None.

    Which fields are operational is told apart (:attr:`Field.operational`), so a sentence that says so is left out.
    """
    text = re.sub(r"(^|(?<=[.;,:]) )Operational\.", "", " ".join(text.split()))
    text = re.sub(r"(?<!`)\bNone\b(?!`)", "`null`", text)
    return _CODE.sub(lambda found: f"`{found[2]}`", text).strip()


def field_docs(kind: type[BaseModel]) -> dict[str, str]:
    """Return what the docstrings of a class, and of those above it, say of fields."""
    found: dict[str, str] = {}
    sections = [base for base in reversed(kind.__mro__) if issubclass(base, BaseModel) and base is not BaseModel]
    for base in sections:
        entries = _ATTRIBUTES.search(inspect.cleandoc(base.__dict__.get("__doc__") or ""))
        if entries:
            found |= {name: plain(text) for name, text in _ENTRY.findall(entries[1])}
    return found


def summary(kind: type[BaseModel]) -> str:
    """Return the first paragraph of a class's docstring."""
    return plain(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0])


class _Described(GenerateJsonSchema):
    """JSON Schema whose descriptions are those of the docstrings; defaults that depend on a role stand with them."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Leave titles out: pydantic's repeat the name."""
        return False

    def model_schema(self, schema: Any) -> dict[str, Any]:
        """Return the schema of a section with what its fields mean."""
        found = super().model_schema(schema)
        docs = field_docs(schema["cls"])
        found["description"] = summary(schema["cls"])
        for name, value in found.get("properties", {}).items():
            alternatives = (value, *value.get("anyOf", ()))
            notes = [docs.get(name, ""), *(each.pop("description", "") for each in alternatives)]
            if text := " ".join(filter(None, notes)):
                value["description"] = text
        return found

    def function_before_schema(self, schema: Any) -> dict[str, Any]:
        """Return the schema of what is checked, with the defaults that a role fills in."""
        found = super().function_before_schema(schema)
        function = schema["function"]["function"]
        return {**found, "description": function.in_words} if isinstance(function, RoleDefaults) else found


def recipe_schema(command: str) -> dict[str, Any]:
    """Return the JSON Schema of a command's recipes, with descriptions.

    Raises:
        ConfigError: If no recipes are for such a command.
    """
    if command not in RECIPES.targets:
        raise ConfigError(
            f"no recipes for the command {command!r}",
            expected=f"one of {', '.join(RECIPES.names())}",
            hint=did_you_mean(command, RECIPES.names()).capitalize() or None,
        )
    found = RECIPES.resolve(command).model_json_schema(schema_generator=_Described)
    definitions = found["$defs"]
    for section in (found, *definitions.values()):
        for value in section.get("properties", {}).values():
            named = [each for each in (value, *value.get("anyOf", ())) if "$ref" in each]
            if "description" not in value and len(named) == 1:
                inner = definitions[named[0]["$ref"].rpartition("/")[2]]
                value["description"] = _SENTENCE.split(inner.get("description", ""))[0]
    head = {"$schema": GenerateJsonSchema.schema_dialect, "$id": f"urn:esckit:recipe:{command}"}
    return {**head, **found, "title": f"A recipe of esckit {command}"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a recipe.

    Attributes:
        path: Its dotted path, as ``--set`` takes it.
        words: What may stand there beside a section: "a number above 0".
        sections: The sections that may stand there.
        default: What it is where it is left out, as YAML; None if it must be given, "" if its own fields say so.
        value: The same as plain data; None where there is none.
        meaning: What it says, as Markdown.
        operational: Whether it may change between two attempts at one run.
    """

    path: str
    words: tuple[str, ...]
    sections: tuple[Form, ...]
    default: str | None
    value: Any = dataclasses.field(hash=False)
    meaning: str
    operational: bool

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition(".")[2]

    @property
    def is_section(self) -> bool:
        """Whether a section may stand there, and not only in the entries of a mapping."""
        return any(
            inner.path.startswith(f"{self.path}.{inner.name}") for form in self.sections for inner in form.fields
        )


@dataclass(frozen=True, slots=True)
class Form:
    """A section, as it stands at one place of a recipe.

    Attributes:
        name: Its class.
        key: What tells it from others that may stand in its place: ``endpoint``, or ``rule: goal``.
        meaning: What it is for.
        fields: Its fields.
    """

    name: str
    key: str
    meaning: str
    fields: tuple[Field, ...]

    def relative(self, at: str) -> Form:
        """Return the section with paths from it on, to compare it with the same one at another place."""
        return replace(self, fields=tuple(_relative(each, f"{at}.") for each in self.fields))


def _relative(field: Field, at: str) -> Field:
    inner = tuple(replace(form, fields=tuple(_relative(each, at) for each in form.fields)) for form in field.sections)
    return replace(field, path=field.path.removeprefix(at), sections=inner)


def recipe_fields(command: str) -> tuple[Field, ...]:
    """Return the fields of a command's recipes, sections with what is in them.

    Raises:
        ConfigError: If no recipes are for such a command.
    """
    schema = recipe_schema(command)
    kind = RECIPES.resolve(command)
    operational = [path.split(".") for path in kind.OPERATIONAL]
    return _Reader(schema["$defs"], operational).fields(schema, (), {})


def find_fields(command: str, prefix: str) -> tuple[Field, ...]:
    """Return the fields of a command's recipes, if one of them has a dotted path.

    Raises:
        ConfigError: If no recipes are for such a command, or they have no such field.
    """
    found = recipe_fields(command)
    if next(below(found, prefix), None) is None:
        paths = [field.path for field, _ in below(found, "")]
        inside = prefix
        while inside and not (siblings := [field.path for field, _ in below(found, inside)]):
            inside = inside.rpartition(".")[0]
        raise ConfigError(
            f"recipes of {command} have no field {prefix!r}",
            expected=f"one of those that 'esckit recipes fields {command}{f' {inside}' if inside else ''}' prints",
            hint=did_you_mean(prefix, siblings if inside else paths).capitalize() or None,
        )
    return found


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the properties of a schema as fields.

    Attributes:
        definitions: The sections of the schema.
        operational: Dotted paths, split, that may change; ``*`` is any part.
    """

    definitions: Mapping[str, Any]
    operational: list[list[str]]

    def fields(self, section: Mapping[str, Any], at: tuple[str, ...], given: Any) -> tuple[Field, ...]:
        """Return the fields of a section at a place, which may state defaults for them."""
        return tuple(
            self._field(name, value, (*at, name), given, is_required=name in section.get("required", ()))
            for name, value in section["properties"].items()
        )

    def _field(
        self, name: str, value: Mapping[str, Any], at: tuple[str, ...], given: Any, *, is_required: bool
    ) -> Field:
        found = given[name] if isinstance(given, Mapping) and name in given else value.get("default")
        alternatives = list(self._alternatives(value))
        if "default" not in value and alternatives[0].get("type") == "object":  # made anew by a factory
            found = {}
        is_section = isinstance(found, Mapping) and any("properties" in each for each in alternatives)
        return Field(
            path=".".join(at),
            words=tuple(dict.fromkeys(in_words(each) for each in alternatives if "properties" not in each)),
            sections=tuple(form for each in alternatives for form in self._forms(each, at, found)),
            default=None if is_required else "" if is_section else _as_yaml(found),
            value=None if is_required or is_section else found,
            meaning=value.get("description", ""),
            operational=any(
                len(path) <= len(at) and all(a in ("*", b) for a, b in zip(path, at, strict=False))
                for path in self.operational
            ),
        )

    def _alternatives(self, value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Yield what may stand at a place: of unions every member."""
        if "$ref" in value:
            value = {**value, **self.definitions[value["$ref"].rpartition("/")[2]]}
        members = (*value.get("anyOf", ()), *value.get("oneOf", ()))
        for each in members:
            yield from self._alternatives(each)
        if not members:
            yield value

    def _forms(self, value: Mapping[str, Any], at: tuple[str, ...], given: Any) -> Iterator[Form]:
        """Yield the section that may stand at a place, or in each entry of a mapping there."""
        entries = value.get("additionalProperties")
        if "properties" in value:
            yield self._form(value, at, given)
        elif isinstance(entries, Mapping) and "$ref" in entries:
            yield self._form(next(self._alternatives(entries)), (*at, "NAME"), None)

    def _form(self, section: Mapping[str, Any], at: tuple[str, ...], given: Any) -> Form:
        name = section["title"]
        fixed = next((key for key, value in section["properties"].items() if "const" in value), None)
        required = section.get("required", ())
        key = f"{fixed}: {section['properties'][fixed]['const']}" if fixed else required[0] if required else ""
        return Form(name, key, section.get("description", ""), self.fields(section, at, given))


def _as_yaml(default: Any) -> str:
    if isinstance(default, str) and re.fullmatch(r"[\w./+-]+", default):
        return default
    return re.sub(r'"([a-z][\w.-]*)"', r"\1", json.dumps(default, ensure_ascii=False))


def in_words(schema: Mapping[str, Any]) -> str:
    """Return what a simple schema allows, in words: "a whole number above 0"."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(in_words(each) for each in schema["anyOf"]))
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if choices:
        return ("one of " if len(choices) > 1 else "") + ", ".join(f"`{each}`" for each in choices)
    if "$ref" in schema:
        return "a section"
    match schema.get("type"):
        case "integer" | "number" as kind:
            return ("a whole number" if kind == "integer" else "a number") + _range(schema)
        case "string":
            return "a number" if schema.get("pattern") == DECIMAL else "text"
        case "boolean":
            return "`true` or `false`"
        case "null":
            return "`null`"
        case "array":
            return _list_in_words(schema)
        case "object":
            inner = schema.get("additionalProperties")
            return f"a mapping of names, each to {in_words(inner)}" if isinstance(inner, Mapping) else "a mapping"
    return "anything"


def _range(schema: Mapping[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    limits = ((" above {}", above), (" of at least {}", low), (" up to {}", high), (" below {}", below))
    return " and".join(text.format(_number(limit)) for text, limit in limits if limit is not None)


def _number(limit: float) -> str:
    if limit >= 2**53:
        return f"2^{int(limit).bit_length() - 1}"
    return f"{limit:,.0f}" if limit == int(limit) else f"{limit:g}"


def _list_in_words(schema: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        kinds = dict.fromkeys(in_words(each) for each in schema["prefixItems"])
        return f"a list of {len(schema['prefixItems'])} items, each {' or '.join(kinds)}"
    return f"a list of {_several(schema.get('items', {}))}" + (", at least one" if schema.get("minItems") else "")


_PLURALS = (("text", "texts"), ("one of", "any of"), ("a whole number", "whole numbers"), ("a number", "numbers"))


def _several(schema: Mapping[str, Any]) -> str:
    """Return what a schema allows as the items of a list."""
    words = in_words(schema)
    return next((many + words.removeprefix(one) for one, many in _PLURALS if words.startswith(one)), words)


def _begins(path: str, with_path: str) -> bool:
    """Return whether a path begins with the parts of another; ``NAME`` is any."""
    parts, wanted = path.split("."), with_path.split(".") if with_path else []
    return len(parts) >= len(wanted) and all(
        one == other or "NAME" in (one, other) for one, other in zip(parts, wanted, strict=False)
    )


def below(fields: Iterable[Field], prefix: str) -> Iterator[tuple[Field, str]]:
    """Yield the fields at and below a dotted path, each with the forms of a section that have it ("" if all do).

    The several forms that a section may have are looked into only if ``prefix`` names the section or a field of it.
    """
    for field in fields:
        is_inside, is_above = _begins(field.path, prefix), _begins(prefix, field.path) and field.path != prefix
        if is_inside:
            yield field, ""
        if len(field.sections) == 1 and (is_inside or is_above):
            yield from below(field.sections[0].fields, prefix)
        elif is_above or field.path == prefix:
            having: dict[tuple[Field, str], list[str]] = {}
            for form in field.sections:
                for inner in below(form.fields, prefix):
                    having.setdefault(inner, []).append(form.key)
            for (found, key), keys in having.items():
                outer = "" if len(keys) == len(field.sections) else " or ".join(keys)
                yield found, f"{outer}, and {key}" if outer and key else outer or key
