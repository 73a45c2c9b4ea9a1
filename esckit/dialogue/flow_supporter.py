"""The supporter that a flow checkpoint plays itself: it carries out the strategy that it, or another, has chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from esckit.dialogue.ask import OnLength, finished_text, until_parsed, within_words
from esckit.errors import ConfigError, ParseError
from esckit.ledger import Scope
from esckit.types import Generation, Reply, Sampling, Turn


class TurnWriter(Protocol):
    """Writes the next supporter turn under a strategy."""

    async def write(self, turns: Sequence[Turn], strategy: str, sampling: Sampling, scope: Scope) -> Reply:
        """Return what was written; the seed is drawn from the scope."""
        ...


@dataclass(frozen=True, slots=True)
class FlowSupporter:
    """A :class:`~esckit.protocols.Supporter` over a :class:`TurnWriter`.

    Attributes:
        writer: The trained model.
        sampling: Decoding settings.
        max_attempts: Calls in all before it gives up, at least 1.
        on_length: What to do with a reply cut at the token limit.
        max_words: Longest valid reply in words; None sets no limit.
    """

    writer: TurnWriter
    sampling: Sampling
    max_attempts: int = 3
    on_length: OnLength = "fail"
    max_words: int | None = None

    async def reply(self, turns: Sequence[Turn], scope: Scope, *, strategy: str | None = None) -> Generation:
        """Answer the last seeker turn under a strategy.

        Raises:
            ConfigError: If no strategy is given.
            ModelError: If no usable reply came within the allowed attempts, or the backend failed.
        """
        if strategy is None:
            raise ConfigError("a flow checkpoint as supporter without a strategy", expected="a strategist beside it")

        async def write() -> Reply:
            return await self.writer.write(turns, strategy, self.sampling, scope)

        return await until_parsed(write, scope, "supporter", self._parse, max_attempts=self.max_attempts)

    def _parse(self, reply: Reply) -> Generation:
        text = within_words(finished_text(reply, self.on_length), self.max_words)
        if not text:
            raise ParseError("a blank reply", kind="blank", samples=(reply.text,))
        return Generation(raw=reply.text, reasoning=None, response=text, format_ok=True, parse_kind="untagged")
