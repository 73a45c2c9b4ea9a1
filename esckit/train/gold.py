"""Corpus dialogues as trees without branches: the strategies that people took, for behaviour cloning.

A dialogue is one causal sequence and every decision in it is read in one pass. Each state ends at the last token before
a labelled supporter utterance, whoever spoke before; an opening is decided at the header's last token. Search values
are unknown here, so only ``bc`` can learn from such trees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from esckit.models.flow_text import FlowText, drop_oldest
from esckit.train.flow_trees import FlowNode, FlowPath, FlowTree, StateFacts
from esckit.types import Dialogue


class _Piece(NamedTuple):
    """Token ids between two decisions, and the strategy taken after them."""

    ids: tuple[int, ...]
    action: int


def gold_trees(
    dialogue: Dialogue, text: FlowText, strategies: tuple[str, ...], *, max_tokens: int, window: bool
) -> list[FlowTree]:
    """Return a dialogue as trees of one path.

    Args:
        dialogue: The dialogue, its utterances merged or not.
        text: How turns become token ids.
        strategies: The taxonomy in order.
        max_tokens: Longest sequence.
        window: Every decision is kept: those that come later than ``max_tokens`` are read behind the newest turns
            before them, in a tree of their own each. Otherwise the end of a long dialogue is cut.

    Returns:
        The tree of the dialogue if it has a decision; with ``window``, also those of its late decisions.
    """
    header, pieces = text.header(dialogue.scenario), _pieces(dialogue, text, strategies)
    fitting, length = 0, 0
    while fitting < len(pieces) and length + len(pieces[fitting].ids) <= max_tokens:
        length += len(pieces[fitting].ids)
        fitting += 1
    trees = [_tree(dialogue, pieces[:fitting], len(header), "", len(strategies))] if fitting else []
    if window:
        for late in range(fitting, len(pieces)):
            body = [pieces[0].ids[len(header) :], *(piece.ids for piece in pieces[1 : late + 1])]
            kept = drop_oldest(body, max_tokens - len(header))
            ids = header + tuple(token for piece in kept for token in piece)
            alone = [_Piece(ids, pieces[late].action)]
            trees.append(_tree(dialogue, alone, len(header), f"@{late}", len(strategies)))
    return trees


def class_counts(trees: Iterable[FlowTree], n_strategies: int) -> tuple[int, ...]:
    """Return how often each strategy is taken."""
    found = Counter(action for tree in trees for path in tree.paths for action in path.actions)
    return tuple(found[strategy] for strategy in range(n_strategies))


def class_weights(counts: Sequence[int], *, power: float) -> tuple[float, ...]:
    """Return weights proportional to count^−power whose mean over the data is 1; 0 for a class that never occurs."""
    raw = [count**-power if count else 0.0 for count in counts]
    mean = sum(weight * count for weight, count in zip(raw, counts, strict=True)) / sum(counts)
    return tuple(weight / mean for weight in raw)


def _pieces(dialogue: Dialogue, text: FlowText, strategies: tuple[str, ...]) -> list[_Piece]:
    """Cut a dialogue's ids before every labelled supporter utterance; what follows the last one is left out."""
    ids = list(text.header(dialogue.scenario))
    pieces = []
    for turn in dialogue.turns:
        if turn.speaker == "supporter" and turn.strategy is not None:
            pieces.append(_Piece(tuple(ids), strategies.index(turn.strategy)))
            ids = []
        ids += text.turn(turn).ids
    return pieces


def _tree(dialogue: Dialogue, pieces: Sequence[_Piece], n_header: int, suffix: str, n_strategies: int) -> FlowTree:
    facts = StateFacts(1.0, (1.0 / n_strategies,) * n_strategies, (None,) * n_strategies)
    nodes = [FlowNode(str(index), index - 1, piece.ids, facts) for index, piece in enumerate(pieces)]
    path = FlowPath(
        id=f"{dialogue.id}{suffix}",
        states=tuple(range(len(nodes))),
        actions=tuple(piece.action for piece in pieces),
        leaf_value=1.0,
    )
    return FlowTree(f"{dialogue.id}{suffix}", dialogue.id, n_header, tuple(nodes), (path,))
