"""Preference pairs from simulated futures, for the DPO ablation (RLFF-ESC, arXiv 2508.12935).

Texts are the raw outputs with reasoning and tags, because the policy must learn the form too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from esckit.train.rl_rows import PolicyPrompt
from esckit.types import Context, Future, Message


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
