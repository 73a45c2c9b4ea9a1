"""Trees into chunks, chunks into rows: the three encodings ``tree``, ``path`` and ``prefix``.

A chunk is a set of paths of one tree with all their nodes; every path is in exactly one chunk, and the nodes that
chunks share are repeated. All encodings read the same states and give the same hidden states; they differ in how many
tokens they read for them. Not here: the losses.

One optimiser step of flow training as data: forward passes, and what the losses divide by.

All denominators (paths, pairs, states) are counted over the whole update and all processes before the first backward
pass, and every forward pass carries them. So the losses of an update's passes simply add up, and neither chunking nor
accumulation nor the number of devices changes the update.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from esckit.flow.objectives import Negatives, path_terms
from esckit.flow.text import drop_oldest
from esckit.flow.trees import FlowPath, FlowTree, StateFacts
from esckit.models.packing import NodeSpan, PackedRows

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


StateValue = Literal["taken", "policy_mean"]

Weighting = Literal["paths", "unique"]

KlForm = Literal["taken", "full"]

KlReference = Literal["prior", "uniform", "none"]


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """The loss of AFlow (arXiv 2602.08826) and its variants.

    Attributes:
        objective: ``subtb``, ``tb``, ``db``; ``dpo`` or ``bc`` in place of a flow objective.
        subtb_lambda: Geometric weight of longer subpaths, in (0, 1].
        terminal_boundary: Let paths end in the leaf's search value.
        flow_eps: Search values are clamped to it before the logarithm.
        state_value: V of the strategy taken, or the policy's mean over strategies.
        weighting: Every path once, or every distinct pair and state once.
        rank_weight: Weight of the ranking loss.
        rank_margin: Margin of the hinge.
        rank_negatives: Where ranking pairs come from.
        rank_min_gap: Least difference of search values of a visited pair.
        kl_weight: Weight of the KL term.
        kl_form: Of the strategies taken, or of whole distributions.
        kl_reference: The recorded prior, the uniform distribution, or no term.
        response_weight: Weight of the response term.
        class_weights: Weight per strategy in ``bc``, mean 1 over the data; None weighs all alike.
    """

    objective: str
    subtb_lambda: float
    terminal_boundary: bool
    flow_eps: float
    state_value: StateValue
    weighting: Weighting
    rank_weight: float
    rank_margin: float
    rank_negatives: Negatives
    rank_min_gap: float
    kl_weight: float
    kl_form: KlForm
    kl_reference: KlReference
    response_weight: float
    class_weights: tuple[float, ...] | None = None


class Denominators(NamedTuple):
    """What each term is divided by, over the whole update and all processes."""

    flow: float
    rank: float
    kl: float
    response: float


@dataclass(frozen=True, slots=True)
class FlowBatch:
    """One forward pass: rows, S states in them, and P paths of at most T actions through those states.

    Attributes:
        rows: What the model reads.
        state: State of each decision (P, T); 0 outside the mask.
        action: Strategy taken in it (P, T).
        mask: Real decisions, which stand first, boolean (P, T).
        value: Search values of states and leaf (P, T+1); the leaf follows the last decision.
        prior: Recorded prior of each state (S, A).
        child_value: Q(s, a) (S, A), 0 where not visited.
        visited: Boolean (S, A).
        root_value: Search value of the root of each state's tree (S,).
        first_node: Whether the path is the update's first with this node, boolean (P, T+1).
        first_edge: The same with edges in place of states, boolean (P, T+1).
        first_state: Whether the state is the update's first copy, boolean (S,).
        target_weight: Weight of each target token of the response term (N,).
        denominators: Of the whole update.
    """

    rows: PackedRows
    state: Tensor
    action: Tensor
    mask: Tensor
    value: Tensor
    prior: Tensor
    child_value: Tensor
    visited: Tensor
    root_value: Tensor
    first_node: Tensor
    first_edge: Tensor
    first_state: Tensor
    target_weight: Tensor
    denominators: Denominators

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the batch on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor | PackedRows)
        }
        return replace(self, **moved)

    @property
    def n_paths(self) -> int:
        """Paths of this pass."""
        return self.mask.shape[0]


def make_update(
    chunks: Sequence[Chunk], encoding: Encoding, settings: FlowSettings, *, rank: int = 0, n_ranks: int = 1
) -> list[FlowBatch]:
    """Return one process's forward passes of one optimiser step.

    Args:
        chunks: All chunks of the update, the same on every process.
        encoding: How they become rows.
        settings: What is counted depends on objective and weighting.
        rank: This process.
        n_ranks: Number of processes; each takes every ``n_ranks``-th chunk, and those with fewer passes get empty ones.
    """
    firsts = _firsts(chunks)
    bare = [_paths_of([chunk], [first]) for chunk, first in zip(chunks, firsts, strict=True)]
    denominators = _denominators(chunks, bare, settings)
    share = [groups(chunks[other::n_ranks], encoding) for other in range(n_ranks)]
    own_firsts = firsts[rank::n_ranks]
    batches = []
    taken = 0
    for group in share[rank]:
        batches.append(_batch(group, own_firsts[taken : taken + len(group)], encoding, denominators))
        taken += len(group)
    n_passes = max(len(passes) for passes in share)
    n_strategies = len(_facts(chunks[0].tree, 0).prior)
    return batches + [_empty_batch(n_strategies, encoding, denominators)] * (n_passes - len(batches))


# ---------------------------------------------------------------- which copy counts


class _Firsts(NamedTuple):
    """Of one chunk: which nodes and edges of its paths, and which of its states, come first in the update."""

    nodes: list[list[bool]]
    edges: list[list[bool]]
    states: list[bool]


def _firsts(chunks: Sequence[Chunk]) -> list[_Firsts]:
    """Say for every chunk what no chunk and no path before it has."""
    seen: set[tuple[str, ...]] = set()

    def first(*key: str) -> bool:
        fresh = key not in seen
        seen.add(key)
        return fresh

    found = []
    for chunk in chunks:
        tree, nodes, edges = chunk.tree, [], []
        for path in (tree.paths[index] for index in chunk.paths):
            keys = [tree.nodes[state].key for state in path.states]
            nodes.append([*(first("node", tree.id, key) for key in keys), first("leaf", path.id)])
            actions = zip(keys, path.actions, strict=True)
            edges.append([*(first("edge", tree.id, key, str(action)) for key, action in actions), nodes[-1][-1]])
        found.append(_Firsts(nodes, edges, [first("state", tree.id, tree.nodes[index].key) for index in chunk.states]))
    return found


# ---------------------------------------------------------------- tensors


class _Paths(NamedTuple):
    """The path tensors of :class:`FlowBatch`."""

    state: Tensor
    action: Tensor
    mask: Tensor
    value: Tensor
    first_node: Tensor
    first_edge: Tensor


def _paths_of(group: Sequence[Chunk], firsts: Sequence[_Firsts]) -> _Paths:
    """Return the path tensors of some chunks, states numbered through."""
    paths: list[tuple[FlowTree, FlowPath, dict[int, int]]] = []
    n_states = 0
    for chunk in group:
        number = {node: n_states + index for index, node in enumerate(chunk.states)}
        n_states += len(number)
        paths += [(chunk.tree, chunk.tree.paths[index], number) for index in chunk.paths]
    longest = max((len(path.actions) for _, path, _ in paths), default=1)
    state, action = (torch.zeros(len(paths), longest, dtype=torch.long) for _ in range(2))
    value = torch.ones(len(paths), longest + 1)
    mask = torch.zeros(len(paths), longest, dtype=torch.bool)
    first_node, first_edge = (torch.zeros(len(paths), longest + 1, dtype=torch.bool) for _ in range(2))
    node_flags = [flags for first in firsts for flags in first.nodes]
    edge_flags = [flags for first in firsts for flags in first.edges]
    for row, (tree, path, number) in enumerate(paths):
        n_actions = len(path.actions)
        state[row, :n_actions] = torch.tensor([number[node] for node in path.states])
        action[row, :n_actions] = torch.tensor(path.actions)
        mask[row, :n_actions] = True
        values = [*(_facts(tree, node).value for node in path.states), path.leaf_value]
        value[row, : n_actions + 1] = torch.tensor(values)
        first_node[row, : n_actions + 1] = torch.tensor(node_flags[row])
        first_edge[row, : n_actions + 1] = torch.tensor(edge_flags[row])
    return _Paths(state, action, mask, value, first_node, first_edge)


def _batch(
    group: Sequence[Chunk], firsts: Sequence[_Firsts], encoding: Encoding, denominators: Denominators
) -> FlowBatch:
    """Return one forward pass over some chunks."""
    states = [(chunk.tree, node) for chunk in group for node in chunk.states]
    facts = [_facts(tree, node) for tree, node in states]
    return FlowBatch(
        rows=pack(group, encoding),
        **_paths_of(group, firsts)._asdict(),
        prior=torch.tensor([fact.prior for fact in facts]),
        child_value=torch.tensor([[value or 0.0 for value in fact.child_values] for fact in facts]),
        visited=torch.tensor([[value is not None for value in fact.child_values] for fact in facts]),
        root_value=torch.tensor([tree.root_value for tree, _ in states]),
        first_state=torch.tensor([flag for first in firsts for flag in first.states]),
        target_weight=torch.tensor(_target_weights(group) if encoding.responses else []),
        denominators=denominators,
    )


def _facts(tree: FlowTree, node: int) -> StateFacts:
    """Return the facts of a state."""
    facts = tree.nodes[node].facts
    if facts is None:
        raise ValueError(f"node {tree.nodes[node].key} is no state")
    return facts


def _target_weights(group: Sequence[Chunk]) -> list[float]:
    """Return, per target token in row order, the summed weight of the chunk's paths through its node."""
    found: list[float] = []
    for chunk in group:
        for node in chunk.nodes:
            words = chunk.tree.nodes[node].words
            if words is not None:
                paths = [chunk.tree.paths[index] for index in chunk.paths]
                weight = sum(path.response_weight for path in paths if node in path.nodes)
                found += [weight] * (words[1] - words[0])
    return found


def _empty_batch(n_strategies: int, encoding: Encoding, denominators: Denominators) -> FlowBatch:
    """Return a pass over one token without any path: its losses are 0 and touch every parameter."""
    zero = torch.zeros(1, 1, dtype=torch.long)
    none = torch.zeros(0, dtype=torch.long) if encoding.responses else None
    rows = PackedRows(
        input_ids=zero,
        position_ids=zero,
        readout_row=zero[0],
        readout_column=zero[0],
        subtree_end=zero + 1 if encoding.mode == "tree" else None,
        spans=(NodeSpan(0, 1, -1),) if encoding.mode == "tree" else None,
        target_row=none,
        target_column=none,
        target_ids=none,
    )
    uniform = torch.full((1, n_strategies), 1.0 / n_strategies)
    return FlowBatch(
        rows=rows,
        **_paths_of([], [])._asdict(),
        prior=uniform,
        child_value=torch.zeros_like(uniform),
        visited=torch.zeros_like(uniform, dtype=torch.bool),
        root_value=torch.zeros(1),
        first_state=torch.zeros(1, dtype=torch.bool),
        target_weight=torch.zeros(0),
        denominators=denominators,
    )


# ---------------------------------------------------------------- denominators


def _denominators(chunks: Sequence[Chunk], bare: Sequence[_Paths], settings: FlowSettings) -> Denominators:
    """Count an update."""
    n_paths = float(sum(len(chunk.paths) for chunk in chunks))
    n_states = float(len({(chunk.tree.id, chunk.tree.nodes[node].key) for chunk in chunks for node in chunk.states}))
    unique = settings.weighting == "unique"
    flow = n_paths
    if settings.objective == "bc":
        flow = float(sum(int(paths.mask.sum()) for paths in bare))
    elif settings.objective == "dpo":
        flow = n_states if unique else n_paths
    elif unique:
        flow = sum(float(pair_weights(paths, settings).sum()) for paths in bare)
    response = 0.0
    if settings.response_weight > 0:
        response = sum(sum(_target_weights([chunk])) for chunk in chunks)
    return Denominators(
        flow=flow or 1.0,
        rank=n_states if unique else n_paths,
        kl=n_states if unique and settings.kl_form == "full" else n_paths,
        response=response or 1.0,
    )


def pair_weights(paths: _Paths | FlowBatch, settings: FlowSettings) -> Tensor:
    """Return, per upper end, the summed weight of the distinct subpaths that end there (P, K−1)."""
    first = paths.first_node if settings.state_value == "policy_mean" else paths.first_edge
    mask, phi = paths.mask, torch.zeros(paths.value.shape)
    if not settings.terminal_boundary:
        mask, phi = mask[:, 1:], phi[:, 1:]
    terms = path_terms(settings.objective, subtb_lambda=settings.subtb_lambda)
    return terms(phi, mask.cpu())[1] * first[:, 1 : mask.shape[1] + 1].cpu()
