"""What every recipe may say: one line a field with its type, default and limits, and what the shipped recipes set."""

import json
import re
from collections.abc import Iterator
from typing import Any

from typer.testing import CliRunner

from esckit.cli.app import app
from tests.pins.normal import holders

COMMANDS = (
    "simulate",
    "search",
    "train-flow",
    "train-reward",
    "train-sft",
    "train-rl",
    "evaluate",
    "predict",
    "chat",
    "run",
)
_ROLE = re.compile(r"(models\.)([^.<]+)(<.*)")
_BINDING = re.compile(r"(models\.[^<]+<)([^>]+)(>.*)")
_WORDS = ("title", "description", "discriminator")
_BELOW = ("properties", "required", "additionalProperties", "items", "prefixItems", "anyOf", "oneOf", "allOf", "$ref")


def fields(command: str) -> str:
    """Return one line for every field of a command's recipes, sorted by its dotted path."""
    schema = _json("recipes", "schema", command)
    lines = {
        (path, json.dumps(facts, ensure_ascii=False, sort_keys=True))
        for path, facts in _flat(schema, schema.get("$defs", {}), "", {})
    }
    return "\n".join(sorted(f"{path}: {facts}" for path, facts in _together(lines))) + "\n"


def _together(lines: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Write ``models.a<x>.f`` and ``models.b<y>.f`` as one line ``models.{a,b}<{x,y}>.f`` where they say the same."""
    for pattern in (_ROLE, _BINDING):
        groups: dict[tuple[str, str, str], list[str]] = {}
        for path, facts in lines:
            found = pattern.match(path)
            head, name, tail = found.groups() if found else (path, "", "")
            groups.setdefault((head, tail, facts), []).append(name)
        lines = {(f"{head}{_braced(names)}{tail}", facts) for (head, tail, facts), names in groups.items()}
    return lines


def _braced(names: list[str]) -> str:
    return names[0] if len(names) == 1 else "{" + ",".join(sorted(names)) + "}"


def shipped(command: str) -> str:
    """Return one line for every field of a command's shipped recipes, resolved: each value, and who has it."""
    names = [each["name"] for each in _json("recipes", "list", "--json") if each["command"] == command]
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        for path, value in _leaves(_json("recipes", "show", name, "--json"), ""):
            text = json.dumps(value, ensure_ascii=False, sort_keys=True)
            found.setdefault(path, {}).setdefault(text, []).append(name)
    return "".join(f"{path}: {json.dumps(holders(found[path], len(names)))}\n" for path in sorted(found))


def _leaves(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict) and data:
        for name, value in data.items():
            yield from _leaves(value, f"{path}.{name}" if path else name)
    else:
        yield path, data


def _json(*words: str) -> Any:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def _flat(
    schema: dict[str, Any], named: dict[str, Any], path: str, outside: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a field and all below it; ``outside`` holds what its parent says of it."""
    schema = _resolved(schema, named)
    alternatives = _alternatives(schema, named)
    if path:
        facts = {name: value for name, value in schema.items() if name not in (*_WORDS, *_BELOW, "$defs")}
        facts["type"] = _type(schema, named)
        if schema.get("additionalProperties") is False:
            facts["closed"] = True
        if isinstance(facts.get("default"), dict):
            facts["default"] = _unlike_own(facts["default"], schema, alternatives, named)
        for number, each in enumerate(schema.get("prefixItems", ())):
            facts[f"item {number}"] = {name: value for name, value in each.items() if name not in _WORDS}
        simple = [each for each in alternatives if "properties" not in each]
        limits = [_limits(each, named) for each in simple]
        if any(limits):
            facts["either"] = [limit for limit in limits if limit]
        yield path, facts | outside
    for each in alternatives:
        if "properties" in each:
            several = len(_objects(alternatives)) > 1
            yield from _below(each, named, f"{path}<{'+'.join(sorted(each.get('required', ())))}>" if several else path)
        elif "items" in each or "additionalProperties" in each:
            yield from _below(each, named, path)
    yield from _below(schema, named, path)


def _below(schema: dict[str, Any], named: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    required = schema.get("required", ())
    for name, each in schema.get("properties", {}).items():
        yield from _flat(
            each, named, f"{path}.{name}" if path else name, {"required": True} if name in required else {}
        )
    if isinstance(schema.get("items"), dict):
        yield from _flat(schema["items"], named, f"{path}[]", {})
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _flat(schema["additionalProperties"], named, f"{path}.*", {})


def _objects(alternatives: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in alternatives if "properties" in each]


def _alternatives(schema: dict[str, Any], named: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a field may be, alternatives of alternatives included."""
    found = []
    for each in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        whole = _resolved(each, named)
        found += _alternatives(whole, named) or [whole]
    return found


def _unlike_own(
    default: dict[str, Any], schema: dict[str, Any], alternatives: list[dict[str, Any]], named: dict[str, Any]
) -> dict[str, Any]:
    """Return what of a section's default differs from the defaults of its fields, which have lines of their own."""
    found = {}
    for name, value in default.items():
        own: dict[str, Any] = {}
        for each in (schema, *_objects(alternatives)):
            own |= _resolved(each.get("properties", {}).get(name, {}), named)
        inner = _unlike_own(value, own, _alternatives(own, named), named) if isinstance(value, dict) else value
        if value != own.get("default") and not (isinstance(value, dict) and "properties" in own and not inner):
            found[name] = inner
    return found


def _resolved(schema: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with what it refers to; the name of what it refers to is no part of it."""
    while "$ref" in schema:
        target = named[schema["$ref"].rpartition("/")[2]]
        schema = {**target, **{name: value for name, value in schema.items() if name != "$ref"}}
    return schema


def _type(schema: dict[str, Any], named: dict[str, Any]) -> str:
    either = [_type(each, named) for each in _alternatives(schema, named)]
    if either:
        return " | ".join(dict.fromkeys(either))
    if "const" in schema or "enum" in schema:
        return "choice"
    kind = str(schema.get("type", "anything"))
    if kind == "array" and isinstance(schema.get("items"), dict):
        return f"array of {_type(_resolved(schema['items'], named), named)}"
    return kind


def _limits(schema: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    """Return what one alternative of a field says beside its type."""
    hidden = (*_WORDS, *_BELOW, "type")
    return {name: value for name, value in schema.items() if name not in hidden}
