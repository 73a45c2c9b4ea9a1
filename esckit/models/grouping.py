"""Which requests belong together: prompts that share a long beginning, rows of similar length. No tensors here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

MIN_SHARED = 32
"""Shortest prefix, in tokens, worth computing on its own."""


class Group(NamedTuple):
    """Prompts, by index, whose first ``n_shared`` tokens are the same; 0 where they have nothing to share."""

    members: tuple[int, ...]
    n_shared: int


def n_common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Return the length of the common beginning of two sequences."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices compare in C, token by token would be slow
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def share_prefixes(prompts: Sequence[tuple[int, ...]], *, min_shared: int = MIN_SHARED) -> list[Group]:
    """Group prompts so that as many prompt tokens as possible are computed once, not once per prompt.

    At least one token of every prompt stays outside the shared part: its forward pass gives the first logits.

    Args:
        prompts: Token sequences.
        min_shared: Shorter common beginnings are not shared.

    Returns:
        Groups that hold every prompt once.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    common = [n_common(prompts[a], prompts[b]) for a, b in pairwise(order)]

    def best(low: int, high: int) -> tuple[int, list[Group]]:
        """Return the tokens saved and the groups of the sorted prompts ``low`` to ``high``, end excluded."""
        if high - low < 2:
            return 0, [Group((i,), 0) for i in order[low:high]]
        n_shared = min(*common[low : high - 1], *(len(prompts[i]) - 1 for i in order[low:high]))
        saved = (high - low - 1) * n_shared if n_shared >= min_shared else 0
        # sorted prompts differ most where two neighbours share least: the only cut that can pay
        cut = min(range(low, high - 1), key=lambda i: common[i]) + 1
        if all(n == common[cut - 1] for n in common[low : high - 1]) and saved:
            return saved, [Group(tuple(order[low:high]), n_shared)]
        (saved_left, left), (saved_right, right) = best(low, cut), best(cut, high)
        if saved_left + saved_right >= saved:
            return saved_left + saved_right, left + right
        return saved, [Group(tuple(order[low:high]), n_shared)]

    return best(0, len(order))[1]


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut rows into batches of similar length.

    Args:
        lengths: Tokens per row.
        max_tokens: Rows times longest row, padding included, of one batch (a longer row stands alone).

    Returns:
        Row indices per batch, shortest rows first; padding is at most half of a batch (short rows aside).
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches:
            batch = batches[-1]
            fits = (len(batch) + 1) * lengths[row] <= max_tokens
            if fits and lengths[row] <= 2 * lengths[batch[0]] + 16:
                batch.append(row)
                continue
        batches.append([row])
    return batches
