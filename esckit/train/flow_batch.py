"""One optimiser step of flow training as data: forward passes, and what the losses divide by.

All denominators (paths, pairs, states) are counted over the whole update and all processes before the first backward
pass, and every forward pass carries them. So the losses of an update's passes simply add up, and neither chunking nor
accumulation nor the number of devices changes the update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from esckit.models.packed_rows import NodeSpan, PackedRows
from esckit.train.flow_trees import FlowPath, FlowTree, StateFacts
from esckit.train.objectives import path_terms
from esckit.train.packing import Chunk, Encoding, groups, pack
from esckit.train.ranking import Negatives

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
