"""The scripted chat model that ships with esckit: no weights, no network, the same answer to the same question.

An answer depends on the messages, the sampling and the seed of its call, and on nothing else. So a run with scripted
models gives the same bytes for every schedule, and every command can be tried and tested without a model. A script is
a YAML file; it is checked as a whole before the first question. A function may answer in place of a script.

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

import asyncio
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from esckit.documents import complaint, parse_yaml, read_text
from esckit.errors import BackendError, ConfigError
from esckit.ledger import derive_seed, uniform
from esckit.models.chat import make_reply
from esckit.models.streaming import listener
from esckit.protocols import Capability, ChatModel
from esckit.registry import did_you_mean, load_attr, nearest, own_code, shipped_dir
from esckit.types import ChoiceScore, ChoiceScores, Message, NextToken, Record, Reply, Sampling, StopReason, Usage

_LABELLED_LINE = re.compile(r"^(?:patient|therapist|seeker|supporter|user|assistant)(?: \[[^\]]*\])?: ", re.I | re.M)


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

    system: re.Pattern[str] | None = None
    user: re.Pattern[str] | None = None
    min_turns: int = Field(default=0, ge=0)
    max_turns: int | None = Field(default=None, ge=0)

    def matches(self, messages: Sequence[Message]) -> bool:
        """Return whether a prompt is meant."""
        system = "\n".join(message.content for message in messages if message.role == "system")
        if self.system is not None and not self.system.search(system):
            return False
        if self.user is not None and not self.user.search(_last_user_text(messages)):
            return False
        n = n_turns(messages)
        return self.min_turns <= n and (self.max_turns is None or n <= self.max_turns)


class ScriptedReply(Record):
    """One reply, and how often it is drawn in proportion to the others."""

    text: str
    weight: Weight = 1.0


class ScriptedFault(Record):
    """Something that goes wrong, with a probability drawn from the seed."""

    kind: Literal["blank", "nonsense", "length", "backend"]
    p: float = Field(default=1.0, ge=0.0, le=1.0)


_AsReply = BeforeValidator(lambda value: {"text": value} if isinstance(value, str) else value)

_AsRange = BeforeValidator(lambda value: (value, value) if isinstance(value, int | float) else value)


class Rule(Record):
    """What to answer to the prompts that it matches."""

    when: When = When()
    replies: tuple[Annotated[ScriptedReply, _AsReply], ...] = Field(min_length=1)
    choose: Literal["seed", "turns"] = "seed"
    latency_s: Annotated[tuple[Seconds, Seconds], _AsRange] = (0.0, 0.0)
    scores: dict[str, Weight] | None = Field(default=None, min_length=1)
    next_token: dict[str, Weight] | None = Field(default=None, min_length=1)
    spread: float = Field(default=0.0, ge=0.0, le=10.0)
    faults: tuple[ScriptedFault, ...] = ()

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


def _last_user_text(messages: Sequence[Message]) -> str:
    """Return the last user message, the empty string if there is none."""
    return next((message.content for message in reversed(messages) if message.role == "user"), "")


def n_turns(messages: Sequence[Message]) -> int:
    """Return the length of the conversation in a prompt.

    That is its user and assistant messages, or the lines in its last user message that begin with a speaker (``Patient:
    …``, ``Supporter [Clarification]: …``), whichever is more: who takes part may see messages, who judges sees lines.
    """
    n_messages = sum(message.role != "system" for message in messages)
    return max(n_messages, len(_LABELLED_LINE.findall(_last_user_text(messages))))


def _find_script(target: str) -> Path:
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


def _fault(details: ErrorDetails) -> str:
    place = details["loc"]
    path = ".".join(str(part) for part in place) or "the file"
    if details["type"] != "extra_forbidden":
        return f"{path}: {complaint(details)}"
    known = {name for model in (Script, Rule, When, ScriptedReply, ScriptedFault) for name in model.model_fields}
    close = nearest(str(place[-1]), known)
    return f"{path}: unknown key" + (f", did you mean {close!r}?" if close else "")


Answerer = Callable[[Sequence[Message], Sampling, int], str]


_NONSENSE = "qarv mip dolen, zet ubbo fra"

_UNLISTED_WEIGHT = 1e-6

_WORD = re.compile(r"\S+\s*")


def load_scripted(target: str) -> ChatModel:
    """Return the model behind ``{scripted: …}`` of a recipe.

    Args:
        target: A script file, the name of a shipped script, or ``module:attr``: a function ``(messages, sampling, seed)
            -> str``, or an object that is a chat model itself.

    Raises:
        ConfigError: If there is no such script, it has faults (all are named at once), or the object is neither.
    """
    if ":" not in target or Path(target).is_file():
        path = _find_script(target)
        text = read_text(path)
        data = parse_yaml(text, target)
        try:
            script = Script.model_validate(data)
        except ValidationError as error:
            faults = [_fault(details) for details in error.errors()]
            raise ConfigError(f"{target}: " + "; ".join(faults)) from error
        return ScriptedModel(script, name=f"scripted/{path.stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}")
    found = load_attr(target)
    if isinstance(found, type):
        raise ConfigError(f"{target!r} is a class", expected="a function, or an object made from the class")
    if isinstance(found, ChatModel):
        return found
    if callable(found):
        return ScriptedModel(found, name=f"scripted/{target}")
    raise ConfigError(
        f"{target!r} is a {type(found).__name__}",
        expected="a function (messages, sampling, seed) -> str, or a ChatModel",
    )


class ScriptedModel:
    """Answers by the rules of a script, or by a function.

    Tokens are words. Temperature 0 makes every draw of a script the same, as greedy decoding does; a reply longer than
    ``max_tokens`` words is cut, and stop texts are obeyed.

    Args:
        source: What to say: a script, or a function of the messages, the sampling and the seed, which should depend on
            nothing else. A function completes and offers no read-outs.
        name: Name for provenance.
    """

    def __init__(self, source: Script | Answerer, *, name: str) -> None:
        self._source = source
        self.name = name
        self.capabilities: frozenset[Capability] = source.capabilities if isinstance(source, Script) else frozenset()

    async def check(self) -> None:
        """Do nothing: the script was checked when it was read."""

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        """Answer by the first rule that matches, or ask the function.

        Raises:
            BackendError: If the script says so.
            ConfigError: If no rule matches, or the function does not return a text.
        """
        if not isinstance(self._source, Script):
            with own_code(self.name):
                written = self._source(messages, sampling, seed)
            if not isinstance(written, str):
                raise ConfigError(f"{self.name} returned a {type(written).__name__}", expected="a str")
            return await _told(_reply(messages, written, sampling))
        rule = self._rule(self._source, messages)
        if sampling.temperature == 0.0:
            seed = 0
        await _wait(rule, seed)
        pieces = self._source.pieces.items()
        drawn = {name: texts[int(_draw(seed, "piece", name) * len(texts))] for name, texts in pieces}
        text = Template(_chosen(rule, messages, seed)).substitute(drawn)
        fault = next((fault.kind for i, fault in enumerate(rule.faults) if _draw(seed, "fault", i) < fault.p), None)
        if fault == "backend":
            raise BackendError(f"{self.name}: a scripted failure of the backend")
        if fault in ("blank", "nonsense"):
            text = "" if fault == "blank" else _NONSENSE
        limit = max(1, len(text.split()) // 2) if fault == "length" else None
        return await _told(_reply(messages, text, sampling, limit))

    async def score(
        self, messages: Sequence[Message], choices: Sequence[str], *, temperature: float = 1.0
    ) -> ChoiceScores:
        """Return the log-probability of each choice by the rule's weights, with one token a word.

        A choice that the script does not list has a millionth of the listed weight, so that every score is finite.

        Raises:
            ConfigError: If the script does not offer scores, or no rule matches.
        """
        rule = await self._read_out("score", messages)
        weights = rule.weights(rule.scores)
        floor = _UNLISTED_WEIGHT * math.fsum(weights.values())
        weights |= {choice: floor for choice in choices if choice not in weights}
        log_p = _log_probabilities(weights, messages, rule.spread, temperature)
        scores = tuple(ChoiceScore(log_p[choice], max(1, len(choice.split()))) for choice in choices)
        return ChoiceScores(scores, _usage(messages, 0))

    async def next_token(
        self, messages: Sequence[Message], labels: Sequence[str], *, temperature: float = 1.0
    ) -> NextToken:
        """Return the probability of each label by the rule's weights; a label that it does not list has 0.

        Raises:
            ConfigError: If the script does not offer this, or no rule matches.
        """
        rule = await self._read_out("next_token", messages)
        log_p = _log_probabilities(rule.weights(rule.next_token), messages, rule.spread, temperature)
        found = tuple(math.exp(log_p[label]) if label in log_p else 0.0 for label in labels)
        return NextToken(found, min(1.0, math.fsum(found)), _usage(messages, 1))

    async def aclose(self) -> None:
        """Do nothing."""

    def _rule(self, script: Script, messages: Sequence[Message]) -> Rule:
        for rule in script.rules:
            if rule.when.matches(messages):
                return rule
        raise ConfigError(
            f"{self.name}: no rule matches a prompt of {n_turns(messages)} turns",
            hint="End the script with a rule without `when`.",
        )

    async def _read_out(self, capability: Capability, messages: Sequence[Message]) -> Rule:
        """Return the rule that gives the weights of a read-out, after its latency."""
        if not isinstance(self._source, Script) or capability not in self.capabilities:
            raise ConfigError(f"{self.name} does not offer {capability}", expected="readout: sampled")
        rule = self._rule(self._source, messages)
        await _wait(rule, _digest(messages))
        return rule


def _draw(seed: int, *aspect: str | int) -> float:
    """Return a number in [0, 1) that belongs to one aspect of a call, independent of those of its other aspects."""
    return uniform(derive_seed("scripted", seed, *aspect))


def _digest(messages: Sequence[Message]) -> int:
    """Return a seed that belongs to the messages."""
    return derive_seed("scripted", *(part for message in messages for part in (message.role, message.content)))


async def _wait(rule: Rule, seed: int) -> None:
    shortest, longest = rule.latency_s
    if longest > 0.0:
        await asyncio.sleep(shortest + (longest - shortest) * _draw(seed, "latency"))


def _chosen(rule: Rule, messages: Sequence[Message], seed: int) -> str:
    if rule.choose == "turns":
        return rule.replies[min(n_turns(messages) // 2, len(rule.replies) - 1)].text
    left = _draw(seed, "reply") * math.fsum(reply.weight for reply in rule.replies)
    for reply in rule.replies:
        left -= reply.weight
        if left < 0.0:
            return reply.text
    return rule.replies[-1].text


def _log_probabilities(
    weights: Mapping[str, float], messages: Sequence[Message], spread: float, temperature: float
) -> dict[str, float]:
    """Return the logarithms of weight**(1/T), normalised, after moving each weight by a factor of the prompt's own."""
    if temperature <= 0.0:
        raise ConfigError(f"temperature {temperature} for a read-out", expected="a positive temperature")
    key = _digest(messages)
    logits = {
        text: (math.log(weight) + spread * (2.0 * _draw(key, "weight", text) - 1.0)) / temperature
        for text, weight in weights.items()
    }
    top = max(logits.values())
    log_total = top + math.log(math.fsum(math.exp(logit - top) for logit in logits.values()))
    return {text: logit - log_total for text, logit in logits.items()}


_KEYS = re.compile(r'keys are exactly ((?:"[^"]+"(?:, )?)+)')


def any_strategies(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    """Answer a strategist's prompt with probabilities of whatever strategies it names, drawn by the seed.

    It serves to try a taxonomy of one's own: ``{scripted: "esckit.models.scripted:any_strategies"}``. The script
    ``strategist`` knows the strategies of taxonomy aflow alone.

    Raises:
        ConfigError: If the prompt does not name the keys of an answer as the shipped prompts do.
    """
    named = _KEYS.search(messages[-1].content)
    if named is None:
        raise ConfigError(
            "a prompt that does not name the keys of the answer",
            expected="a strategist's prompt with {keys}, and strategist.readout: json",
        )
    keys = re.findall(r'"([^"]+)"', named[1])
    weights = [0.5 + _draw(seed, _digest(messages), key) for key in keys]
    return json.dumps({key: round(weight / sum(weights), 3) for key, weight in zip(keys, weights, strict=True)})


def _reply(messages: Sequence[Message], text: str, sampling: Sampling, limit: int | None = None) -> Reply:
    """Return a reply that obeys stop texts and the token limit, and one further limit if given."""
    for stop in sampling.stop:
        text = text.partition(stop)[0] if stop else text
    words = _WORD.findall(text)
    n_kept = min(len(words), sampling.max_tokens)
    if limit is not None:
        n_kept = min(n_kept, limit)
    is_cut = n_kept < len(words) or limit is not None
    kept = "".join(words[:n_kept]).rstrip() if is_cut else text
    stop_reason = StopReason.LENGTH if is_cut else StopReason.STOP
    return make_reply(kept, stop_reason, _usage(messages, n_kept), max_tokens=sampling.max_tokens)


async def _told(reply: Reply) -> Reply:
    """Return a reply after telling the listener of this task, if there is one, of it word by word."""
    listen = listener()
    if listen is not None:
        for word in _WORD.finditer(reply.whole):
            listen(reply.whole[: word.end()])
            await asyncio.sleep(0)
    return reply


def _usage(messages: Sequence[Message], n_written: int) -> Usage:
    n_read = sum(len(message.content.split()) for message in messages)
    return Usage(calls=1, prompt_tokens=n_read, completion_tokens=n_written)
