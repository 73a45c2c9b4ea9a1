"""A search tree in memory, and its way to flat records and back.

In memory a node knows its parent and its children, so that descending and backing up are cheap; on disk the edge into a
node lives on the node and there is no edge table (:class:`esckit.types.TreeNode`). Nothing here calls a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from esckit.errors import DataError
from esckit.types import Outcome, TreeNode, Turn

ROOT = "r"


@dataclass(slots=True, eq=False)
class Node:
    """A dialogue prefix: its own turns, what the strategist and the critic said of it, and what came back through it.

    Attributes:
        id: Path from the root in abbreviations, ``r.EV.Cla``.
        strategy: Index of the strategy on the edge into the node; None at the root.
        turns: The node's own turns only.
        prior: Smoothed probabilities in taxonomy order; None if terminal.
        visits: Visits of the edge into the node; at the root, simulations backed up.
        value: Mean return of those visits; 0 without any, which is no value.
        children: One slot per strategy in taxonomy order.
        in_flight: Virtual visits per strategy while leaves of a wave are being expanded.
        n_draws: Selection draws made at this node so far.
    """

    id: str
    parent: Node | None
    depth: int
    strategy: int | None
    turns: tuple[Turn, ...]
    prior: tuple[float, ...] | None
    children: list[Node | None]
    in_flight: list[int]
    reward: float | None = None
    ratings: dict[str, float] | None = None
    first_return: float | None = None
    outcome: Outcome | None = None
    visits: int = 0
    value: float = 0.0
    n_draws: int = 0

    def back_up(self, value: float) -> None:
        """Take one more return into the running mean."""
        self.visits += 1
        self.value += (value - self.value) / self.visits

    def edge_visits(self) -> list[int]:
        """Return N(s,a) in taxonomy order."""
        return [0 if child is None else child.visits for child in self.children]

    def edge_values(self) -> list[float]:
        """Return Q(s,a) in taxonomy order; 0 where unvisited."""
        return [0.0 if child is None else child.value for child in self.children]

    def grown(self) -> Iterator[Node]:
        """Yield the children that exist, in taxonomy order."""
        return (child for child in self.children if child is not None)

    def dialogue(self) -> tuple[Turn, ...]:
        """Return the whole prefix, oldest turn first."""
        pieces: list[tuple[Turn, ...]] = []
        node: Node | None = self
        while node is not None:
            pieces.append(node.turns)
            node = node.parent
        return tuple(turn for piece in reversed(pieces) for turn in piece)


@dataclass(slots=True)
class Tree:
    """A root and its descendants.

    Attributes:
        strategies: Names in taxonomy order.
        abbreviations: The same, as node ids have them.
        nodes: In creation order; the first is the root.
    """

    strategies: tuple[str, ...]
    abbreviations: tuple[str, ...]
    nodes: list[Node] = field(default_factory=list)

    @property
    def root(self) -> Node:
        """The node of the opening."""
        return self.nodes[0]

    def plant(self, turns: tuple[Turn, ...]) -> Node:
        """Make the root."""
        width = len(self.strategies)
        root = Node(ROOT, None, 0, None, turns, None, [None] * width, [0] * width)
        self.nodes.append(root)
        return root

    def child_id(self, parent: Node, strategy: int) -> str:
        """Return the id that a parent's child has or would have."""
        return f"{parent.id}.{self.abbreviations[strategy]}"

    def attach(self, parent: Node, strategy: int, turns: tuple[Turn, ...], prior: tuple[float, ...] | None) -> Node:
        """Make a child and link it to its parent."""
        width = len(self.strategies)
        child = Node(
            self.child_id(parent, strategy),
            parent,
            parent.depth + 1,
            strategy,
            turns,
            prior,
            [None] * width,
            [0] * width,
        )
        parent.children[strategy] = child
        self.nodes.append(child)
        return child


def freeze(tree: Tree) -> tuple[TreeNode, ...]:
    """Return a tree's nodes as records, in creation order."""
    return tuple(
        TreeNode(
            id=node.id,
            parent=None if node.parent is None else node.parent.id,
            depth=node.depth,
            strategy=None if node.strategy is None else tree.strategies[node.strategy],
            turns=node.turns,
            prior=node.prior,
            visits=node.visits,
            value=node.value if node.visits else None,
            reward=node.reward,
            ratings=node.ratings,
            first_return=node.first_return,
            outcome=node.outcome,
        )
        for node in tree.nodes
    )


def thaw(nodes: Iterable[TreeNode], strategies: Sequence[str]) -> Tree:
    """Return the tree of some records; ``freeze`` gives the same records back.

    Args:
        nodes: In creation order, the root first.
        strategies: Names in taxonomy order.

    Raises:
        DataError: If the records are no tree over these strategies.
    """
    tree = Tree(tuple(strategies), tuple(strategies))
    index_of = {name: index for index, name in enumerate(strategies)}
    by_id: dict[str, Node] = {}
    for number, record in enumerate(nodes):
        if record.id in by_id:
            raise DataError(f"node {record.id!r} twice", field=f"nodes[{number}].id")
        if number == 0:
            node = _thaw_root(tree, record)
        else:
            parent = by_id.get(record.parent or "")
            if parent is None or record.depth != parent.depth + 1:
                raise DataError(f"node {record.id!r} before or without its parent", field=f"nodes[{number}].parent")
            strategy = index_of.get(record.strategy or "")
            if strategy is None:
                raise DataError(f"strategy {record.strategy!r}", field=f"nodes[{number}].strategy")
            if parent.children[strategy] is not None:
                raise DataError(f"a second child {record.strategy!r}", field=f"nodes[{number}].strategy")
            node = tree.attach(parent, strategy, record.turns, record.prior)
        node.id = record.id
        node.visits, node.value = record.visits, 0.0 if record.value is None else record.value
        node.reward, node.ratings = record.reward, record.ratings
        node.first_return, node.outcome = record.first_return, record.outcome
        by_id[record.id] = node
    if not by_id:
        raise DataError("a tree without nodes", field="nodes")
    return tree


def _thaw_root(tree: Tree, record: TreeNode) -> Node:
    if record.parent is not None or record.strategy is not None or record.depth != 0:
        raise DataError(f"first node {record.id!r}", expected="the root", field="nodes[0]")
    root = tree.plant(record.turns)
    root.prior = record.prior
    return root
