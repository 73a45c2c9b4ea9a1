"""Contexts: every point of a corpus dialogue at which a supporter answered.

The situation is not part of a prefix: putting it into a prompt is a recipe's explicit switch, because it gives the
problem away. Cutting to a number of tokens belongs to training.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import dropwhile, pairwise
from typing import Literal

from esckit.types import Context, Dialogue

SupporterOpening = Literal["keep", "drop"]


def contexts(
    dialogue: Dialogue,
    *,
    last_turns: int | None = None,
    supporter_opening: SupporterOpening = "keep",
    merged: bool | None = None,
) -> Iterator[Context]:
    """Yield a context for every supporter turn with at least one turn before it.

    Args:
        dialogue: The dialogue, merged or not.
        last_turns: Keep only this many turns of each prefix, the latest (at least 1); None keeps all.
        supporter_opening: ``drop`` takes supporter turns off the front of a prefix, counts them in ``n_dropped_turns``,
            and gives no context where nothing is left.
        merged: Whether the dialogue went through :func:`~esckit.datasets.merge.merge_runs`, which the ids show (``#m3``
            instead of ``#3``). None takes a dialogue in which the speakers alternate as merged: merging would not
            change it, so its indices mean the same turns.
    """
    if last_turns is not None and last_turns < 1:
        raise ValueError(f"last_turns must be at least 1, not {last_turns}")
    mark = "#m" if (alternates(dialogue) if merged is None else merged) else "#"
    for index, turn in enumerate(dialogue.turns):
        if turn.speaker != "supporter" or index == 0:
            continue
        prefix = dialogue.turns[:index] if last_turns is None else dialogue.turns[max(0, index - last_turns) : index]
        if supporter_opening == "drop":
            prefix = tuple(dropwhile(lambda earlier: earlier.speaker == "supporter", prefix))
        if prefix:
            yield Context(
                id=f"{dialogue.id}{mark}{index}",
                dialogue_id=dialogue.id,
                scenario=dialogue.scenario,
                turns=prefix,
                n_dropped_turns=index - len(prefix),
                reference=turn,
            )


def alternates(dialogue: Dialogue) -> bool:
    """Return whether no speaker has two turns in a row."""
    return all(left.speaker != right.speaker for left, right in pairwise(dialogue.turns))
