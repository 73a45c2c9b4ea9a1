"""The script file of a scripted model: rules, replies and faults as data, checked whole before anything is asked.

::

    capabilities: [score, next_token]     # what the model claims to offer; this is the default
    pieces:                               # ${opening} in a reply becomes one of these, drawn by the seed
      opening: ["That sounds hard.", "I can hear how tired you are."]
    rules:                                # the first one that matches a prompt answers it
      - when: {system: REGEX, user: REGEX, min_turns: 0, max_turns: 5}     # all optional; no `when` matches always
        replies: ["${opening} Tell me more.", {text: "What then?", weight: 2}]
        choose: seed                      # or `turns`: the further the conversation, the later the reply
        latency_s: [0.0, 0.05]            # a number, or a range from which the seed draws
        scores: {Same: 3, Slightly Better: 1}    # weights for `score`; without it, those of the replies
        next_token: {"1": 1, "5": 3}             # weights for `next_token`; without it, those of the replies
        spread: 0.5                       # weights differ between prompts by factors up to exp(±spread)
        faults: [{kind: blank, p: 0.1}]   # blank | nonsense | length | backend; p = 1 without it
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from esckit.complaints import complaint
from esckit.documents import parse_yaml
from esckit.errors import ConfigError
from esckit.protocols import Capability
from esckit.registry import did_you_mean, nearest
from esckit.resources import shipped_dir
from esckit.types import Message, Record

_LABELLED_LINE = re.compile(r"^(?:patient|therapist|seeker|supporter|user|assistant)(?: \[[^\]]*\])?: ", re.I | re.M)


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression ({error})") from error
    return pattern


Regex = Annotated[str, AfterValidator(_compiles)]
Weight = Annotated[float, Field(gt=0.0)]
Seconds = Annotated[float, Field(ge=0.0, le=600.0)]


class When(Record):
    """Which prompts a rule answers; whatever is given must hold.

    Attributes:
        system: Found anywhere in the system messages.
        user: Found anywhere in the last user message.
        min_turns: Fewest turns, see :func:`n_turns`.
        max_turns: Most turns.
    """

    system: Regex | None = None
    user: Regex | None = None
    min_turns: int = Field(default=0, ge=0)
    max_turns: int | None = Field(default=None, ge=0)

    def matches(self, messages: Sequence[Message]) -> bool:
        """Return whether a prompt is meant."""
        system = "\n".join(message.content for message in messages if message.role == "system")
        if self.system is not None and not re.search(self.system, system):
            return False
        if self.user is not None and not re.search(self.user, last_user_text(messages)):
            return False
        n = n_turns(messages)
        return self.min_turns <= n and (self.max_turns is None or n <= self.max_turns)


class ScriptedReply(Record):
    """One reply, and how often it is drawn in proportion to the others."""

    text: str
    weight: Weight = 1.0


class Fault(Record):
    """Something that goes wrong, with a probability drawn from the seed."""

    kind: Literal["blank", "nonsense", "length", "backend"]
    p: float = Field(default=1.0, ge=0.0, le=1.0)


def _as_reply(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


def _as_range(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float) else value


class Rule(Record):
    """What to answer to the prompts that it matches."""

    when: When = When()
    replies: tuple[Annotated[ScriptedReply, BeforeValidator(_as_reply)], ...] = Field(min_length=1)
    choose: Literal["seed", "turns"] = "seed"
    latency_s: Annotated[tuple[Seconds, Seconds], BeforeValidator(_as_range)] = (0.0, 0.0)
    scores: dict[str, Weight] | None = Field(default=None, min_length=1)
    next_token: dict[str, Weight] | None = Field(default=None, min_length=1)
    spread: float = Field(default=0.0, ge=0.0, le=10.0)
    faults: tuple[Fault, ...] = ()

    def weights(self, stated: dict[str, float] | None) -> dict[str, float]:
        """Return a copy of the stated weights, else those of the replies, by text."""
        if stated is not None:
            return dict(stated)
        weights: dict[str, float] = {}
        for reply in self.replies:
            weights[reply.text.strip()] = weights.get(reply.text.strip(), 0.0) + reply.weight
        return weights


class Script(Record):
    """A whole script file."""

    capabilities: frozenset[Capability] = frozenset({"score", "next_token"})
    pieces: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    rules: tuple[Rule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _pieces_exist(self) -> Self:
        for name, texts in self.pieces.items():
            if not texts:
                raise ValueError(f"pieces.{name} is empty")
        for rule in self.rules:
            for reply in rule.replies:
                template = Template(reply.text)
                if not template.is_valid():
                    raise ValueError(f"a lone $ in {reply.text!r}: write $$")
                if unknown := set(template.get_identifiers()) - set(self.pieces):
                    raise ValueError(f"no pieces named {', '.join(sorted(unknown))}")
        return self


def last_user_text(messages: Sequence[Message]) -> str:
    """Return the last user message, the empty string if there is none."""
    return next((message.content for message in reversed(messages) if message.role == "user"), "")


def n_turns(messages: Sequence[Message]) -> int:
    """Return the length of the conversation in a prompt.

    That is its user and assistant messages, or the lines in its last user message that begin with a speaker (``Patient:
    …``, ``Supporter [Clarification]: …``), whichever is more: who takes part may see messages, who judges sees lines.
    """
    n_messages = sum(message.role != "system" for message in messages)
    return max(n_messages, len(_LABELLED_LINE.findall(last_user_text(messages))))


def find_script(target: str) -> Path:
    """Return the file of a script: a path, or the name of one that ships with esckit (``seeker``).

    Raises:
        ConfigError: If there is neither.
    """
    shipped = shipped_dir("recipes") / "scripted"
    candidates = (Path(target), shipped / target, shipped / f"{target}.yaml", shipped_dir("recipes").parent / target)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = sorted(path.stem for path in shipped.glob("*.yaml"))
    raise ConfigError(
        f"no script {target!r}",
        expected=f"a file, module:attr, or one of {', '.join(names)}",
        hint=did_you_mean(target, names) or None,
    )


def parse_script(text: str, *, place: str) -> Script:
    """Return the script in a YAML text.

    Args:
        text: Content of the file.
        place: What to call the file in errors.

    Raises:
        ConfigError: If it is not a script; the message names all faults at once.
    """
    data = parse_yaml(text, place)
    try:
        return Script.model_validate(data)
    except ValidationError as error:
        faults = [_fault(details) for details in error.errors()]
        raise ConfigError(f"{place}: " + "; ".join(faults)) from error


def _fault(details: ErrorDetails) -> str:
    place = details["loc"]
    path = ".".join(str(part) for part in place) or "the file"
    if details["type"] != "extra_forbidden":
        return f"{path}: {complaint(details)}"
    known = {name for model in (Script, Rule, When, ScriptedReply, Fault) for name in model.model_fields}
    close = nearest(str(place[-1]), known)
    return f"{path}: unknown key" + (f", did you mean {close!r}?" if close else "")
