"""The two who talk: seekers, which play the person of a scenario, and supporters, which see the talk alone.

The seeker of RLFF-ESC (arXiv 2508.12935) stays until others end the conversation; the seeker of AFlow (arXiv
2602.08826) remembers its seed dialogue and may be relieved, or leave.

There are three supporters: a chat model that reasons before it answers (RLFF-ESC), one that carries out a given
strategy in one utterance (AFlow), and a flow checkpoint that was trained to write. Which of them a binding and a prompt
make is decided in :mod:`esckit.roles.cast`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from esckit.config.sections import RoleOptions
from esckit.errors import ConfigError, ParseError
from esckit.ledger import Scope
from esckit.models.budget import Budget
from esckit.prompts.prompt import Prompt
from esckit.protocols import SeekerTurn
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
    merge_messages,
    need_answer,
    one_line,
    scene_of,
    split_output,
    until_parsed,
    within_words,
)
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

        text = await ask(
            self.voice, self.voice.window.fit(messages, talk, scope, "seeker"), scope, "seeker", self._parse
        )
        return SeekerTurn(text)

    def _parse(self, reply: Reply) -> str:
        text = clean_reply(finished_text(reply, self.voice.on_length), speaking="seeker")
        if not text:
            raise ParseError("a blank reply", kind="blank", samples=(reply.text,))
        return within_words(text, self.voice.max_words)


_QUOTE_WORDS = 8

_QUOTE_CHARACTERS = 16

_PUNCTUATION = re.compile(r"[^\w\s]|_")


@dataclass(frozen=True, slots=True)
class AFlowSeeker:
    """A chat model that plays the seeker of a seed dialogue.

    Attributes:
        voice: Model and settings.
        prompt: A prompt with ``scene``, ``situation``, ``memory``, ``own_turn`` and ``transcript``.
        taxonomy: Whose strategy tags may not be said.
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
            answer = parse_seeker(one_line(reply, self.voice.on_length), self.taxonomy, self.voice.max_words)
            if self.memory_guard and quotes(answer.text, memory):
                raise ParseError("a reply that quotes the seeker's memory", kind="memory", samples=(answer.text,))
            return answer

        return await ask(self.voice, self.voice.window.fit(messages, turns, scope, "seeker"), scope, "seeker", parse)


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
    remembered = [f" {' '.join(tokenise(_bare(turn.text)))} " for turn in memory]
    runs = (f" {' '.join(words[start : start + n])} " for start in range(len(words) - n + 1))
    return any(run in turn for run in runs for turn in remembered)


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

        return await ask(
            self.voice, self.voice.window.fit(messages, turns, scope, "supporter"), scope, "supporter", self._parse
        )

    def _parse(self, reply: Reply) -> Generation:
        found = split_output(reply.whole)
        cut = reply.stop_reason is StopReason.LENGTH
        if cut:
            need_answer(reply)
        if cut and self.voice.on_length == "fail":
            raise ParseError("a reply cut at the token limit", kind="too_long", samples=(reply.whole,))
        response = clean_reply(found.response, speaking="supporter")
        if cut and found.parse_kind in ("open_response", "untagged"):
            response = whole_sentences(response)
        if not response:
            raise ParseError("a blank reply", kind="blank", samples=(reply.whole,))
        # Where the prompt asks for no tags, plain text is what was agreed.
        format_ok = found.format_ok or (found.parse_kind == "untagged" and not asks_for_tags(self.prompt))
        return found.model_copy(
            update={"response": within_words(response, self.voice.max_words), "format_ok": format_ok}
        )


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

        return await ask(
            self.voice, self.voice.window.fit(messages, turns, scope, "supporter"), scope, "supporter", self._parse
        )

    def _parse(self, reply: Reply) -> Generation:
        # A policy that was trained to reason does so under any prompt; what it thinks is for nobody else.
        if reply.stop_reason is StopReason.LENGTH:
            need_answer(reply)
        found = split_output(reply.whole)
        line = one_line(replace(reply, text=found.response), self.voice.on_length)
        response = clean_utterance(line, self.taxonomy, self.voice.max_words)
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
                self.writer.name, lambda: self.writer.write(turns, strategy, self.options.sampling, scope)
            )

        return await until_parsed(write, scope, "supporter", self._parse, max_attempts=self.max_attempts)

    def _parse(self, reply: Reply) -> Generation:
        text = within_words(finished_text(reply, self.options.on_length), self.options.max_words)
        if not text:
            raise ParseError("a blank reply", kind="blank", samples=(reply.text,))
        return Generation(raw=reply.text, reasoning=None, response=text, format_ok=True, parse_kind="untagged")
