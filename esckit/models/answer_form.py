"""How a server's chat template lays out an answer, read off the tokens of prompts that hold one.

Some servers (vLLM: ``prompt_logprobs``) return the log-probability of every token of a prompt. A conversation that ends
with an answer in the assistant's name then tells the probability of that answer, if one knows which tokens are the
answer: those behind what the template writes to have an answer begun, up to the token that ends the turn, that
one included, as :class:`esckit.models.local.LocalModel` counts them. Nobody tells the client the template, so its form
is learnt from one short conversation. Pure functions; requests are made in :mod:`esckit.models.endpoint`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from esckit.errors import BackendError
from esckit.types import ChoiceScore

PROBES = ("yes", "no")
"""Two answers that differ in their last token."""


class PromptToken(NamedTuple):
    """One token of a prompt: its id, and its log-probability; the first token of a prompt has neither."""

    id: str
    log_p: float | None


class AnswerForm(NamedTuple):
    """What a template writes around the answer to one conversation.

    Attributes:
        before: The prompt that has an answer begun.
        n_after: Tokens that follow the one that ends the turn.
    """

    before: tuple[str, ...]
    n_after: int

    @classmethod
    def learnt(cls, begun: Sequence[PromptToken], *answered: Sequence[PromptToken]) -> AnswerForm | None:
        """Return the form of a template; None if a prompt with an answer is not one that has it begun and goes on.

        Args:
            begun: A conversation ready for its answer.
            answered: The same conversation with each of :data:`PROBES` as its answer.
        """
        before = tuple(token.id for token in begun)
        rests = [_behind(before, tokens) for tokens in answered]
        if not all(rests):
            return None
        n_shared = 0
        while all(n_shared < len(rest) and rest[-1 - n_shared] == rests[0][-1 - n_shared] for rest in rests):
            n_shared += 1
        # What both end with is the end of the turn and what follows it; an answer stands before.
        return cls(before, n_shared - 1) if 0 < n_shared < min(map(len, rests)) else None

    def answer_in(self, answered: Sequence[PromptToken]) -> tuple[str, ...]:
        """Return the tokens of the answer to the conversation that the form was learnt from, its end included.

        Raises:
            BackendError: ``unreadable`` if the prompt has another form.
        """
        rest = _behind(self.before, answered)
        if len(rest) <= self.n_after + 1:
            raise BackendError("a prompt that does not go on where an answer begins", kind="unreadable")
        return rest[: len(rest) - self.n_after]

    def score(self, prompt: Sequence[PromptToken], answer: tuple[str, ...]) -> ChoiceScore:
        """Return the log-probability of the answer at the end of a prompt.

        Raises:
            BackendError: ``unreadable`` if the prompt does not end with it, ``not_finite`` if a token has no
                log-probability.
        """
        found = prompt[len(prompt) - self.n_after - len(answer) : len(prompt) - self.n_after]
        if tuple(token.id for token in found) != answer:
            raise BackendError("a prompt that does not end with the answer", kind="unreadable")
        return ChoiceScore(math.fsum(math.nan if one.log_p is None else one.log_p for one in found), len(answer))


def _behind(before: tuple[str, ...], tokens: Sequence[PromptToken]) -> tuple[str, ...]:
    """Return the ids of the tokens that follow a prompt, none if they do not begin with it."""
    ids = tuple(token.id for token in tokens)
    return ids[len(before) :] if ids[: len(before)] == before else ()
