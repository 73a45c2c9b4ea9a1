"""Who takes part in a talk: seekers play the person of a scenario; supporters and strategists see the talk alone.

The seeker of RLFF-ESC (arXiv 2508.12935) stays until others end the conversation; the seeker of AFlow (arXiv
2602.08826) remembers its seed dialogue and may be relieved, or leave.

There are three supporters: a chat model that reasons before it answers (RLFF-ESC), one that carries out a given
strategy in one utterance (AFlow), and a flow checkpoint that was trained to write. Which of them a binding and a prompt
make is decided in :mod:`esckit.roles.cast`.

The prompted strategist is a prior over strategies at a supporter decision (AFlow). It has two read-outs. ``json``: the
model writes one probability per strategy. ``choices``: one scoring pass over the names of the strategies, or over
option letters where a model only gives next-token probabilities; deterministic, for small models that cannot keep to
the JSON form. A trained policy stands in the same place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from math import exp
from string import ascii_uppercase
from typing import Literal, Protocol

from esckit.config.sections import RoleOptions
from esckit.errors import ConfigError, ParseError, UnscoredError
from esckit.ledger import Scope, uniform
from esckit.models.budget import Budget
from esckit.models.chat import merge_messages
from esckit.prompts.prompt import Prompt
from esckit.protocols import Decision, SeekerTurn
from esckit.roles.asking import (
    LEAVES,
    RESOLVED,
    Voice,
    as_chat,
    as_tagged_lines,
    ask,
    asks_for_tags,
    clean_reply,
    clean_utterance,
    finished_text,
    need_answer,
    one_line,
    read_output,
    scene_of,
    split_output,
    until_parsed,
    within_words,
)
from esckit.roles.verdicts import read_json, verdict_text
from esckit.strategies.taxonomy import Taxonomy
from esckit.text import is_spaceless, tokenise, whole_sentences
from esckit.types import Generation, Message, Outcome, Reply, Sampling, Scenario, StopReason, Turn


@dataclass(frozen=True, slots=True)
class PromptedSeeker:
    """A chat model in the seeker's role (RLFF-ESC, arXiv 2508.12935); it cannot leave the conversation.

    Attributes:
        voice: Model and settings.
        prompt: A prompt with ``emotion_type``, ``problem_type`` and the optional ``situation``.
    """

    voice: Voice
    prompt: Prompt

    async def reply(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> SeekerTurn:
        """Answer the last supporter turn.

        Raises:
            ModelError: If every attempt was blank, or cut off where that is not allowed, or the backend failed.
        """
        opening = self.prompt.render(
            emotion_type=scenario.emotion_type or "None",
            problem_type=scenario.problem_type or "None",
            situation=scenario.situation or None,
        )
        # The prompt states the situation already, so an opening that repeats it is not shown.
        opening_text = turns[0].text if turns and turns[0].speaker == "seeker" else ""
        talk = turns[1:] if scenario.situation and opening_text == scenario.situation else turns

        def messages(shown: Sequence[Turn]) -> list[Message]:
            return merge_messages([*opening, *as_chat(shown, speaking="seeker")])

        return await ask(self.voice, messages, talk, scope, "seeker", self._parse)

    def _parse(self, reply: Reply) -> SeekerTurn:
        text = clean_reply(finished_text(reply, self.voice.options.on_length), speaking="seeker")
        if not text:
            raise ParseError("a blank reply", kind="blank", samples=(reply.text,))
        return SeekerTurn(within_words(text, self.voice.options.max_words))


_QUOTE_WORDS = 8

_QUOTE_CHARACTERS = 16

_PUNCTUATION = re.compile(r"[^\w\s]|_")


@dataclass(frozen=True, slots=True)
class AFlowSeeker:
    """A chat model that plays the seeker of a seed dialogue.

    Attributes:
        voice: Model and settings.
        prompt: A prompt with ``scene``, ``situation``, ``memory``, ``own_turn`` and ``transcript``.
        taxonomy: Whose strategy tags a reply may not contain.
        memories: Scenario id to the turns of its seed dialogue, which only the seeker knows.
        memory_guard: Refuse replies that quote eight words in a row from one turn of the memory, so that the corpus
            text does not leak into trees.
    """

    voice: Voice
    prompt: Prompt
    taxonomy: Taxonomy
    memories: Mapping[str, Sequence[Turn]]
    memory_guard: bool

    async def reply(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> SeekerTurn:
        """Answer the last supporter turn, be relieved, or leave.

        Raises:
            ModelError: If no usable reply came within the allowed attempts.
        """
        memory = self.memories.get(scenario.id, ())
        own_turn = 1 + sum(turn.speaker == "seeker" for turn in turns)

        def messages(shown: Sequence[Turn]) -> list[Message]:
            return self.prompt.render(
                scene=scene_of(scenario),
                situation=scenario.situation or "not stated",
                memory=as_tagged_lines(memory, show_strategy=False) or "nothing more",
                own_turn=str(own_turn),
                transcript=as_tagged_lines(shown, show_strategy=False),
            )

        def parse(reply: Reply) -> SeekerTurn:
            line = one_line(reply, self.voice.options.on_length)
            answer = parse_seeker(line, self.taxonomy, self.voice.options.max_words)
            if self.memory_guard and quotes(answer.text, memory):
                raise ParseError("a reply that quotes the seeker's memory", kind="memory", samples=(answer.text,))
            return answer

        return await ask(self.voice, messages, turns, scope, "seeker", parse)


def parse_seeker(text: str, taxonomy: Taxonomy, max_words: int | None) -> SeekerTurn:
    """Return what a seeker's text says and how the conversation ends with it.

    ``</end/>`` alone means leaving, ``<ok>`` at the end of an utterance means relief; anywhere else they are invalid.

    Raises:
        ParseError: If the text is not one valid utterance.
    """
    if text == LEAVES:
        return SeekerTurn("", Outcome.DISENGAGED)
    if text.endswith(RESOLVED):
        return SeekerTurn(clean_utterance(text.removesuffix(RESOLVED).rstrip(), taxonomy, max_words), Outcome.RESOLVED)
    return SeekerTurn(clean_utterance(text, taxonomy, max_words))


def quotes(text: str, memory: Sequence[Turn]) -> bool:
    """Return whether eight consecutive words of a text stand in the same order in one turn of a memory.

    Case and punctuation do not count. In scripts without spaces it takes sixteen characters.
    """
    words = tokenise(_bare(text))
    spaceless = 2 * sum(map(is_spaceless, words)) > len(words)
    n = _QUOTE_CHARACTERS if spaceless else _QUOTE_WORDS
    remembered = _remembered(tuple(turn.text for turn in memory))
    return any(f" {' '.join(words[start : start + n])} " in remembered for start in range(len(words) - n + 1))


@lru_cache(maxsize=64)
def _remembered(texts: tuple[str, ...]) -> str:
    """Return the words of a memory, a line for each turn; every reply of a tree is held against the same one."""
    return "\n".join(f" {' '.join(tokenise(_bare(text)))} " for text in texts)


def _bare(text: str) -> str:
    return _PUNCTUATION.sub("", text.casefold())


@dataclass(frozen=True, slots=True)
class PromptedSupporter:
    """A chat model in the supporter's role, with explicit reasoning (RLFF-ESC, arXiv 2508.12935).

    Attributes:
        voice: Model and settings.
        prompt: A prompt whose only variable is the optional ``strategy``.
        definitions: Strategy name to what the supporter is asked to do under it.
    """

    voice: Voice
    prompt: Prompt
    definitions: Mapping[str, str] = field(default_factory=dict)

    async def reply(self, turns: Sequence[Turn], scope: Scope, *, strategy: str | None = None) -> Generation:
        """Answer the last seeker turn.

        Raises:
            ModelError: If every attempt was blank, or cut off where that is not allowed, or the backend failed.
        """
        instruction = None if strategy is None else f"{strategy}: {self.definitions[strategy]}"
        opening = self.prompt.render(strategy=instruction)

        def messages(shown: Sequence[Turn]) -> list[Message]:
            return merge_messages([*opening, *as_chat(shown, speaking="supporter")])

        return await ask(self.voice, messages, turns, scope, "supporter", self._parse)

    def _parse(self, reply: Reply) -> Generation:
        return read_supporter(reply, self.voice.options, self.prompt)


def read_supporter(reply: Reply, options: RoleOptions, prompt: Prompt) -> Generation:
    """Return what a supporter that reasons before it answers said, whoever asked it.

    Args:
        reply: What its model wrote.
        options: What a valid turn is.
        prompt: What it was asked; without tags in it, plain text is what was agreed.

    Raises:
        ParseError: If there is no reply in it, or it was cut or is too long where that is not allowed.
    """
    found = read_output(reply.whole)
    cut = reply.stop_reason is StopReason.LENGTH
    if cut:
        need_answer(reply)
    if cut and options.on_length == "fail":
        raise ParseError("a reply cut at the token limit", kind="too_long", samples=(reply.whole,))
    response = found.response
    if cut and found.parse_kind in ("open_response", "untagged"):
        response = whole_sentences(response)
    if not response:
        raise ParseError("a blank reply", kind="blank", samples=(reply.whole,))
    format_ok = found.format_ok or (found.parse_kind == "untagged" and not asks_for_tags(prompt))
    return found.model_copy(update={"response": within_words(response, options.max_words), "format_ok": format_ok})


@dataclass(frozen=True, slots=True)
class AFlowSupporter:
    """A chat model that carries out a strategy in one utterance; it sees neither scene nor earlier strategies.

    Attributes:
        voice: Model and settings.
        prompt: A prompt with ``strategy``, ``definition`` and ``transcript``.
        taxonomy: The strategies.
    """

    voice: Voice
    prompt: Prompt
    taxonomy: Taxonomy

    async def reply(self, turns: Sequence[Turn], scope: Scope, *, strategy: str | None = None) -> Generation:
        """Answer the last seeker turn under a strategy.

        Raises:
            ConfigError: If no strategy is given.
            ModelError: If no usable reply came within the allowed attempts.
        """
        if strategy is None:
            raise ConfigError("the supporter_aflow prompt without a strategy", expected="a strategist beside it")
        definition = self.taxonomy.by_name(strategy).definition

        def messages(shown: Sequence[Turn]) -> list[Message]:
            transcript = as_tagged_lines(shown, show_strategy=False)
            return self.prompt.render(strategy=strategy, definition=definition, transcript=transcript)

        return await ask(self.voice, messages, turns, scope, "supporter", self._parse)

    def _parse(self, reply: Reply) -> Generation:
        # A policy that was trained to reason does so under any prompt; its reasoning is not shown to others.
        if reply.stop_reason is StopReason.LENGTH:
            need_answer(reply)
        found = split_output(reply.whole)
        line = one_line(replace(reply, text=found.response), self.voice.options.on_length)
        response = clean_utterance(line, self.taxonomy, self.voice.options.max_words)
        return found.model_copy(update={"response": response, "format_ok": True})


class TurnWriter(Protocol):
    """Writes the next supporter turn under a strategy."""

    @property
    def name(self) -> str:
        """For provenance."""
        ...

    async def write(self, turns: Sequence[Turn], strategy: str, sampling: Sampling, scope: Scope) -> Reply:
        """Return what was written; the seed is drawn from the scope."""
        ...


@dataclass(frozen=True, slots=True)
class FlowSupporter:
    """A :class:`~esckit.protocols.Supporter` over a :class:`TurnWriter`.

    Attributes:
        writer: The trained model.
        options: Decoding settings, and what a valid reply is.
        budget: Of the run; every call is booked on it.
        max_attempts: Calls in all before it gives up, at least 1.
    """

    writer: TurnWriter
    options: RoleOptions
    budget: Budget
    max_attempts: int = 3

    async def reply(self, turns: Sequence[Turn], scope: Scope, *, strategy: str | None = None) -> Generation:
        """Answer the last seeker turn under a strategy.

        Raises:
            ConfigError: If no strategy is given.
            ModelError: If no usable reply came within the allowed attempts, or the backend failed.
        """
        if strategy is None:
            raise ConfigError("a flow checkpoint as supporter without a strategy", expected="a strategist beside it")

        async def write() -> Reply:
            return await self.budget.spend(
                "supporter", self.writer.name, lambda: self.writer.write(turns, strategy, self.options.sampling, scope)
            )

        return await until_parsed(write, scope, "supporter", self._parse, max_attempts=self.max_attempts)

    def _parse(self, reply: Reply) -> Generation:
        text = within_words(finished_text(reply, self.options.on_length), self.options.max_words)
        if not text:
            raise ParseError("a blank reply", kind="blank", samples=(reply.text,))
        return Generation(raw=reply.text, reasoning=None, response=text, format_ok=True, parse_kind="untagged")


_SUM_RANGE = (0.98, 1.02)


@dataclass(frozen=True, slots=True)
class PromptedStrategist:
    """A chat model as the prior of a search, or as the chooser of a simulation.

    Attributes:
        voice: Model and settings.
        prompt: A prompt with ``definitions`` and ``transcript``, and the optional ``keys`` (``json``) and ``options``
            (``choices``).
        taxonomy: The strategies.
        readout: How probabilities are read.
    """

    voice: Voice
    prompt: Prompt
    taxonomy: Taxonomy
    readout: Literal["json", "choices"]

    def __post_init__(self) -> None:
        if self.readout == "choices" and not self.voice.model.capabilities:
            raise ConfigError(
                f"model {self.voice.model.name} gives no log-probabilities",
                expected="a model that can score choices",
                hint="Set strategist.readout: json",
            )
        if self.readout == "choices" and len(self.taxonomy.names) > len(ascii_uppercase):
            raise ConfigError(f"{len(self.taxonomy.names)} strategies", expected=f"at most {len(ascii_uppercase)}")

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names in taxonomy order."""
        return self.taxonomy.names

    async def decide(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Decision:
        """Return the most probable strategy (a seeded draw breaks a tie), and all probabilities; some may be 0.

        Raises:
            ModelError: If no usable answer came within the allowed attempts.
        """
        probabilities = await self._probabilities(turns, scope)
        tied = [name for name, p in zip(self.strategies, probabilities, strict=True) if p == max(probabilities)]
        drawn = int(uniform(scope.seed("tie")) * len(tied)) if len(tied) > 1 else 0
        return Decision(tied[min(drawn, len(tied) - 1)], probabilities)

    async def _probabilities(self, turns: Sequence[Turn], scope: Scope) -> tuple[float, ...]:
        if self.readout == "json":
            messages = partial(self._messages, keys=", ".join(f'"{abbr}"' for abbr in self.taxonomy.abbrs))
            return await ask(self.voice, messages, turns, scope, "strategist", self._parse)
        if self.voice.scores_answers(1.0):
            return await self._scored(turns, scope)
        return await self._lettered(turns, scope)

    async def _scored(self, turns: Sequence[Turn], scope: Scope) -> tuple[float, ...]:
        """Read the softmax over length-normalised log-probabilities of the names."""
        messages = partial(self._messages, options="\n".join(f"- {name}" for name in self.strategies))
        prompt = self.voice.window.fit(messages, turns, scope, "strategist")
        scores = await self.voice.model.score(prompt, self.strategies)
        scope.spend("strategist", scores.usage)
        means = [choice.log_p / choice.n_tokens for choice in scores.choices]
        return _normalised([exp(mean - max(means)) for mean in means])

    async def _lettered(self, turns: Sequence[Turn], scope: Scope) -> tuple[float, ...]:
        """Read the next-token probabilities of option letters."""
        letters = ascii_uppercase[: len(self.strategies)]
        options = "\n".join(f"{letter}. {name}" for letter, name in zip(letters, self.strategies, strict=True))
        messages = partial(self._messages, options=f"{options}\nAnswer with the letter alone.")
        prompt = self.voice.window.fit(messages, turns, scope, "strategist")
        found = await self.voice.model.next_token(prompt, tuple(letters))
        scope.spend("strategist", found.usage)
        if found.label_mass <= 0.0:
            raise UnscoredError("no option letter among the likely answers", expected=f"one of {', '.join(letters)}")
        return _normalised(found.probabilities)

    def _messages(self, shown: Sequence[Turn], *, keys: str | None = None, options: str | None = None) -> list[Message]:
        definitions = "\n".join(f"{s.abbr} ({s.name}): {s.definition}" for s in self.taxonomy.strategies)
        transcript = as_tagged_lines(shown, show_strategy=True)
        return self.prompt.render(definitions=definitions, transcript=transcript, keys=keys, options=options)

    def _parse(self, reply: Reply) -> tuple[float, ...]:
        return parse_probabilities(verdict_text(reply), self.taxonomy.abbrs)


def parse_probabilities(text: str, keys: Sequence[str]) -> tuple[float, ...]:
    """Return the probabilities of one JSON object, normalised, in the order of ``keys``.

    Args:
        text: One object, with or without code fences; its keys are exactly ``keys``, its values lie in [0, 1] and
            sum to 1 within 0.02.
        keys: Abbreviations in taxonomy order.

    Raises:
        ParseError: If it is anything else.
    """
    found = read_json(text, keys, what="strategies")
    values = [found[key] for key in keys]
    # True is a number to Python.
    if not all(isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p <= 1 for p in values):
        raise ParseError("a value that is not a probability", expected="numbers in [0, 1]", samples=(text,))
    total = sum(values)
    if not _SUM_RANGE[0] <= total <= _SUM_RANGE[1]:
        raise ParseError(f"probabilities that sum to {total:.3g}", expected="a sum of 1", samples=(text,))
    return _normalised(values)


def _normalised(weights: Sequence[float]) -> tuple[float, ...]:
    total = sum(weights)
    return tuple(weight / total for weight in weights)
