"""The rows of RL training: one context each, as the policy's prompt and as the talk that its reply is judged in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from esckit.dialogue.transcript import as_chat, merge_messages
from esckit.dialogue.window import Window
from esckit.ledger import Ledger, derive_seed
from esckit.models.chat import ChatFormat
from esckit.prompts.prompt import Prompt
from esckit.types import Context, Message, Turn


@dataclass(frozen=True, slots=True)
class PolicyPrompt:
    """How a context becomes the policy's prompt; the same messages as a prompted supporter's.

    Attributes:
        prompt: The supporter's prompt.
        chat: The policy's chat format.
        max_tokens: Longest prompt; whole oldest turns are left out above it.
    """

    prompt: Prompt
    chat: ChatFormat
    max_tokens: int

    def messages(self, turns: Sequence[Turn]) -> list[Message]:
        """Return system message and turns."""
        return merge_messages([*self.prompt.render(), *as_chat(turns, speaking="supporter")])

    def n_tokens(self, messages: Sequence[Message]) -> int:
        """Return the length of a prompt in tokens."""
        return len(self.chat.encode(messages))

    def fitted(self, context: Context) -> tuple[list[Message], int] | None:
        """Return the messages over as many of the latest turns as fit, and how many turns were left out.

        Returns:
            None if the system message and the last turn alone are too long.
        """
        ledger = Ledger(0, context.id)
        window = Window(self.max_tokens, self.n_tokens)
        messages = window.fit(self.messages, context.turns, ledger.at(), "policy")
        if self.n_tokens(messages) > self.max_tokens:
            return None
        spent = ledger.usage.get("policy")
        return messages, spent.dropped_turns if spent else 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows, and what became of the contexts on the way.

    Attributes:
        rows: ``prompt`` (chat messages), ``context_id``, ``dialogue_id`` and ``conversation`` of each.
        n_cut: Contexts that lost oldest turns in the prompt.
        n_too_long: Contexts that were left out.
    """

    rows: tuple[dict[str, Any], ...]
    n_cut: int
    n_too_long: int


def build_rows(contexts: Iterable[Context], prompt: PolicyPrompt) -> Rows:
    """Return one row per context, in order; the conversation is whole, whatever the prompt shows of it."""
    rows: list[dict[str, Any]] = []
    n_cut = n_too_long = 0
    for context in contexts:
        found = prompt.fitted(context)
        if found is None:
            n_too_long += 1
            continue
        messages, n_dropped = found
        n_cut += n_dropped > 0
        rows.append(
            {
                "prompt": prompt.chat.as_dicts(messages),
                "context_id": context.id,
                "dialogue_id": context.dialogue_id,
                "conversation": [{"speaker": turn.speaker, "text": turn.text} for turn in context.turns],
            }
        )
    return Rows(tuple(rows), n_cut, n_too_long)


def epoch_order(n_rows: int, n_epochs: int, *, batch: int, seed: int) -> list[int]:
    """Return the row indices of all epochs in the order of training, each epoch shuffled by a seed of its own.

    The order is laid out beforehand, since TRL's sampler starts anew when a run is resumed and would draw the first
    epoch's order again in the second. Each epoch leaves out the rest that fills no batch.

    Args:
        n_rows: Rows.
        n_epochs: Passes over them.
        batch: Rows of one step.
        seed: Of the run.
    """
    order: list[int] = []
    for epoch in range(n_epochs):
        indices = list(range(n_rows))
        Random(derive_seed(seed, "rl-epoch", epoch)).shuffle(indices)
        order += indices[: n_rows - n_rows % batch]
    return order
