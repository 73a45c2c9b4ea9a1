"""Search trees as training reads them: token ids, facts of the search, and the paths through them.

Inner nodes on a kept path are *states*: a decision is taken there and the model is read at their last token. Leaves
are never read, a leaf's flow is its search value; their supporter turns are kept as text for the response term only.
Not here: how nodes share rows (:mod:`esckit.train.packing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esckit.models.flow_text import FlowText
from esckit.trajectories import Trajectory, child_values, children_of, trajectories
from esckit.types import Outcome, SearchTree, TreeNode


@dataclass(frozen=True, slots=True)
class StateFacts:
    """What the search knows about a state.

    Attributes:
        value: Search value Q_hat of the state, in [0, 1].
        prior: Recorded prior in taxonomy order, positive.
        child_values: Q(s, a) in taxonomy order, None where never tried.
    """

    value: float
    prior: tuple[float, ...]
    child_values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class FlowNode:
    """One node's text.

    Attributes:
        key: Node id, unique in the tree.
        parent: Index of the parent, -1 at the root.
        tokens: The node's own token ids.
        facts: None for a leaf, which is text only.
        words: Range in ``tokens`` of the supporter's words with the closing line end; None without a supporter turn.
    """

    key: str
    parent: int
    tokens: tuple[int, ...]
    facts: StateFacts | None
    words: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class FlowPath:
    """One trajectory through a tree.

    Attributes:
        id: Path id.
        states: Indices of the T states, root first.
        actions: The T strategies taken, by index.
        leaf_value: Search value of the leaf.
        leaf: Index of the leaf's text node, None if it is not kept.
        response_weight: Weight of its supporter turns in the response term, in [0, 1].
    """

    id: str
    states: tuple[int, ...]
    actions: tuple[int, ...]
    leaf_value: float
    leaf: int | None = None
    response_weight: float = 0.0

    @property
    def nodes(self) -> tuple[int, ...]:
        """Indices of all its text nodes."""
        return self.states if self.leaf is None else (*self.states, self.leaf)


@dataclass(frozen=True, slots=True)
class FlowTree:
    """A tree ready for packing.

    Attributes:
        id: Tree id with its run seed, unique over runs.
        scenario_id: The seed dialogue.
        n_header: Tokens of the root before its first turn.
        nodes: Depth-first preorder, children in taxonomy order.
        paths: In the same order.
        n_dropped: Paths left out because they are too long.
    """

    id: str
    scenario_id: str
    n_header: int
    nodes: tuple[FlowNode, ...]
    paths: tuple[FlowPath, ...]
    n_dropped: int = 0

    @property
    def root_value(self) -> float:
        """Search value of the root: the mean return of all simulations."""
        facts = self.nodes[0].facts
        return 0.0 if facts is None else facts.value

    def lineage(self, index: int) -> tuple[int, ...]:
        """Return the indices from the root down to a node."""
        found = [index]
        while self.nodes[found[0]].parent >= 0:
            found.insert(0, self.nodes[found[0]].parent)
        return tuple(found)

    def prefix_length(self, index: int) -> int:
        """Return the tokens from the root to the end of a node."""
        return sum(len(self.nodes[above].tokens) for above in self.lineage(index))


def flow_tree(
    tree: SearchTree, text: FlowText, *, min_actions: int, max_path_tokens: int, responses: bool = False
) -> FlowTree | None:
    """Return a search tree for training, None if no path of it is kept.

    Args:
        tree: A complete or linear tree.
        text: How turns become token ids.
        min_actions: Least number of actions of a path.
        max_path_tokens: A longer path is dropped and counted.
        responses: Keep the supporter turns of leaves, for the response term.
    """
    children = children_of(tree)
    tokens = {node.id: _tokens(node, text, tree) for node in tree.nodes}
    parents = {node.id: node.parent for node in tree.nodes}
    found = trajectories(tree, min_actions=min_actions)
    kept = [path for path in found if _path_length(path, tokens, responses=responses) <= max_path_tokens]
    if not kept:
        return None
    order: dict[str, int] = {}
    nodes: list[FlowNode] = []
    for path in kept:
        for node in [step.state for step in path.steps]:
            if node.id not in order:
                order[node.id] = len(nodes)
                facts = StateFacts(node.mean_return, node.prior or (), child_values(tree, node, children))
                ids, words = tokens[node.id]
                nodes.append(FlowNode(node.id, order.get(parents[node.id] or "", -1), ids, facts, words))
        if responses:
            order[path.leaf.id] = len(nodes)
            nodes.append(_leaf(path.leaf, order[path.steps[-1].state.id], tokens[path.leaf.id]))
    weights = _response_weights(kept) if responses else [0.0] * len(kept)
    return FlowTree(
        id=f"{tree.run_seed}/{tree.id}",
        scenario_id=tree.scenario.id,
        n_header=len(text.header(tree.scenario)),
        nodes=tuple(nodes),
        paths=tuple(_path(path, order, weight) for path, weight in zip(kept, weights, strict=True)),
        n_dropped=len(found) - len(kept),
    )


def _tokens(node: TreeNode, text: FlowText, tree: SearchTree) -> tuple[tuple[int, ...], tuple[int, int] | None]:
    """Return a node's ids and the range of its supporter's words."""
    ids = list(text.header(tree.scenario)) if node.parent is None else []
    words: tuple[int, int] | None = None
    for turn in node.turns:
        pieces = text.turn(turn, strategy=node.strategy)
        start = len(ids) + len(pieces.marker)
        ids += pieces.ids
        # The root's opening is the corpus's, not an action's; only supporter turns under an edge are imitated.
        if turn.speaker == "supporter" and node.parent is not None:
            words = (start, len(ids))
    return tuple(ids), words


def _leaf(node: TreeNode, parent: int, tokens: tuple[tuple[int, ...], tuple[int, int] | None]) -> FlowNode:
    """Return a leaf's text: up to the end of its supporter turn."""
    ids, words = tokens
    end = len(ids) if words is None else words[1]
    return FlowNode(node.id, parent, ids[:end], None, words)


def _path_length(
    path: Trajectory, tokens: dict[str, tuple[tuple[int, ...], tuple[int, int] | None]], *, responses: bool
) -> int:
    """Return the tokens that have to be read for a path."""
    nodes = [step.state.id for step in path.steps] + ([path.leaf.id] if responses else [])
    return sum(len(tokens[node][0]) for node in nodes)


def _path(path: Trajectory, order: dict[str, int], weight: float) -> FlowPath:
    return FlowPath(
        id=path.id,
        states=tuple(order[step.state.id] for step in path.steps),
        actions=tuple(step.action for step in path.steps),
        leaf_value=path.leaf_value,
        leaf=order.get(path.leaf.id),
        response_weight=weight,
    )


def _response_weights(paths: Sequence[Trajectory]) -> list[float]:
    """Return the weight of each path: its mean own-turn reward, 0 if the seeker left, scaled to a maximum of 1."""
    values = []
    for path in paths:
        nodes = [*(step.state for step in path.steps[1:]), path.leaf]
        rewards = [node.reward for node in nodes if node.reward is not None]
        lost = path.outcome is Outcome.DISENGAGED or not rewards
        values.append(0.0 if lost else sum(rewards) / len(rewards))
    best = max(values)
    return [value / best if best > 0 else 0.0 for value in values]


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens that each encoding reads for the same paths.

    Attributes:
        padded: One row per step, padded to a fixed length (as first released).
        steps: One row per step.
        prefixes: One row per distinct prefix.
        paths: One row per path.
        tree: Every node once.
    """

    padded: int
    steps: int
    prefixes: int
    paths: int
    tree: int

    def __add__(self, other: TokenCounts) -> TokenCounts:
        """Return the sum."""
        return TokenCounts(
            self.padded + other.padded,
            self.steps + other.steps,
            self.prefixes + other.prefixes,
            self.paths + other.paths,
            self.tree + other.tree,
        )


def token_counts(tree: FlowTree, *, padded_length: int = 512) -> TokenCounts:
    """Return how many tokens of a tree's states each encoding reads; leaf texts are not counted."""
    states = [index for index, node in enumerate(tree.nodes) if node.facts is not None]
    lengths = {index: tree.prefix_length(index) for index in states}
    return TokenCounts(
        padded=padded_length * sum(len(path.states) for path in tree.paths),
        steps=sum(lengths[state] for path in tree.paths for state in path.states),
        prefixes=sum(lengths.values()),
        paths=sum(lengths[path.states[-1]] for path in tree.paths),
        tree=sum(len(tree.nodes[index].tokens) for index in states),
    )
