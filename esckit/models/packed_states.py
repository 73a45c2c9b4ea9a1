"""Hidden states of many token sequences at once, what they begin with in common read once.

The sequences become the paths of a prefix tree, and the tree one row: no padding, one forward pass. Attention goes
along the paths (:mod:`esckit.models.tree_attention`), so a state is that of its sequence alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esckit.errors import ConfigError
from esckit.models.grouping import n_common
from esckit.models.packable import check_packable
from esckit.models.packed_rows import NodeSpan
from esckit.models.tree_attention import TREE_ATTENTION, tree_layout, use_attention


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Sequences as one row of nodes in preorder.

    Attributes:
        spans: The nodes.
        ids: Their tokens, as long as the row.
        starts: Position of each node's first token in its sequences.
        leaves: The node at which each sequence ends.
    """

    spans: tuple[NodeSpan, ...]
    ids: tuple[int, ...]
    starts: tuple[int, ...]
    leaves: tuple[int, ...]

    def path(self, leaf: int) -> list[NodeSpan]:
        """Return the nodes from the root to a node."""
        found, node = [], leaf
        while node >= 0:
            found.append(self.spans[node])
            node = self.spans[node].parent
        return found[::-1]


def prefix_tree(sequences: Sequence[tuple[int, ...]]) -> PrefixTree:
    """Return the tree of sequences, none empty, that are sorted."""
    spans: list[NodeSpan] = []
    ids: list[int] = []
    starts: list[int] = []
    leaves = [0] * len(sequences)

    def grow(low: int, high: int, start: int, parent: int) -> None:
        """Add what the sequences from ``low`` to ``high``, end excluded, hold from position ``start`` on."""
        end = n_common(sequences[low], sequences[high - 1])
        node = parent
        if end > start:
            node = len(spans)
            spans.append(NodeSpan(len(ids), len(ids) + end - start, parent))
            starts.append(start)
            ids.extend(sequences[low][start:end])
        while low < high and len(sequences[low]) == end:
            leaves[low] = node
            low += 1
        while low < high:
            token, cut = sequences[low][end], low + 1
            while cut < high and sequences[cut][end] == token:
                cut += 1
            grow(low, cut, end, node)
            low = cut

    grow(0, len(sequences), 0, -1)
    return PrefixTree(tuple(spans), tuple(ids), tuple(starts), tuple(leaves))


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """What was read of one sequence.

    Attributes:
        total: Sum of the states of all its tokens (d,), float32.
        tail: States of its last tokens, as many as asked for (n, d).
    """

    total: Tensor
    tail: Tensor


class PackedStates:
    """Reads states from a decoder.

    Args:
        decoder: A transformers decoder without LM head, in evaluation mode; its attention is set here.
        max_tokens: Tokens of one forward pass.
        longest: Tokens of the longest sequence. Backbones that cannot be packed at this length (a sliding window,
            states that are handed on) read the sequences one by one.
    """

    def __init__(self, decoder: Any, *, max_tokens: int, longest: int) -> None:
        self.decoder = decoder
        self.max_tokens = max_tokens
        self.n_read = 0
        self._device = next(decoder.parameters()).device
        try:
            check_packable(decoder.config.to_dict(), longest_path=longest)
        except ConfigError:
            self._packs = False
        else:
            self._packs = True
            use_attention(decoder, TREE_ATTENTION)

    @torch.inference_mode()
    def read(self, sequences: Sequence[tuple[int, ...]], n_tail: Sequence[int]) -> list[States]:
        """Return the states of each sequence, in the order given.

        Args:
            sequences: Token ids, none empty.
            n_tail: How many last tokens' states are wanted of each, at least 1.
        """
        found: dict[int, States] = {}
        for chunk in self._chunks(sequences):
            tree = prefix_tree([sequences[at] for at in chunk])
            hidden = self._forward(tree)
            totals: list[Tensor] = []
            for span in tree.spans:
                own = hidden[span.start : span.end].float().sum(dim=0)
                totals.append(own + totals[span.parent] if span.parent >= 0 else own)
            for at, leaf in zip(chunk, tree.leaves, strict=True):
                found[at] = States(totals[leaf], _tail(hidden, tree.path(leaf), n_tail[at]))
        return [found[at] for at in range(len(sequences))]

    def _chunks(self, sequences: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
        """Yield indices of sequences in sorted order whose tokens, shared ones counted once, fit one pass."""
        chunk: list[int] = []
        held = 0
        for index in sorted(range(len(sequences)), key=lambda i: sequences[i]):
            ids = sequences[index]
            fresh = len(ids) - (n_common(sequences[chunk[-1]], ids) if chunk else 0)
            if chunk and (held + fresh > self.max_tokens or not self._packs):
                yield chunk
                chunk, held, fresh = [], 0, len(ids)
            chunk.append(index)
            held += fresh
        if chunk:
            yield chunk

    def _forward(self, tree: PrefixTree) -> Tensor:
        """Return the states of a row (L, d)."""
        self.n_read += len(tree.ids)
        placed = zip(tree.starts, tree.spans, strict=True)
        position = torch.cat([torch.arange(start, start + span.end - span.start) for start, span in placed])
        dtype = self.decoder.get_input_embeddings().weight.dtype
        layout = {"layout": tree_layout(tree.spans, dtype=dtype, device=self._device)} if self._packs else {}
        states: Tensor = self.decoder(
            input_ids=torch.tensor([tree.ids], device=self._device),
            position_ids=position.to(self._device)[None],
            use_cache=False,
            **layout,
        ).last_hidden_state
        return states[0]


def _tail(hidden: Tensor, path: Sequence[NodeSpan], n: int) -> Tensor:
    """Return the states of the last tokens of a path (n, d)."""
    pieces: list[Tensor] = []
    for span in reversed(path):
        pieces.insert(0, hidden[max(span.start, span.end - n) : span.end])
        n -= len(pieces[0])
        if n == 0:
            break
    return torch.cat(pieces)
