"""Trees into chunks, chunks into rows: the three encodings ``tree``, ``path`` and ``prefix``.

A chunk is a set of paths of one tree with all their nodes; every path is in exactly one chunk, and the nodes that
chunks share are repeated. All encodings read the same states and give the same hidden states; they differ in how many
tokens they read for them. Not here: the losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from esckit.models.flow_text import drop_oldest
from esckit.models.packed_rows import NodeSpan, PackedRows
from esckit.train.flow_trees import FlowTree

Mode = Literal["tree", "path", "prefix"]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How trees become rows.

    Attributes:
        mode: ``tree`` (every node once), ``path`` (one causal row per path) or ``prefix`` (one per state).
        max_tokens: Tokens of one forward pass, padding included; a single path may pass it.
        pad_id: Id of padding tokens.
        max_paths_per_chunk: Upper limit of paths per chunk, None for none.
        max_prefix_tokens: In ``prefix`` mode whole oldest exchanges go above this length; None never cuts.
        responses: Also predict the supporter's words (``tree`` mode only).
    """

    mode: Mode
    max_tokens: int
    pad_id: int
    max_paths_per_chunk: int | None = None
    max_prefix_tokens: int | None = None
    responses: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some paths of a tree, by index, and the nodes they need in preorder."""

    tree: FlowTree
    paths: tuple[int, ...]
    nodes: tuple[int, ...]

    @property
    def states(self) -> tuple[int, ...]:
        """The nodes that are read."""
        return tuple(index for index in self.nodes if self.tree.nodes[index].facts is not None)


def chunks(tree: FlowTree, encoding: Encoding) -> Iterator[Chunk]:
    """Yield a tree in chunks within the token budget, its paths in depth-first order."""
    start = 0
    for end in range(1, len(tree.paths) + 1):
        if end - start > 1 and not _fits(_chunk(tree, start, end), encoding):
            yield _chunk(tree, start, end - 1)
            start = end - 1
    if tree.paths:
        yield _chunk(tree, start, len(tree.paths))


def _chunk(tree: FlowTree, start: int, end: int) -> Chunk:
    paths = tuple(range(start, end))
    return Chunk(tree, paths, tuple(sorted({node for path in paths for node in tree.paths[path].nodes})))


def _fits(chunk: Chunk, encoding: Encoding) -> bool:
    limit = encoding.max_paths_per_chunk
    return (limit is None or len(chunk.paths) <= limit) and n_tokens([chunk], encoding) <= encoding.max_tokens


def n_tokens(group: Sequence[Chunk], encoding: Encoding) -> int:
    """Return the tokens of one forward pass over some chunks, padding included."""
    if encoding.mode == "tree":
        return sum(len(chunk.tree.nodes[node].tokens) for chunk in group for node in chunk.nodes)
    lengths = [_sequence_length(chunk.tree, node, encoding) for chunk in group for node in _row_ends(chunk, encoding)]
    return len(lengths) * max(lengths, default=0)


def groups(all_chunks: Iterable[Chunk], encoding: Encoding) -> list[list[Chunk]]:
    """Return the chunks in groups for one forward pass each, in order and within the token budget."""
    found: list[list[Chunk]] = []
    for chunk in all_chunks:
        if found and n_tokens([*found[-1], chunk], encoding) <= encoding.max_tokens:
            found[-1].append(chunk)
        else:
            found.append([chunk])
    return found


def _row_ends(chunk: Chunk, encoding: Encoding) -> tuple[int, ...]:
    """Return the nodes at whose end a row ends: the last state of each path, or every state."""
    if encoding.mode == "prefix":
        return chunk.states
    return tuple(dict.fromkeys(chunk.tree.paths[path].states[-1] for path in chunk.paths))


def _sequence(tree: FlowTree, node: int, encoding: Encoding) -> tuple[int, ...]:
    """Return the ids from the root to the end of a node."""
    pieces = [tree.nodes[index].tokens for index in tree.lineage(node)]
    limit = encoding.max_prefix_tokens
    if encoding.mode != "prefix" or limit is None:
        return tuple(token for piece in pieces for token in piece)
    header, opening = pieces[0][: tree.n_header], pieces[0][tree.n_header :]
    kept = drop_oldest([opening, *pieces[1:]], limit - len(header))
    return header + tuple(token for piece in kept for token in piece)


def _sequence_length(tree: FlowTree, node: int, encoding: Encoding) -> int:
    if encoding.mode == "prefix" and encoding.max_prefix_tokens is not None:
        return len(_sequence(tree, node, encoding))
    return tree.prefix_length(node)


def pack(group: Sequence[Chunk], encoding: Encoding) -> PackedRows:
    """Return the rows of one forward pass; states come in the order of the chunks and of their nodes."""
    if encoding.mode == "tree":
        return _pack_tree(group, encoding)
    return _pack_causal(group, encoding)


def _pack_tree(group: Sequence[Chunk], encoding: Encoding) -> PackedRows:
    """Return one row with every node of the chunks once."""
    ids: list[int] = []
    positions: list[int] = []
    spans: list[NodeSpan] = []
    ends: list[int] = []
    readouts: list[int] = []
    targets: list[int] = []
    for chunk in group:
        place: dict[int, int] = {}
        for index in chunk.nodes:
            node = chunk.tree.nodes[index]
            parent = place.get(node.parent, -1)
            start = len(ids)
            offset = 0 if parent < 0 else positions[spans[parent].end - 1] + 1
            ids += node.tokens
            positions += range(offset, offset + len(node.tokens))
            place[index] = len(spans)
            spans.append(NodeSpan(start, len(ids), parent))
            ends.append(len(ids))
            if node.facts is not None:
                readouts.append(len(ids) - 1)
            if encoding.responses and node.words is not None:
                targets += range(start + node.words[0], start + node.words[1])
    for index in reversed(range(len(spans))):
        parent = spans[index].parent
        if parent >= 0:
            ends[parent] = max(ends[parent], ends[index])
    subtree_end = [end for span, end in zip(spans, ends, strict=True) for _ in range(span.end - span.start)]
    where = torch.tensor(targets, dtype=torch.long) - 1
    row = torch.tensor([ids])
    return PackedRows(
        input_ids=row,
        position_ids=torch.tensor([positions]),
        readout_row=torch.zeros(len(readouts), dtype=torch.long),
        readout_column=torch.tensor(readouts, dtype=torch.long),
        subtree_end=torch.tensor([subtree_end]),
        spans=tuple(spans),
        target_row=torch.zeros_like(where) if encoding.responses else None,
        target_column=where if encoding.responses else None,
        target_ids=row[0, where + 1] if encoding.responses else None,
    )


def _pack_causal(group: Sequence[Chunk], encoding: Encoding) -> PackedRows:
    """Return one causal row per path or per state, padded on the right, where a causal model never looks."""
    rows: list[tuple[int, ...]] = []
    readouts: list[tuple[int, int]] = []
    for chunk in group:
        where: dict[int, tuple[int, int]] = {}
        for end in _row_ends(chunk, encoding):
            sequence = _sequence(chunk.tree, end, encoding)
            read = (end,) if encoding.mode == "prefix" else chunk.tree.lineage(end)
            for node in read:
                length = len(sequence) if node == end else chunk.tree.prefix_length(node)
                where.setdefault(node, (len(rows), length - 1))
            rows.append(sequence)
        readouts += [where[state] for state in chunk.states]
    length = max(len(row) for row in rows)
    padded = torch.full((len(rows), length), encoding.pad_id)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row)
    places = torch.tensor(readouts, dtype=torch.long)
    return PackedRows(
        input_ids=padded,
        position_ids=torch.arange(length).expand(len(rows), length),
        readout_row=places[:, 0],
        readout_column=places[:, 1],
    )
