"""How much of a conversation fits into a model's context: whole oldest turns go first, the last one never."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from esckit.ledger import Scope
from esckit.types import Message, Turn, Usage


@dataclass(frozen=True, slots=True)
class Window:
    """A limit in tokens of the rendered prompt.

    Attributes:
        max_tokens: The limit; None for none.
        count_tokens: Counts the tokens of a rendered prompt; needed where there is a limit.
    """

    max_tokens: int | None = None
    count_tokens: Callable[[Sequence[Message]], int] | None = None

    def fit(
        self, messages: Callable[[Sequence[Turn]], list[Message]], turns: Sequence[Turn], scope: Scope, role: str
    ) -> list[Message]:
        """Return the prompt over as many of the latest turns as fit; dropped turns are counted on the ledger."""
        rendered = messages(turns)
        if self.max_tokens is None or self.count_tokens is None:
            return rendered
        if self.count_tokens(rendered) <= self.max_tokens:
            return rendered
        # The fewer turns, the shorter the prompt; trying them one by one would read the conversation once per turn.
        fewest, most = 0, max(0, len(turns) - 1)
        while most - fewest > 1:
            middle = (fewest + most) // 2
            if self.count_tokens(messages(turns[middle:])) > self.max_tokens:
                fewest = middle
            else:
                most = middle
        if most:
            scope.spend(role, Usage(dropped_turns=most))
        return messages(turns[most:])
