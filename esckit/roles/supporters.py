"""Supporters: whoever writes the supporter's next turn. None of them sees the scenario, only the talk.

There are three: a chat model that reasons before it answers (RLFF-ESC, arXiv 2508.12935), one that carries out a given
strategy in one utterance (AFlow, arXiv 2602.08826), and a flow checkpoint that was trained to write. Which of them a
binding and a prompt make is decided in :mod:`esckit.roles.cast`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from esckit.config.sections import RoleOptions
from esckit.errors import ConfigError, ParseError
from esckit.ledger import Scope
from esckit.models.budget import Budget
from esckit.prompts.prompt import Prompt
from esckit.roles.asking import (
    UtteranceRules,
    Voice,
    as_chat,
    as_tagged_lines,
    ask,
    asks_for_tags,
    clean_reply,
    finished_text,
    merge_messages,
    need_answer,
    split_output,
    until_parsed,
    within_words,
)
from esckit.text import whole_sentences
from esckit.types import Generation, Message, Reply, Sampling, StopReason, Turn


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
        rules: What an utterance may look like, and the taxonomy of the strategies.
    """

    voice: Voice
    prompt: Prompt
    rules: UtteranceRules

    async def reply(self, turns: Sequence[Turn], scope: Scope, *, strategy: str | None = None) -> Generation:
        """Answer the last seeker turn under a strategy.

        Raises:
            ConfigError: If no strategy is given.
            ModelError: If no usable reply came within the allowed attempts.
        """
        if strategy is None:
            raise ConfigError("the supporter_aflow prompt without a strategy", expected="a strategist beside it")
        definition = self.rules.taxonomy.by_name(strategy).definition

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
        response = self.rules.check(self.rules.text_of(replace(reply, text=found.response)))
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
