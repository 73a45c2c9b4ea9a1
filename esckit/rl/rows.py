"""The rows of RL training: one context each, as the policy's prompt and as the talk that its reply is judged in.

Preference pairs from simulated futures, for the DPO ablation (RLFF-ESC, arXiv 2508.12935).

Texts are the raw outputs with reasoning and tags, because the policy must learn the form too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from esckit.ledger import Ledger, derive_seed
from esckit.models.chat import ChatFormat
from esckit.prompts.prompt import Prompt
from esckit.roles.asking import Window, as_chat, merge_messages
from esckit.types import Context, Future, Message, Turn


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


@dataclass(frozen=True, slots=True)
class Pairs:
    """Preference pairs, and what became of the other contexts.

    Attributes:
        rows: ``prompt``, ``chosen``, ``rejected`` (chat messages), ``context_id`` and ``dialogue_id`` of each.
        n_equal: Contexts whose scored candidates have equal rewards, or that have fewer than two.
        n_malformed: Contexts of whose pair one output is malformed.
        n_too_long: Contexts whose prompt or outputs do not fit.
        n_cut: Contexts that lost oldest turns in the prompt.
    """

    rows: tuple[dict[str, Any], ...]
    n_equal: int
    n_malformed: int
    n_too_long: int
    n_cut: int


def by_context(futures: Iterable[Future]) -> dict[tuple[int, str], list[Future]]:
    """Return the candidates of each context; those of several run seeds are kept apart."""
    groups: dict[tuple[int, str], list[Future]] = {}
    for future in futures:
        groups.setdefault((future.run_seed, future.context_id), []).append(future)
    return groups


def best_and_worst(futures: Iterable[Future]) -> tuple[Future, Future] | None:
    """Return the candidates of one context with the highest and the lowest reward; the first among equals.

    Returns:
        None if all rewards are equal, or fewer than two candidates are scored.
    """
    scored = [future for future in futures if future.fraction is not None]
    if len({future.fraction for future in scored}) < 2:
        return None
    by_reward = sorted(scored, key=lambda future: (future.fraction, -future.candidate))
    worst = min(scored, key=lambda future: (future.fraction, future.candidate))
    return by_reward[-1], worst


def build_pairs(
    contexts: Mapping[str, Context],
    futures: Iterable[Future],
    prompt: PolicyPrompt,
    *,
    require_format: bool,
    max_completion_tokens: int,
) -> Pairs:
    """Return one pair for each context whose candidates differ in reward.

    Args:
        contexts: By id.
        futures: Of the contexts to train on; those of several run seeds are kept apart.
        prompt: Makes the policy's prompt.
        require_format: Leave out pairs in which an output is malformed.
        max_completion_tokens: Leave out pairs with a longer output.
    """
    rows: list[dict[str, Any]] = []
    counts = dict.fromkeys(("n_equal", "n_malformed", "n_too_long", "n_cut"), 0)
    for (_, context_id), group in by_context(futures).items():
        pair = best_and_worst(group)
        if pair is None:
            counts["n_equal"] += 1
            continue
        said = [future.exchanges[0].supporter for future in pair]
        if require_format and not all(each.format_ok for each in said):
            counts["n_malformed"] += 1
            continue
        context = contexts[context_id]
        fitted = prompt.fitted(context)
        texts = [each.raw.strip() for each in said]
        if fitted is None or any(len(prompt.chat.answer(text)) > max_completion_tokens for text in texts):
            counts["n_too_long"] += 1
            continue
        counts["n_cut"] += fitted[1] > 0
        chosen, rejected = (prompt.chat.as_dicts([Message("assistant", text)]) for text in texts)
        rows.append(
            {
                "prompt": prompt.chat.as_dicts(fitted[0]),
                "chosen": chosen,
                "rejected": rejected,
                "context_id": context_id,
                "dialogue_id": context.dialogue_id,
            }
        )
    return Pairs(tuple(rows), **counts)
