"""The scripted chat model that ships with esckit: no weights, no network, the same answer to the same question.

An answer depends on the messages, the sampling and the seed of its call, and on nothing else; so a run with scripted
models gives the same bytes for every schedule, and every command can be tried and tested without a model. What a script
may say is written down in :mod:`esckit.models.script`.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Protocol, runtime_checkable

from esckit.documents import read_text
from esckit.errors import BackendError, ConfigError
from esckit.ledger import derive_seed, uniform
from esckit.models.reasoning import make_reply
from esckit.models.script import Rule, Script, find_script, n_turns, parse_script
from esckit.protocols import Capability, ChatModel
from esckit.registry import load_attr, own_code
from esckit.types import ChoiceScore, ChoiceScores, Message, NextToken, Reply, Sampling, StopReason, Usage

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
        ConfigError: If there is no such script, it has faults, or the object is neither.
    """
    if ":" not in target or Path(target).is_file():
        path = find_script(target)
        text = read_text(path)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return ScriptedModel(parse_script(text, place=target), name=f"scripted/{path.stem}-{digest}")
    found = load_attr(target)
    if isinstance(found, type):
        raise ConfigError(f"{target!r} is a class", expected="a function, or an object made from the class")
    if isinstance(found, _AnyChatModel):
        return found
    if callable(found):
        return CallableModel(found, name=f"scripted/{target}")
    raise ConfigError(
        f"{target!r} is a {type(found).__name__}",
        expected="a function (messages, sampling, seed) -> str, or a ChatModel",
    )


@runtime_checkable
class _AnyChatModel(ChatModel, Protocol):
    """A chat model that can be told apart from a function at run time."""


class ScriptedModel:
    """Answers by the rules of a script.

    Tokens are words. Temperature 0 makes every draw the same, as greedy decoding does; a reply longer than
    ``max_tokens`` words is cut, and stop texts are obeyed.

    Args:
        script: What to say.
        name: Name for provenance.
    """

    def __init__(self, script: Script, *, name: str) -> None:
        self._script = script
        self._name = name

    @property
    def name(self) -> str:
        """The script's name and digest."""
        return self._name

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the script claims."""
        return self._script.capabilities

    async def check(self) -> None:
        """Do nothing: the script was checked when it was read."""

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        """Answer by the first rule that matches.

        Raises:
            BackendError: If the script says so.
            ConfigError: If no rule matches.
        """
        rule = self._rule(messages)
        if sampling.temperature == 0.0:
            seed = 0
        await _wait(rule, seed)
        text = self._filled(_chosen(rule, messages, seed), seed)
        fault = next(
            (fault.kind for i, fault in enumerate(rule.faults) if _draw(seed, "fault", i) < fault.p),
            None,
        )
        if fault == "backend":
            raise BackendError(f"{self.name}: a scripted failure of the backend")
        if fault in ("blank", "nonsense"):
            text = "" if fault == "blank" else _NONSENSE
        limit = max(1, _n_words(text) // 2) if fault == "length" else None
        return _reply(messages, text, sampling, limit)

    async def score(
        self, messages: Sequence[Message], choices: Sequence[str], *, temperature: float = 1.0
    ) -> ChoiceScores:
        """Return the log-probability of each choice by the rule's weights, with one token a word.

        A choice that the script does not list has a millionth of the listed weight, so that every score is finite.

        Raises:
            ConfigError: If the script does not offer scores, or no rule matches.
        """
        self._need("score")
        rule = self._rule(messages)
        await _wait(rule, _digest(messages))
        weights = rule.weights(rule.scores)
        floor = _UNLISTED_WEIGHT * math.fsum(weights.values())
        weights |= {choice: floor for choice in choices if choice not in weights}
        log_p = _log_probabilities(weights, messages, rule.spread, temperature)
        scores = tuple(ChoiceScore(log_p[choice], max(1, _n_words(choice))) for choice in choices)
        return ChoiceScores(scores, _usage(messages, 0))

    async def next_token(
        self, messages: Sequence[Message], labels: Sequence[str], *, temperature: float = 1.0
    ) -> NextToken:
        """Return the probability of each label by the rule's weights; a label that it does not list has 0.

        Raises:
            ConfigError: If the script does not offer this, or no rule matches.
        """
        self._need("next_token")
        rule = self._rule(messages)
        await _wait(rule, _digest(messages))
        log_p = _log_probabilities(rule.weights(rule.next_token), messages, rule.spread, temperature)
        found = tuple(math.exp(log_p[label]) if label in log_p else 0.0 for label in labels)
        return NextToken(found, min(1.0, math.fsum(found)), _usage(messages, 1))

    async def aclose(self) -> None:
        """Do nothing."""

    def _rule(self, messages: Sequence[Message]) -> Rule:
        for rule in self._script.rules:
            if rule.when.matches(messages):
                return rule
        raise ConfigError(
            f"{self.name}: no rule matches a prompt of {n_turns(messages)} turns",
            hint="End the script with a rule without `when`.",
        )

    def _need(self, capability: Capability) -> None:
        if capability not in self.capabilities:
            raise ConfigError(f"{self.name} does not offer {capability}", expected="readout: sampled")

    def _filled(self, text: str, seed: int) -> str:
        pieces = {
            name: texts[int(_draw(seed, "piece", name) * len(texts))] for name, texts in self._script.pieces.items()
        }
        return Template(text).substitute(pieces)


class CallableModel:
    """A chat model made from a function; it completes and nothing else.

    Args:
        answer: Function of the messages, the sampling and the seed; it should depend on nothing else.
        name: Name for provenance.
    """

    def __init__(self, answer: Answerer, *, name: str) -> None:
        self._answer = answer
        self._name = name

    @property
    def name(self) -> str:
        """Where the function was found."""
        return self._name

    @property
    def capabilities(self) -> frozenset[Capability]:
        """None."""
        return frozenset()

    async def check(self) -> None:
        """Do nothing."""

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        """Ask the function.

        Raises:
            ConfigError: If it does not return a text.
        """
        with own_code(self.name):
            text = self._answer(messages, sampling, seed)
        if not isinstance(text, str):
            raise ConfigError(f"{self.name} returned a {type(text).__name__}", expected="a str")
        return _reply(messages, text, sampling)

    async def score(
        self, messages: Sequence[Message], choices: Sequence[str], *, temperature: float = 1.0
    ) -> ChoiceScores:
        """Refuse.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{self.name} does not offer score", expected="readout: sampled")

    async def next_token(
        self, messages: Sequence[Message], labels: Sequence[str], *, temperature: float = 1.0
    ) -> NextToken:
        """Refuse.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{self.name} does not offer next_token", expected="readout: sampled")

    async def aclose(self) -> None:
        """Do nothing."""


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


def _usage(messages: Sequence[Message], n_written: int) -> Usage:
    n_read = sum(_n_words(message.content) for message in messages)
    return Usage(calls=1, prompt_tokens=n_read, completion_tokens=n_written)


def _n_words(text: str) -> int:
    return len(text.split())
