"""Search trees as training reads them: token ids, facts of the search, and the paths through them.

Inner nodes on a kept path are *states*: a decision is taken there and the model is read at their last token. Leaves
are never read, a leaf's flow is its search value; their supporter turns are kept as text for the response term only.
Not here: how nodes share rows (:mod:`esckit.flow.batch`).

Corpus dialogues as trees without branches: the strategies that people took, for behaviour cloning.

A dialogue is one causal sequence and every decision in it is read in one pass. Each state ends at the last token before
a labelled supporter utterance, whoever spoke before; an opening is decided at the header's last token. Search values
are unknown here, so only ``bc`` can learn from such trees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from esckit.flow.text import FlowText, drop_oldest
from esckit.trees import Trajectory, child_values, children_of, trajectories
from esckit.types import Dialogue, Outcome, SearchTree, TreeNode


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
