"""Hidden states of many token sequences at once, beginnings that they share computed once.

Sequences are read in lexicographic order, so that what shares a beginning comes together; shared beginnings are read
first (those of several shared beginnings before them), then what is each sequence's own, batched by length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from esckit.models.attention import Layout, PrefixUse, use_shared_prefix_attention
from esckit.models.grouping import MIN_SHARED, length_batches, n_common, share_prefixes
from esckit.models.kvcache import EMPTY_PREFIX, PrefixKV


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A beginning that was read: keys and values, and the sum of its states (d,), float32."""

    kv: PrefixKV
    total: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """What was read of one sequence.

    Attributes:
        total: Sum of the states of all its tokens (d,), float32.
        tail: States of its last tokens, as many as asked for (n, d).
    """

    total: Tensor
    tail: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Tokens to read behind a node."""

    node: Node
    ids: tuple[int, ...]


class SharedStates:
    """Reads states from a decoder.

    Args:
        decoder: A transformers decoder without LM head, in evaluation mode; its attention is set here.
        max_batch_tokens: Tokens, padding included, of one forward pass; also what is held of shared beginnings.
    """

    def __init__(self, decoder: Any, *, max_batch_tokens: int) -> None:
        use_shared_prefix_attention(decoder)
        self.decoder = decoder
        self.max_batch_tokens = max_batch_tokens
        self.device = next(decoder.parameters()).device
        self._root = Node(EMPTY_PREFIX, torch.zeros(decoder.config.hidden_size, device=self.device))

    @torch.inference_mode()
    def read(self, sequences: Sequence[tuple[int, ...]], n_tail: Sequence[int]) -> list[States]:
        """Return the states of each sequence, in the order given.

        Args:
            sequences: Token ids, none empty.
            n_tail: How many last tokens' states are wanted of each, at least 1.
        """
        found: dict[int, States] = {}
        for chunk in self._chunks(sequences):
            own = [sequences[i] for i in chunk]
            nodes = self._parents(own, [len(sequences[i]) - n_tail[i] for i in chunk])
            pieces = [_Piece(node, ids[node.kv.length :]) for node, ids in zip(nodes, own, strict=True)]
            for at, hidden, _ in self._run(pieces, caching=False):
                total = nodes[at].total + hidden.float().sum(dim=0)
                found[chunk[at]] = States(total, hidden[-n_tail[chunk[at]] :])
        return [found[i] for i in range(len(sequences))]

    def _chunks(self, sequences: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
        """Yield indices of neighbours whose tokens, shared ones counted once, fit the budget."""
        chunk: list[int] = []
        held = 0
        for index in sorted(range(len(sequences)), key=lambda i: sequences[i]):
            ids = sequences[index]
            fresh = len(ids) - (n_common(sequences[chunk[-1]], ids) if chunk else 0)
            if chunk and held + fresh > self.max_batch_tokens:
                yield chunk
                chunk, held, fresh = [], 0, len(ids)
            chunk.append(index)
            held += fresh
        if chunk:
            yield chunk

    def _parents(self, sequences: Sequence[tuple[int, ...]], limits: Sequence[int]) -> list[Node]:
        """Return what each sequence continues: a node of at most ``limits`` tokens, empty where nothing is shared."""
        parents = [self._root] * len(sequences)
        shared: list[tuple[tuple[int, ...], int]] = []
        for group in share_prefixes(sequences):
            n_shared = min(
                group.n_shared, *(limits[i] for i in group.members), *(len(sequences[i]) - 1 for i in group.members)
            )
            if len(group.members) > 1 and n_shared >= MIN_SHARED:
                shared.append((group.members, n_shared))
        if shared:
            nodes = self._nodes([sequences[members[0]][:n_shared] for members, n_shared in shared])
            for (members, _), node in zip(shared, nodes, strict=True):
                for member in members:
                    parents[member] = node
        return parents

    def _nodes(self, prefixes: Sequence[tuple[int, ...]]) -> list[Node]:
        """Read beginnings; they may share beginnings of their own."""
        parents = self._parents(prefixes, [len(ids) for ids in prefixes])
        pieces = [_Piece(node, ids[node.kv.length :]) for node, ids in zip(parents, prefixes, strict=True)]
        found: dict[int, Node] = {}
        for at, hidden, (keys, values) in self._run(pieces, caching=True):
            parent = parents[at]
            found[at] = Node(parent.kv.extended(pieces[at].ids, keys, values), parent.total + hidden.float().sum(dim=0))
        return [found[at] for at in range(len(prefixes))]

    def _run(
        self, pieces: Sequence[_Piece], *, caching: bool
    ) -> Iterator[tuple[int, Tensor, tuple[list[Tensor], list[Tensor]]]]:
        """Yield index, states (n, d), and keys and values per layer (n_kv_heads, n, D) of each piece."""
        for batch in self._batches(pieces):
            rows = [pieces[at] for at in batch]
            cache = DynamicCache() if caching else None
            hidden = self._forward(rows, cache)
            for row, at in enumerate(batch):
                n = len(pieces[at].ids)
                layers = cache.layers if cache is not None else []
                keys = [layer.keys[row, :, -n:] for layer in layers]
                yield at, hidden[row, -n:], (keys, [layer.values[row, :, -n:] for layer in layers])

    def _batches(self, pieces: Sequence[_Piece]) -> Iterator[list[int]]:
        """Yield indices of pieces to run together, of similar length.

        A processor gains nothing from rows that continue different nodes, and pays for telling them apart; a GPU gains
        most from full batches.
        """
        by_node: dict[int, list[int]] = {}
        for at, piece in enumerate(pieces):
            by_node.setdefault(id(piece.node) if self.device.type == "cpu" else 0, []).append(at)
        for members in by_node.values():
            for batch in length_batches([len(pieces[at].ids) for at in members], self.max_batch_tokens):
                yield [members[index] for index in batch]

    def _forward(self, rows: Sequence[_Piece], cache: DynamicCache | None) -> Tensor:
        """Run pieces, padded on the left, and return their states (B, T, d)."""
        longest = max(len(piece.ids) for piece in rows)
        pads = torch.tensor([longest - len(piece.ids) for piece in rows])[:, None]
        tokens = torch.tensor([[0] * (longest - len(piece.ids)) + list(piece.ids) for piece in rows])
        start = torch.tensor([[piece.node.kv.length] for piece in rows])
        columns = torch.arange(longest)
        position = torch.where(columns >= pads, columns - pads + start, -1).to(self.device)
        layout = Layout(
            query_pos=position,
            key_pos=position,
            uses=_uses([piece.node.kv for piece in rows], self.device),
            n_positions=max(piece.node.kv.length + len(piece.ids) for piece in rows),
        )
        output = self.decoder(
            input_ids=tokens.to(self.device),
            attention_mask=layout.own_mask(),
            position_ids=position.clamp(min=0),
            past_key_values=cache,
            use_cache=cache is not None,
            layout=layout,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden


def _uses(prefixes: Sequence[PrefixKV], device: torch.device) -> tuple[PrefixUse, ...]:
    """Return which rows use which prefix."""
    rows: dict[int, list[int]] = {}
    for row, kv in enumerate(prefixes):
        if kv.length:
            rows.setdefault(id(kv), []).append(row)
    return tuple(
        PrefixUse(None if len(members) == len(prefixes) else torch.tensor(members, device=device), prefixes[members[0]])
        for members in rows.values()
    )
