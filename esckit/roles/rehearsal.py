"""Stand-ins for the models of a run, which let it be rehearsed: what it may cost is measured without any model.

A stand-in answers in the form that its role asks for and says as much as its sampling allows, and a critic is never
satisfied. So a rehearsed unit of work takes the longest way that the recipe allows, through the roles' own prompts.
What is counted as prompt tokens of a stand-in are bytes of UTF-8; :mod:`esckit.play.forecast` makes tokens of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from esckit.config.sections import (
    BackboneBinding,
    Binding,
    Checkpoint,
    EndpointBinding,
    Executor,
    RoleOptions,
    ScriptedBinding,
)
from esckit.ledger import Scope
from esckit.models.budget import BudgetedModel
from esckit.protocols import Capability, ChatModel, Decision, Part
from esckit.roles.asking import Voice, Window
from esckit.roles.pool import ModelPool, Trained
from esckit.roles.rubric import load_rubric
from esckit.strategies.taxonomy import Taxonomy
from esckit.types import (
    ChoiceScore,
    ChoiceScores,
    Limits,
    Message,
    NextToken,
    Replies,
    Reply,
    Sampling,
    Scenario,
    StopReason,
    Turn,
    Usage,
)

BYTES_PER_TOKEN = 4.0
"""Bytes of UTF-8 taken as one token where a model's tokenizer is not at hand; of English it is a little more."""

_TEMPLATE_BYTES = 32
"""What a chat template adds to a message, in bytes: about eight tokens."""

_WORD = "lorem "

_SAMPLE_CHARS = 40_000

_UNSOLVED = "Significantly Worse"
"""A resolution critic's answer that every preset reads as its lowest level."""


def answers(
    taxonomy: Taxonomy | None, *, raters: Sequence[str] = ("turn_judge",), rubric: str = "aflow"
) -> dict[str, str]:
    """Return what stand-ins say where an answer has to have a form, by role.

    Args:
        taxonomy: What a prompted strategist chooses from; None without one.
        raters: The roles that rate turns by a rubric. A critic that is not among them judges resolution.
        rubric: Its name.
    """
    ratings = "\n".join(f"{number}: 3" for number in range(1, len(load_rubric(rubric).criteria) + 1))
    found = {"critic": _UNSOLVED, "judge": "Yes.", **dict.fromkeys(raters, ratings)}
    if taxonomy is not None:
        found["strategist"] = json.dumps(dict.fromkeys(taxonomy.abbrs, 1 / len(taxonomy.abbrs)))
    return found


class StandIn:
    """A chat model that says the same always.

    Args:
        name: Of the model that it stands for.
        capabilities: What that model offers.
        says: The answer; None says as much as is allowed.
        max_words: The most words that its role may say; None sets no limit.

    Attributes:
        read: The first prompts as text, up to a limit.
        asked: The same prompts as messages.
    """

    def __init__(
        self, name: str, capabilities: frozenset[Capability], says: str | None, max_words: int | None = None
    ) -> None:
        self.name, self.capabilities = name, capabilities
        self._says, self._max_words = says, max_words
        self.read: list[str] = []
        self.asked: list[tuple[Message, ...]] = []
        self._n_read = 0

    async def check(self) -> None:
        """Do nothing."""

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        """Return the longest answer that may come."""
        return Reply(
            longest_text(sampling.max_tokens, self._max_words) if self._says is None else self._says,
            StopReason.STOP,
            self._usage(messages, sampling.max_tokens),
        )

    async def complete_several(self, messages: Sequence[Message], sampling: Sampling, *, seed: int, n: int) -> Replies:
        """Return the longest answer as often as is asked for; the prompt counts once."""
        first = await self.complete(messages, sampling, seed=seed)
        others = Usage(completion_tokens=sampling.max_tokens)
        return Replies((first, *(replace(first, usage=others) for _ in range(n - 1))))

    async def score(
        self, messages: Sequence[Message], choices: Sequence[str], *, temperature: float = 1.0
    ) -> ChoiceScores:
        """Return the same for every choice."""
        log_p = -math.log(len(choices))
        return ChoiceScores(tuple(ChoiceScore(log_p, 1) for _ in choices), self._usage(messages, 0))

    async def next_token(
        self, messages: Sequence[Message], labels: Sequence[str], *, temperature: float = 1.0
    ) -> NextToken:
        """Return the same for every label."""
        return NextToken(tuple(1 / len(labels) for _ in labels), 1.0, self._usage(messages, 1))

    async def aclose(self) -> None:
        """Do nothing."""

    def _usage(self, messages: Sequence[Message], n_written: int) -> Usage:
        n_bytes = sum(len(message.content.encode("utf-8", "replace")) + _TEMPLATE_BYTES for message in messages)
        if self._n_read < _SAMPLE_CHARS:
            text = "\n".join(message.content for message in messages)
            self._n_read += len(text)
            self.read.append(text.replace(_WORD, ""))
            self.asked.append(tuple(messages))
        return Usage(calls=1, prompt_tokens=n_bytes, completion_tokens=n_written)


def longest_text(max_tokens: int, max_words: int | None = None) -> str:
    """Return a text as long as so many tokens and words allow."""
    n_words = int(max_tokens * BYTES_PER_TOKEN / len(_WORD)) + 1
    return _WORD * min(n_words, max_words or n_words)


class _Policy:
    """A trained strategist that takes the first strategy."""

    def __init__(self, strategies: tuple[str, ...]) -> None:
        self.strategies = strategies

    async def decide(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Decision:
        """Return the first strategy."""
        n = len(self.strategies)
        return Decision(self.strategies[0], (1 / n,) * n, Usage(calls=1, prompt_tokens=_n_bytes(turns)))


class _Writer:
    """A trained writer of supporter turns that says as much as is allowed."""

    name = "stand-in"

    def __init__(self, max_words: int | None) -> None:
        self._max_words = max_words

    async def write(self, turns: Sequence[Turn], strategy: str, sampling: Sampling, scope: Scope) -> Reply:
        """Return the longest turn that may come."""
        scope.seed("supporter")
        usage = Usage(calls=1, prompt_tokens=_n_bytes(turns), completion_tokens=sampling.max_tokens)
        return Reply(longest_text(sampling.max_tokens, self._max_words), StopReason.STOP, usage)


class _Scorer:
    """A reward model that scores every reply alike."""

    def score(self, conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> list[float]:
        """Return 0.5 for each."""
        return [0.5] * len(responses)


class _Perplexity:
    """A language model to which every reply is alike."""

    nll, n_tokens = 1.0, 1

    def score(self, turns: Sequence[Turn], reply: str) -> _Perplexity:
        """Return the same for every reply."""
        return self


def _n_bytes(turns: Sequence[Turn]) -> int:
    return sum(len(turn.text.encode("utf-8", "replace")) + _TEMPLATE_BYTES for turn in turns)


class Rehearsal(ModelPool):
    """A pool whose models are stand-ins; it loads and asks nothing.

    Args:
        answers: What a role says where its answer has to have a form: a critic, a strategist, a judge.

    Attributes:
        stand_ins: The chat models by role.
        bindings: The model that each role is bound to.
    """

    IS_REHEARSAL = True

    def __init__(self, answers: Mapping[str, str]) -> None:
        super().__init__(Executor(), Limits())
        self._answers = answers
        self.stand_ins: dict[str, StandIn] = {}
        self.bindings: dict[str, Binding] = {}

    async def prepare(self, bindings: Mapping[str, Binding]) -> None:
        """Note who is bound to what."""
        self.bindings |= bindings

    def model(self, binding: Binding, role: str) -> ChatModel:
        """Return the stand-in of a role; it offers what the model of its binding offers at best."""
        self.bindings[role] = binding
        if role not in self.stand_ins:
            offers: frozenset[Capability] = frozenset(("score", "next_token"))
            if isinstance(binding, EndpointBinding):
                offers = frozenset(("next_token",))
            max_words = binding.max_words if isinstance(binding, RoleOptions) else None
            self.stand_ins[role] = StandIn(described(binding), offers, self._answers.get(role), max_words)
        return BudgetedModel(self.stand_ins[role], self.budget, role)

    def voice(self, binding: RoleOptions, role: str, *, max_attempts: int) -> Voice:
        """Return a stand-in as its role uses it."""
        window = Window()
        if binding.max_context_tokens is not None:
            limit = int(binding.max_context_tokens * BYTES_PER_TOKEN)
            window = Window(limit, lambda messages: sum(len(message.content) + _TEMPLATE_BYTES for message in messages))
        return Voice(self.model(binding, role), binding, max_attempts, window)

    def trained(self, binding: Binding, part: Part, taxonomy: Taxonomy | None = None) -> Trained:
        """Return a stand-in for a checkpoint that does what it was trained for."""
        if part == "strategist":
            assert taxonomy is not None
            return Trained(part, "stand-in", _Policy(taxonomy.names))
        max_words = binding.max_words if isinstance(binding, RoleOptions) else None
        return Trained(part, "stand-in", _Writer(max_words) if part == "writer" else _Scorer())

    def scorer(self, binding: BackboneBinding) -> Any:
        """Return a stand-in for the language model of perplexities."""
        return _Perplexity()


def described(binding: Binding) -> str:
    """Return the name of a binding's model, as a recipe has it."""
    match binding:
        case EndpointBinding():
            return binding.model
        case BackboneBinding():
            return binding.backbone
        case ScriptedBinding():
            return binding.scripted
        case Checkpoint():
            return binding.checkpoint
    return type(binding).__name__
