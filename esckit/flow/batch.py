"""One optimiser step of flow training as data: which rows are read, and what the losses divide by.

Trees are cut into chunks: some paths of one tree with all their nodes. Every path is in exactly one chunk, and nodes
that chunks share are repeated. Chunks become rows in one of three encodings, ``tree``, ``path`` and ``prefix``. All of
them read the same states and give the same hidden states; they differ in how many tokens they read for them.

All denominators (paths, pairs, states) are counted over the whole update and all processes before the first backward
pass, and every forward pass carries them. So the losses of an update's passes add up, and neither chunking nor
accumulation nor the number of devices changes the update. Not here: the losses (:mod:`esckit.flow.trainer`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, chain, pairwise
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from esckit.flow.data import FlowNode, FlowPath, FlowTree, StateFacts
from esckit.flow.objectives import path_terms
from esckit.flow.recipe import FlowEncoding, FlowObjective, FlowOptim, Kl, Rank
from esckit.flow.text import drop_oldest
from esckit.ledger import derive_seed
from esckit.models.packing import PackedRows, TreeRow
from esckit.training.run import Process


@dataclass(frozen=True, slots=True)
class LossTerms:
    """What the loss is made of: sections of a recipe, and what only the data tell.

    Attributes:
        objective: The flow objective, or what stands in its place.
        rank: The ranking term.
        kl: The KL term.
        response_weight: Weight of the response term.
        class_weights: Weight per strategy in ``bc``, mean 1 over the data; None weighs all alike.
    """

    objective: FlowObjective
    rank: Rank
    kl: Kl
    response_weight: float = 0.0
    class_weights: tuple[float, ...] | None = None


# ---------------------------------------------------------------- chunks


class Firsts(NamedTuple):
    """Of one chunk: which nodes and edges of its paths, and which of its states, come first in the update."""

    nodes: list[list[bool]]
    edges: list[list[bool]]
    states: list[bool]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some paths of a tree, by index, and the nodes they need in preorder.

    Attributes:
        firsts: What no chunk of the update and no path before it has; None outside an update.
    """

    tree: FlowTree
    paths: tuple[int, ...]
    nodes: tuple[int, ...]
    firsts: Firsts | None = None

    @property
    def states(self) -> tuple[int, ...]:
        """The nodes that are read."""
        return tuple(index for index in self.nodes if self.tree.nodes[index].facts is not None)


def chunks(tree: FlowTree, encoding: FlowEncoding) -> Iterator[Chunk]:
    """Yield a tree in chunks within the token budget, its paths in depth-first order; a single path may exceed it."""

    def chunk(start: int, end: int) -> Chunk:
        paths = tuple(range(start, end))
        return Chunk(tree, paths, tuple(sorted({node for path in paths for node in tree.paths[path].nodes})))

    most, start = encoding.max_paths_per_chunk, 0
    for end in range(2, len(tree.paths) + 1):
        too_many = most is not None and end - start > most
        if end - start > 1 and (too_many or n_tokens([chunk(start, end)], encoding) > encoding.max_tokens):
            yield chunk(start, end - 1)
            start = end - 1
    if tree.paths:
        yield chunk(start, len(tree.paths))


def n_tokens(group: Sequence[Chunk], encoding: FlowEncoding) -> int:
    """Return the tokens of one forward pass over some chunks, padding included."""
    if encoding.mode == "tree":
        return sum(len(chunk.tree.nodes[node].tokens) for chunk in group for node in chunk.nodes)
    ends = ((chunk.tree, node) for chunk in group for node in _row_ends(chunk, encoding))
    if encoding.mode == "prefix" and encoding.max_prefix_tokens is not None:
        lengths = [len(_sequence(tree, node, encoding)) for tree, node in ends]
    else:
        lengths = [tree.prefix_length(node) for tree, node in ends]
    return len(lengths) * max(lengths, default=0)


def groups(all_chunks: Iterable[Chunk], encoding: FlowEncoding) -> list[list[Chunk]]:
    """Return the chunks in groups for one forward pass each, in order and within the token budget."""
    found: list[list[Chunk]] = []
    for chunk in all_chunks:
        if found and n_tokens([*found[-1], chunk], encoding) <= encoding.max_tokens:
            found[-1].append(chunk)
        else:
            found.append([chunk])
    return found


def _mark_firsts(all_chunks: Iterable[Chunk]) -> list[Chunk]:
    """Return the chunks of an update, each knowing what no chunk and no path before it has."""
    seen: set[tuple[str, ...]] = set()

    def first(*key: str) -> bool:
        fresh = key not in seen
        seen.add(key)
        return fresh

    found = []
    for chunk in all_chunks:
        tree, nodes, edges = chunk.tree, [], []
        for path in (tree.paths[index] for index in chunk.paths):
            keys = [tree.nodes[state].key for state in path.states]
            # Two searches under one run seed give their paths the same ids; only the tree's tells them apart.
            nodes.append([*(first("node", tree.id, key) for key in keys), first("leaf", tree.id, path.id)])
            actions = zip(keys, path.actions, strict=True)
            edges.append([*(first("edge", tree.id, key, str(action)) for key, action in actions), nodes[-1][-1]])
        states = [first("state", tree.id, tree.nodes[index].key) for index in chunk.states]
        found.append(replace(chunk, firsts=Firsts(nodes, edges, states)))
    return found


# ---------------------------------------------------------------- rows


def pack(group: Sequence[Chunk], encoding: FlowEncoding) -> PackedRows:
    """Return the rows of one forward pass; states come in the order of the chunks and of their nodes."""
    return _pack_tree(group) if encoding.mode == "tree" else _pack_causal(group, encoding)


def _pack_tree(group: Sequence[Chunk]) -> PackedRows:
    """Return one row with every node of the chunks once."""
    nodes: list[FlowNode] = []
    parents: list[int] = []
    for chunk in group:
        place: dict[int, int] = {}
        for index in chunk.nodes:
            place[index] = len(nodes)
            nodes.append(chunk.tree.nodes[index])
            parents.append(place.get(nodes[-1].parent, -1))
    packed = TreeRow.of((node.tokens, parent) for node, parent in zip(nodes, parents, strict=True))
    readouts = [span.end - 1 for span, node in zip(packed.spans, nodes, strict=True) if node.facts is not None]
    targets: list[int] = []
    for span, node in zip(packed.spans, nodes, strict=True):
        if node.words is not None:
            targets += range(span.start + node.words[0], span.start + node.words[1])
    row, column = torch.tensor([packed.ids]), torch.tensor(targets, dtype=torch.long) - 1
    return PackedRows(
        input_ids=row,
        position_ids=torch.tensor([packed.positions]),
        readout_row=torch.zeros(len(readouts), dtype=torch.long),
        readout_column=torch.tensor(readouts, dtype=torch.long),
        subtree_end=torch.tensor([packed.subtree_end()]),
        spans=packed.spans,
        target_row=torch.zeros_like(column),
        target_column=column,
        target_ids=row[0, column + 1],
    )


def _pack_causal(group: Sequence[Chunk], encoding: FlowEncoding) -> PackedRows:
    """Return one causal row per path or per state, padded with 0 on the right, where a causal model never looks."""
    rows: list[tuple[int, ...]] = []
    readouts: list[tuple[int, int]] = []
    for chunk in group:
        where: dict[int, tuple[int, int]] = {}
        for end in _row_ends(chunk, encoding):
            sequence = _sequence(chunk.tree, end, encoding)
            for node in (end,) if encoding.mode == "prefix" else chunk.tree.lineage(end):
                length = len(sequence) if node == end else chunk.tree.prefix_length(node)
                where.setdefault(node, (len(rows), length - 1))
            rows.append(sequence)
        readouts += [where[state] for state in chunk.states]
    longest = max(len(row) for row in rows)
    padded = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row)
    places = torch.tensor(readouts, dtype=torch.long)
    return PackedRows(
        input_ids=padded,
        position_ids=torch.arange(longest).expand(len(rows), longest),
        readout_row=places[:, 0],
        readout_column=places[:, 1],
    )


def _row_ends(chunk: Chunk, encoding: FlowEncoding) -> tuple[int, ...]:
    """Return the nodes at whose end a row ends: the last state of each path, or every state."""
    if encoding.mode == "prefix":
        return chunk.states
    return tuple(dict.fromkeys(chunk.tree.paths[path].states[-1] for path in chunk.paths))


def _sequence(tree: FlowTree, node: int, encoding: FlowEncoding) -> tuple[int, ...]:
    """Return the ids from the root to the end of a node."""
    lineage = [tree.nodes[index] for index in tree.lineage(node)]
    ids = tuple(chain.from_iterable(above.tokens for above in lineage))
    limit = encoding.max_prefix_tokens
    if encoding.mode != "prefix" or limit is None or len(ids) <= limit:
        return ids
    begins = accumulate((len(above.tokens) for above in lineage), initial=0)
    starts = [begin + at for begin, above in zip(begins, lineage, strict=False) for at in above.exchanges]
    exchanges = [ids[start:end] for start, end in pairwise([*starts, len(ids)])]
    return (*ids[: tree.n_header], *chain.from_iterable(drop_oldest(exchanges, limit - tree.n_header)))


# ---------------------------------------------------------------- forward passes


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
        state: State of each decision (P, T), real ones first; 0 outside the mask.
        action: Strategy taken in it (P, T).
        mask: Real decisions, boolean (P, T).
        value: Search values of states and leaf (P, T+1); the leaf follows the last decision.
        first_node: Whether the path is the update's first with this node, boolean (P, T+1).
        first_edge: The same with edges in place of states, boolean (P, T+1).
        prior: Recorded prior of each state (S, A).
        child_value: Q(s, a) (S, A), 0 where not visited.
        visited: Boolean (S, A).
        root_value: Search value of the root of each state's tree (S,): the mean return of all simulations.
        first_state: Whether the state is the update's first copy, boolean (S,).
        target_weight: Weight of each target token of the response term (N,).
        denominators: Of the whole update.
    """

    rows: PackedRows
    state: Tensor
    action: Tensor
    mask: Tensor
    value: Tensor
    first_node: Tensor
    first_edge: Tensor
    prior: Tensor
    child_value: Tensor
    visited: Tensor
    root_value: Tensor
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


def make_update(
    all_chunks: Iterable[Chunk], encoding: FlowEncoding, terms: LossTerms, process: Process = Process()
) -> list[FlowBatch]:
    """Return one process's forward passes of one optimiser step.

    Args:
        all_chunks: All chunks of the update, the same on every process.
        encoding: How they become rows.
        terms: What is counted depends on objective and weighting.
        process: Each takes every n-th of n processes' chunks, and those with fewer passes get empty ones.
    """
    # Rows of similar length share a pass, so that little is padded.
    marked = _mark_firsts(sorted(all_chunks, key=lambda chunk: n_tokens([chunk], encoding)))
    denominators = _denominators(marked, terms)
    shares = [groups(marked[rank :: process.count], encoding) for rank in range(process.count)]
    passes = [_batch(group, encoding, denominators) for group in shares[process.rank]]
    n_missing = max(map(len, shares)) - len(passes)
    if n_missing:
        passes += [_empty_batch(len(marked[0].tree.facts(0).prior), encoding, denominators)] * n_missing
    return passes


def _batch(group: Sequence[Chunk], encoding: FlowEncoding, denominators: Denominators) -> FlowBatch:
    """Return one forward pass over some chunks of an update."""
    states = [(chunk.tree, chunk.tree.facts(node)) for chunk in group for node in chunk.states]
    return FlowBatch(
        rows=pack(group, encoding),
        **_path_tensors(group),
        prior=torch.tensor([facts.prior for _, facts in states]),
        child_value=torch.tensor([[value or 0.0 for value in facts.child_values] for _, facts in states]),
        visited=torch.tensor([[value is not None for value in facts.child_values] for _, facts in states]),
        root_value=torch.tensor([tree.facts(0).value for tree, _ in states]),
        first_state=torch.tensor([flag for chunk in group for flag in _firsts(chunk).states]),
        target_weight=torch.tensor(_target_weights(group)),
        denominators=denominators,
    )


def _empty_batch(n_strategies: int, encoding: FlowEncoding, denominators: Denominators) -> FlowBatch:
    """Return a pass over one token without any path: its losses are 0 and touch every parameter."""
    facts = StateFacts(0.0, (1.0 / n_strategies,) * n_strategies, (None,) * n_strategies)
    tree = FlowTree("", "", 0, (FlowNode("", -1, (0,), facts),), ())
    # By state: there is no path whose end a row could be.
    encoding = encoding if encoding.mode == "tree" else encoding.model_copy(update={"mode": "prefix"})
    return _batch([Chunk(tree, (), (0,), Firsts([], [], [False]))], encoding, denominators)


def _path_tensors(group: Sequence[Chunk]) -> dict[str, Tensor]:
    """Return the tensors of a :class:`FlowBatch` about paths, states numbered through."""
    paths: list[tuple[FlowTree, FlowPath, dict[int, int]]] = []
    n_states = 0
    for chunk in group:
        number = {node: n_states + index for index, node in enumerate(chunk.states)}
        n_states += len(number)
        paths += [(chunk.tree, chunk.tree.paths[index], number) for index in chunk.paths]
    longest = max((len(path.actions) for _, path, _ in paths), default=1)
    state, action = (torch.zeros(len(paths), longest, dtype=torch.long) for _ in range(2))
    mask = torch.zeros(len(paths), longest, dtype=torch.bool)
    value = torch.ones(len(paths), longest + 1)
    first_node, first_edge = (torch.zeros(len(paths), longest + 1, dtype=torch.bool) for _ in range(2))
    node_flags = [flags for chunk in group for flags in _firsts(chunk).nodes]
    edge_flags = [flags for chunk in group for flags in _firsts(chunk).edges]
    for row, (tree, path, number) in enumerate(paths):
        n_actions = len(path.actions)
        state[row, :n_actions] = torch.tensor([number[node] for node in path.states])
        action[row, :n_actions] = torch.tensor(path.actions)
        mask[row, :n_actions] = True
        values = [*(tree.facts(node).value for node in path.states), path.leaf_value]
        value[row, : n_actions + 1] = torch.tensor(values)
        first_node[row, : n_actions + 1] = torch.tensor(node_flags[row])
        first_edge[row, : n_actions + 1] = torch.tensor(edge_flags[row])
    names = ("state", "action", "mask", "value", "first_node", "first_edge")
    return dict(zip(names, (state, action, mask, value, first_node, first_edge), strict=True))


def _firsts(chunk: Chunk) -> Firsts:
    if chunk.firsts is None:
        raise ValueError("a chunk outside an update")
    return chunk.firsts


def _target_weights(group: Sequence[Chunk]) -> list[float]:
    """Return, per target token in row order, the summed weight of the chunk's paths through its node."""
    found: list[float] = []
    for chunk in group:
        paths = [chunk.tree.paths[index] for index in chunk.paths]
        for node in chunk.nodes:
            if (words := chunk.tree.nodes[node].words) is not None:
                weight = sum(path.response_weight for path in paths if node in path.nodes)
                found += [weight] * (words[1] - words[0])
    return found


def _denominators(all_chunks: Sequence[Chunk], terms: LossTerms) -> Denominators:
    """Count an update."""
    n_paths = float(sum(len(chunk.paths) for chunk in all_chunks))
    n_states = float(sum(sum(_firsts(chunk).states) for chunk in all_chunks))
    unique = terms.objective.weighting == "unique"
    if terms.objective.name == "bc":
        actions = (chunk.tree.paths[index].actions for chunk in all_chunks for index in chunk.paths)
        flow = float(sum(map(len, actions)))
    elif unique and terms.objective.name != "dpo":
        paths, objective = _path_tensors(all_chunks), terms.objective
        mask, phi = paths["mask"], torch.zeros(paths["value"].shape, dtype=torch.float64)
        if not objective.terminal_boundary:
            mask, phi = mask[:, 1:], phi[:, 1:]
        # The summed weight of the update's distinct subpaths.
        weights = path_terms(objective.name, subtb_lambda=objective.subtb_lambda)(phi, mask)[1]
        flow = float((weights * paths[first_ends(objective)][:, 1 : mask.shape[1] + 1]).sum())
    else:
        flow = n_states if unique else n_paths
    return Denominators(
        flow=flow or 1.0,
        rank=n_states if unique else n_paths,
        kl=n_states if unique and terms.kl.form == "full" else n_paths,
        response=sum(sum(_target_weights([chunk])) for chunk in all_chunks) or 1.0,
    )


def first_ends(objective: FlowObjective) -> Literal["first_node", "first_edge"]:
    """Return which field of :class:`FlowBatch` tells the upper ends of distinct subpaths."""
    return "first_node" if objective.state_value == "policy_mean" else "first_edge"


# ---------------------------------------------------------------- updates


class Updates(Dataset[list[FlowBatch]]):
    """Every optimiser step of a training, in order, as one process sees it.

    Args:
        trees: Everything to learn from; each epoch sees its chunks in another order.
        encoding: How they become rows.
        terms: What is counted.
        optim: How many epochs, and how many paths an update takes at least.
        seed: Fixes the orders.
        process: This process.
    """

    def __init__(
        self,
        trees: Iterable[FlowTree],
        encoding: FlowEncoding,
        terms: LossTerms,
        optim: FlowOptim,
        *,
        seed: int,
        process: Process,
    ) -> None:
        self._encoding, self._terms, self._process = encoding, terms, process
        self._updates: list[list[Chunk]] = []
        self.epoch_ends: list[int] = []
        all_chunks = [chunk for tree in trees for chunk in chunks(tree, encoding)]
        for epoch in range(optim.epochs):
            order = list(all_chunks)
            random.Random(derive_seed(seed, "flow-updates", str(epoch))).shuffle(order)
            n_paths = optim.paths_per_update
            for chunk in order:
                if n_paths >= optim.paths_per_update:
                    self._updates.append([])
                    n_paths = 0
                self._updates[-1].append(chunk)
                n_paths += len(chunk.paths)
            self.epoch_ends.append(len(self._updates))

    def __len__(self) -> int:
        """Return the number of optimiser steps."""
        return len(self._updates)

    def tree_ids(self, index: int) -> list[str]:
        """Return the ids of the trees in an optimiser step."""
        return [chunk.tree.id for chunk in self._updates[index]]

    def __getitem__(self, index: int) -> list[FlowBatch]:
        """Return the forward passes of an optimiser step."""
        return make_update(self._updates[index], self._encoding, self._terms, self._process)
