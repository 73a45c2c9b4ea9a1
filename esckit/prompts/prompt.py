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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from esckit.documents import Place, complaint, dotted, parse_yaml_lines, read_text
from esckit.errors import ConfigError, DataError
from esckit.records import digest, write_atomic
from esckit.registry import did_you_mean
from esckit.text import QUOTED, as_turn, opens_a_part_of
from esckit.types import Message, Role

KEPT = "prompt.yaml"
"""The copy of a user's own prompt in a checkpoint that was trained with it."""


class Slots(NamedTuple):
    """What a role hands to its prompt.

    Attributes:
        given: Variables that always have a value.
        optional: Variables that may have none.
        needed: Those of them without which the task cannot be done, so that a prompt must use them.
    """

    given: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()


ROLES: Mapping[str, Slots] = {
    "supporter": Slots((), ("strategy",)),
    "aflow supporter": Slots(("strategy", "definition", "transcript"), needed=("strategy", "transcript")),
    "seeker": Slots(("emotion_type", "problem_type"), ("situation",)),
    "aflow seeker": Slots(("scene", "situation", "memory", "own_turn", "transcript"), needed=("transcript",)),
    "strategist": Slots(("definitions", "transcript"), ("keys", "options"), needed=("transcript",)),
    "resolution critic": Slots(("emotion_type", "problem_type", "conversation"), needed=("conversation",)),
    "rubric critic": Slots(("transcript",), ("criteria", "criterion"), needed=("transcript",)),
    "pair judge": Slots(
        ("scene", "situation", "conversation", "first", "second", "dimensions", "keys"), needed=("first", "second")
    ),
    "reply judge": Slots(("conversation", "reply", "question"), needed=("reply", "question")),
    "reward model": Slots(("conversation", "response"), needed=("conversation", "response")),
    "policy": Slots(),
}
"""By role what its prompt is rendered with. A policy in training gets no values, so its prompt has no variables."""

_SUPPORTERS = ("supporter", "aflow supporter")

FIELDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "simulate": {
        "prompts.supporter": ("supporter",),
        "prompts.seeker": ("seeker",),
        "prompts.critic": ("resolution critic",),
        "prompts.strategist": ("strategist",),
    },
    "search": {
        "prompts.seeker": ("aflow seeker",),
        "prompts.supporter": ("aflow supporter",),
        "prompts.critic": ("rubric critic",),
        "prompts.strategist": ("strategist",),
    },
    "predict": {"prompts.strategist": ("strategist",), "prompts.supporter": _SUPPORTERS},
    "evaluate": {
        "prompts.strategist": ("strategist",),
        "prompts.supporter": _SUPPORTERS,
        "prompts.seeker": ("seeker",),
        "prompts.critic": ("resolution critic",),
        "prompts.judge_pairwise": ("pair judge",),
        "prompts.judge_reply": ("reply judge",),
        "prompts.turn_judge": ("rubric critic",),
    },
    "chat": {
        "prompts.supporter": _SUPPORTERS,
        "prompts.strategist": ("strategist",),
        "prompts.critic": ("resolution critic", "rubric critic"),
    },
    "train-reward": {"prompt": ("reward model",)},
    "train-sft": {"prompt": ("policy",)},
    "train-rl": {
        "prompt": ("policy",),
        "reward.prompt": ("reward model",),
        "online.prompts.supporter": ("supporter",),
        "online.prompts.seeker": ("seeker",),
        "online.prompts.critic": ("resolution critic",),
    },
}
"""By command the fields of its recipes that name a prompt, each with the roles that the prompt may be for.

Of two roles, the second reads a ``transcript`` and the first does not.
"""


_SLOT = re.compile(r"\{\{|\}\}|\{([a-z_]+)\}|[{}]")

_DOUBLED = re.compile(r"\{\{\s*([a-z_]+)\s*\}\}")


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

    @property
    def used(self) -> frozenset[str]:
        """Variables that stand in some message."""
        return frozenset(name for message in self.messages for name in _SLOT.findall(message.content) if name)

    def fits(self, role: str) -> bool:
        """Return whether a role can fill the prompt in."""
        return not self._misfits(role)

    def _misfits(self, role: str) -> list[str]:
        """Return why a role cannot fill the prompt in, or could not do its task with it."""
        slots, declared = ROLES[role], {*self.variables, *self.optional}
        found = [
            f"it declares {name!r}, which the role does not give" for name in self.variables if name not in slots.given
        ]
        lacks = [repr(name) for name in (*slots.given, *slots.optional) if name not in declared]
        if lacks:
            found.append(f"it declares no {', '.join(lacks)}")
        unused = [name for name in slots.needed if name in declared - self.used]
        return found + [f"no message holds {{{name}}}, so the model would not see it" for name in unused]

    def check(self, role: str, place: str) -> None:
        """Refuse a prompt that a role cannot fill in, or without which it could not do its task.

        Args:
            role: A key of :data:`ROLES`.
            place: What to call the prompt.

        Raises:
            ConfigError: If it needs what the role does not give, does not declare what the role gives, or does not use
                what the task needs.
        """
        if faults := self._misfits(role):
            slots = ROLES[role]
            kinds = (("variables", slots.given), ("optional", slots.optional))
            wanted = [f"{kind}: [{', '.join(names)}]" for kind, names in kinds if names]
            raise ConfigError(
                f"prompt {place} as {role}: {'; '.join(faults)}",
                expected=", ".join(wanted) or "no variables",
                hint="'esckit prompts list' shows which prompts are for this role; 'esckit prompts copy' begins one",
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
        is_heading = opens_a_part_of("\n".join(message.content for message in self.messages))
        return [
            Message(message.role, _fill(message.content, given, is_heading))
            for message in self.messages
            if message.when is None or message.when in given
        ]


def _fill(template: str, values: dict[str, str], is_heading: Callable[[str], bool]) -> str:
    """Replace every slot once; values are inserted as they are, but that no line of them opens a part of the prompt.

    Such a line is joined to the one before it. If it is the first, and its slot begins a line, it is marked.
    """

    def value_of(match: re.Match[str]) -> str:
        if match.group(0) in ("{{", "}}"):
            return match.group(0)[0]
        value = as_turn(values[match.group(1)], is_heading)
        begins_a_line = template[: match.start()][-1:] in ("", "\n")
        return f"{QUOTED} {value}" if begins_a_line and is_heading(value) else value

    return _SLOT.sub(value_of, template)


def load_prompt(name_or_path: str, role: str | None = None) -> Prompt:
    """Return a shipped prompt by name, or a user's own from a ``.yaml`` file.

    Args:
        name_or_path: The name or the file.
        role: Who it is for, a key of :data:`ROLES`; None does not check what it is filled in with.

    Raises:
        ConfigError: If there is no such prompt, it uses a variable that it does not declare, or the role gives others.
    """
    path, known = Path(name_or_path).expanduser(), prompt_names()
    if path.suffix in (".yaml", ".yml"):
        try:
            text = read_text(path)
        except DataError as error:
            raise ConfigError(f"prompt {path}: {error.found}", expected=error.expected) from error
        prompt = parse_prompt(text, name_or_path)
    elif name_or_path in known:
        prompt = parse_prompt(prompt_text(name_or_path), name_or_path)
    else:
        raise ConfigError(
            f"unknown prompt {name_or_path!r}",
            expected=f"one of {', '.join(known)}, or a .yaml file",
            hint=did_you_mean(name_or_path, known) or None,
        )
    if role is not None:
        prompt.check(role, name_or_path)
    return prompt


def keep_prompt(prompt: Prompt, folder: Path) -> None:
    """Write a user's own prompt beside what is trained with it, as :data:`KEPT`; a shipped one is known by its name."""
    if prompt.name not in prompt_names() or load_prompt(prompt.name) != prompt:
        text = yaml.safe_dump(prompt.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
        write_atomic(folder / KEPT, text)


def prompt_text(name: str) -> str:
    """Return the file of a shipped prompt."""
    return resources.files("esckit.prompts").joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def prompt_names() -> tuple[str, ...]:
    """Return the names of the shipped prompts, sorted."""
    files = resources.files("esckit.prompts").iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def parse_prompt(text: str, place: str) -> Prompt:
    """Return the prompt that a YAML text holds.

    Args:
        text: The text.
        place: What to call it in messages.

    Raises:
        ConfigError: With all that is wrong with it at once, each with its line.
    """
    data, lines = parse_yaml_lines(text, f"prompt {place}")
    wrong: list[str] = []
    try:
        prompt = Prompt.model_validate(data)
    except ValidationError as error:
        details = error.errors()
        wrong += [_shape_fault(detail, lines) for detail in details]
        if any(detail["type"] != "extra_forbidden" for detail in details):
            raise _wrong(place, wrong) from error
        # Unknown keys make no content unusable: what else is wrong is told beside them.
        for detail in details:
            *way, key = detail["loc"]
            holder = data
            for step in way:
                holder = holder[step]
            del holder[key]
        prompt = Prompt.model_validate(data)
    source = text.split("\n")
    wrong += dict.fromkeys(_told(fault, lines, source) for fault in _faults(prompt))
    if wrong:
        raise _wrong(place, wrong)
    return prompt


def _shape_fault(detail: ErrorDetails, lines: Mapping[Place, int]) -> str:
    """Return one finding of pydantic's in our words, with its line."""
    where, loc = dotted(detail["loc"]), detail["loc"]
    hint = did_you_mean(str(loc[-1]), _known_at(loc)) if detail["type"] == "extra_forbidden" else ""
    line = next((lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in lines), None)
    place = f"{where or 'the file'}{f' (line {line})' if line else ''}"
    return f"{place}: {complaint(detail)}" + (f" ({hint})" if hint else "")


def _known_at(place: Sequence[str | int]) -> Iterable[str]:
    return PromptMessage.model_fields if "messages" in place else Prompt.model_fields


def _wrong(place: str, faults: Sequence[str]) -> ConfigError:
    if len(faults) == 1:
        return ConfigError(f"prompt {place}: {faults[0]}")
    return ConfigError("\n  ".join([f"prompt {place}: {len(faults)} problems", *faults]))


class _Fault(NamedTuple):
    """What is wrong with a message (None: with the whole file), and the words of it by which its line is found."""

    message: int | None
    text: str
    words: str = ""


def _told(fault: _Fault, lines: Mapping[Place, int], source: Sequence[str]) -> str:
    """Return a fault with its place: the first line of its message that holds its words."""
    if fault.message is None:
        return fault.text
    first = lines[("messages", fault.message)]
    last = lines.get(("messages", fault.message + 1), len(source) + 1)
    line = next((number for number in range(first, last) if fault.words in source[number - 1]), first)
    return f"messages[{fault.message}] (line {line}): {fault.text}"


def _faults(prompt: Prompt) -> Iterator[_Fault]:
    """Yield what is wrong with the messages of a prompt."""
    declared = {*prompt.variables, *prompt.optional}
    known = f"declared here: {', '.join(sorted(declared)) or 'none'}"
    if not prompt.messages:
        yield _Fault(None, "messages: empty")
    for number, message in enumerate(prompt.messages):
        if not message.content.strip():
            yield _Fault(number, "content: empty")
        matches = list(_SLOT.finditer(message.content))
        for match in matches:
            if match[1] is None and match[0] not in ("{{", "}}"):
                line = (
                    message.content[: match.start()].rpartition("\n")[2]
                    + message.content[match.start() :].partition("\n")[0]
                )
                yield _Fault(number, "a single brace (write {{ for {)", line.strip())
        used = {match[1] for match in matches if match[1]}
        for name in sorted(used - declared):
            hint = did_you_mean(name, declared)
            yield _Fault(number, f"undeclared variable {name!r} ({hint or known})", f"{{{name}}}")
        for name in sorted(set(_DOUBLED.findall(message.content)) & declared):
            yield _Fault(number, f"{{{{{name}}}}} is not filled in; write {{{name}}}", f"{{{{{name}}}}}")
        for name in sorted((used & set(prompt.optional)) - {message.when}):
            yield _Fault(number, f"optional variable {name!r} without 'when'", f"{{{name}}}")
        if message.when is not None and message.when not in prompt.optional:
            yield _Fault(number, f"'when' names {message.when!r}, which is not optional", "when")
