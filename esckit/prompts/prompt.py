r"""Prompts as data: one YAML file per role, rendered in one pass, named by a digest in every manifest.

A prompt file::

    name: critic_resolution
    version: 1
    variables: [emotion_type, conversation]
    optional: [strategy]
    messages:
      - {role: system, content: "Judge the talk."}
      - {role: user, content: "The feeling is {emotion_type}.\n{conversation}"}
      - {role: user, content: "Strategy: {strategy}", when: strategy}

``{name}`` is replaced by the variable's value; doubled braces stand for themselves. A value is never rendered again, so
what a seeker says cannot reach into the prompt. A message with ``when`` is left out unless that optional variable is
given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from esckit.documents import complaint, dotted, parse_yaml, read_yaml
from esckit.errors import ConfigError
from esckit.records import digest
from esckit.registry import did_you_mean
from esckit.text import as_turn, opens_a_part_of
from esckit.types import Message, Role


class Slots(NamedTuple):
    """What a role hands to its prompt: variables that always have a value, and those that may have none."""

    given: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


ROLES: Mapping[str, Slots] = {
    "supporter": Slots((), ("strategy",)),
    "aflow supporter": Slots(("strategy", "definition", "transcript")),
    "seeker": Slots(("emotion_type", "problem_type"), ("situation",)),
    "aflow seeker": Slots(("scene", "situation", "memory", "own_turn", "transcript")),
    "strategist": Slots(("definitions", "transcript"), ("keys", "options")),
    "resolution critic": Slots(("emotion_type", "problem_type", "conversation")),
    "rubric critic": Slots(("transcript",), ("criteria", "criterion")),
    "pair judge": Slots(("scene", "situation", "conversation", "first", "second", "dimensions", "keys")),
    "reply judge": Slots(("conversation", "reply", "question")),
    "reward model": Slots(("conversation", "response")),
    "policy": Slots(),
}
"""By role what its prompt is rendered with. A policy in training gets no values, so its prompt has no variables."""


_SLOT = re.compile(r"\{\{|\}\}|\{([a-z_]+)\}|[{}]")


class PromptMessage(BaseModel):
    """One message template; ``when`` names the optional variable without which it is left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: str
    when: str | None = None


class Prompt(BaseModel):
    """A role's prompt with its declared variables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int
    variables: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    messages: tuple[PromptMessage, ...]

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of SHA-256 over the prompt's content."""
        return digest(self.model_dump(mode="json"))

    @property
    def identity(self) -> str:
        """``name/digest``, as manifests and records show it."""
        return f"{self.name}/{self.digest}"

    def check(self, role: str, place: str) -> None:
        """Refuse a prompt that a role cannot fill in.

        Args:
            role: A key of :data:`ROLES`.
            place: What to call the prompt.

        Raises:
            ConfigError: If it needs what the role does not give, or does not declare what the role gives.
        """
        slots = ROLES[role]
        faults = [f"{name!r}, which the role does not give" for name in self.variables if name not in slots.given]
        declared = {*self.variables, *self.optional}
        lacks = [repr(name) for name in (*slots.given, *slots.optional) if name not in declared]
        if lacks:
            faults.append(f"no {', '.join(lacks)}")
        if faults:
            kinds = (("variables", slots.given), ("optional", slots.optional))
            wanted = [f"{kind}: [{', '.join(names)}]" for kind, names in kinds if names]
            raise ConfigError(
                f"prompt {place} as {role}: it declares {'; '.join(faults)}",
                expected=", ".join(wanted) or "no variables",
            )

    def render(self, **values: str | None) -> list[Message]:
        """Return the messages with every variable filled in.

        Args:
            **values: One value per declared variable; an optional one may be None or absent.

        Raises:
            ConfigError: If a required variable is missing or an undeclared one is given.
        """
        declared = {*self.variables, *self.optional}
        unknown = sorted(set(values) - declared)
        given = {name: value for name, value in values.items() if value is not None}
        missing = sorted(set(self.variables) - set(given))
        if unknown or missing:
            raise ConfigError(f"prompt {self.name!r}: unknown variables {unknown}, missing variables {missing}")
        return [
            Message(message.role, _fill(message.content, given))
            for message in self.messages
            if message.when is None or message.when in given
        ]


def _fill(template: str, values: dict[str, str]) -> str:
    """Replace every slot once; values are inserted as they are, but that no line of them opens a part of the prompt."""
    is_heading = opens_a_part_of(template)

    def value_of(match: re.Match[str]) -> str:
        if match.group(0) in ("{{", "}}"):
            return match.group(0)[0]
        return as_turn(values[match.group(1)], is_heading)

    return _SLOT.sub(value_of, template)


def load_prompt(name_or_path: str, role: str | None = None) -> Prompt:
    """Return a shipped prompt by name, or a user's own from a ``.yaml`` file.

    Args:
        name_or_path: The name or the file.
        role: Who it is for, a key of :data:`ROLES`; None does not check what it is filled in with.

    Raises:
        ConfigError: If there is no such prompt, it uses a variable that it does not declare, or the role gives others.
    """
    path, known = Path(name_or_path), prompt_names()
    if path.suffix in (".yaml", ".yml"):
        data = read_yaml(path, "prompt")
    elif name_or_path in known:
        text = resources.files("esckit.prompts").joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8")
        data = parse_yaml(text, name_or_path)
    else:
        raise ConfigError(
            f"unknown prompt {name_or_path!r}",
            expected=f"one of {', '.join(known)}, or a .yaml file",
            hint=did_you_mean(name_or_path, known) or None,
        )
    prompt = _prompt_of(data, name_or_path)
    if role is not None:
        prompt.check(role, name_or_path)
    return prompt


def prompt_names() -> tuple[str, ...]:
    """Return the names of the shipped prompts, sorted."""
    files = resources.files("esckit.prompts").iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def _prompt_of(data: Any, place: str) -> Prompt:
    try:
        prompt = Prompt.model_validate(data)
    except ValidationError as error:
        wrong = []
        for detail in error.errors():
            field = dotted(detail["loc"])
            hint = did_you_mean(field, Prompt.model_fields) if detail["type"] == "extra_forbidden" else ""
            wrong.append(f"{field or 'the file'}: {complaint(detail)}" + (f" ({hint})" if hint else ""))
        raise ConfigError(f"prompt {place}: {'; '.join(wrong)}") from error
    declared = {*prompt.variables, *prompt.optional}
    faults: list[str] = []
    for number, message in enumerate(prompt.messages):
        slots = [match for match in _SLOT.finditer(message.content) if match.group(0) not in ("{{", "}}")]
        faults += [f"messages[{number}]: a single brace" for slot in slots if slot.group(1) is None]
        used = {slot.group(1) for slot in slots if slot.group(1)}
        faults += [f"messages[{number}]: undeclared variable {name!r}" for name in sorted(used - declared)]
        needs_when = sorted((used & set(prompt.optional)) - {message.when})
        faults += [f"messages[{number}]: optional variable {name!r} without 'when'" for name in needs_when]
        if message.when is not None and message.when not in prompt.optional:
            faults.append(f"messages[{number}]: 'when' names {message.when!r}, which is not optional")
    if faults:
        raise ConfigError(f"prompt {place}: {'; '.join(faults)}")
    return prompt
