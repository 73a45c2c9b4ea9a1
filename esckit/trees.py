"""Trajectories of a search tree: its root-to-leaf paths, derived and never stored.

A pure reading of :class:`~esckit.types.SearchTree`, used by search (reports) and training (losses) alike; it computes
no loss and loads no tensor library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

from esckit.errors import DataError
from esckit.types import Outcome, SearchTree, TreeNode


@dataclass(frozen=True, slots=True)
class Step:
    """One decision of a trajectory.

    Attributes:
        state: The node at which the strategy was chosen.
        action: Index of the strategy in taxonomy order.
        log_prior: Natural logarithm of the recorded prior of that strategy.
    """

    state: TreeNode
    action: int
    log_prior: float

    @property
    def value(self) -> float:
        """Search value of the state, in [0, 1]; at the root the mean return of all simulations."""
        return self.state.mean_return

    @property
    def visits(self) -> int:
        """Visits of the state."""
        return self.state.visits


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A root-to-leaf path.

    Attributes:
        id: ``{run seed}/{tree id}/{leaf id}``.
        steps: The decisions, root first.
        leaf: The node in which it ends, terminal or never expanded.
    """

    id: str
    steps: tuple[Step, ...]
    leaf: TreeNode

    @property
    def leaf_value(self) -> float:
        """Search value of the leaf, in [0, 1]."""
        return self.leaf.mean_return

    @property
    def outcome(self) -> Outcome | None:
        """How the path ended; None for a leaf that was never expanded."""
        return self.leaf.outcome


def children_of(tree: SearchTree) -> dict[str, tuple[TreeNode, ...]]:
    """Return the children of every node in taxonomy order, keyed by node id; leaves have an empty tuple.

    Raises:
        DataError: If a node's parent is missing or its strategy is not of the tree's taxonomy.
    """
    order = {name: index for index, name in enumerate(tree.strategies)}
    found: dict[str, list[TreeNode]] = {node.id: [] for node in tree.nodes}
    for node in tree.nodes:
        if node.parent is None:
            continue
        if node.parent not in found:
            raise DataError(f"node {node.id} of tree {tree.id} without its parent {node.parent}")
        if node.strategy not in order:
            raise DataError(f"strategy {node.strategy!r} in tree {tree.id}", expected=f"one of {tree.strategies}")
        found[node.parent].append(node)
    return {
        node_id: tuple(sorted(nodes, key=lambda node: order[node.strategy or ""])) for node_id, nodes in found.items()
    }


def main_line(tree: SearchTree) -> list[TreeNode]:
    """Return the path from the root along the most visited child; of equals the higher value, then the older one."""
    children: dict[str | None, list[TreeNode]] = {}
    for node in tree.nodes:
        children.setdefault(node.parent, []).append(node)
    line = [tree.nodes[0]]
    while below := children.get(line[-1].id):
        # Nodes of a failed tree may have no value; they come last.
        line.append(max(below, key=lambda node: (node.visits, -1.0 if node.value is None else node.value)))
    return line


def trajectories(tree: SearchTree, *, min_actions: int) -> tuple[Trajectory, ...]:
    """Return every root-to-leaf path with at least ``min_actions`` actions.

    Depth first, children in taxonomy order. Nothing is filtered by reward (arXiv 2602.08826).

    Raises:
        DataError: If the tree is not whole.
    """
    children = children_of(tree)
    found: list[Trajectory] = []
    stack: list[tuple[TreeNode, tuple[Step, ...]]] = [(tree.nodes[0], ())]
    while stack:
        node, steps = stack.pop()
        if not children[node.id] and len(steps) >= min_actions:
            found.append(Trajectory(f"{tree.run_seed}/{tree.id}/{node.id}", steps, node))
        # A stack reverses, and the first child has to come out first.
        for child in reversed(children[node.id]):
            action = tree.strategies.index(child.strategy or "")
            if node.prior is None or not node.prior[action] > 0.0:
                raise DataError(f"node {node.id} of tree {tree.id} has a child but no positive prior of its strategy")
            stack.append((child, (*steps, Step(node, action, log(node.prior[action])))))
    return tuple(found)


def child_values(
    tree: SearchTree, state: TreeNode, children: Mapping[str, tuple[TreeNode, ...]]
) -> tuple[float | None, ...]:
    """Return the search values Q(state, a) in taxonomy order, None where the strategy was never tried."""
    values: list[float | None] = [None] * len(tree.strategies)
    for child in children[state.id]:
        values[tree.strategies.index(child.strategy or "")] = child.value
    return tuple(values)
