"""What ``esckit train-flow`` learns from: search trees of earlier runs, or corpus dialogues with gold strategies.

:func:`collect` reads what a recipe's ``data:`` section names. :func:`flow_trees` makes token ids of it, in one form for
both: a :class:`FlowTree` of nodes and of paths through them. Inner nodes on a kept path are *states*: a decision is
taken there, and the model is read at their last token. A leaf is never read: its flow is its search value, and only the
response term needs its text.

A corpus dialogue becomes a tree of one path: one causal sequence in which every decision is read in one pass. A state
ends at the last token before a labelled supporter utterance, whoever spoke before; an opening is decided at the
header's last token. Search values are unknown here, so only ``bc`` can learn from such trees.

Not here: how nodes share rows (:mod:`esckit.flow.batch`). Nothing in this module loads torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

from esckit.config.data import DataConfig
from esckit.data.selection import select_dialogues
from esckit.errors import ConfigError, DataError
from esckit.flow.recipe import FlowData, GoldData, TrainFlowRecipe
from esckit.flow.text import FlowText, drop_oldest, exchange_starts
from esckit.play.trees import read_trees, tree_file
from esckit.records import file_sha256
from esckit.strategies.kept import kept_taxonomy
from esckit.strategies.taxonomy import Taxonomy
from esckit.types import Dialogue, Outcome, SearchTree, Trajectory, TreeNode, child_values, children_of, trajectories

# ---------------------------------------------------------------- what a recipe names


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that a training reads.

    Attributes:
        labels: The taxonomy.
        parts: Search trees or dialogues by use: ``train``, ``valid``, ``test``.
        inputs: Digest per input file.
        round: Of the trees; 0 for a corpus.
        facts: For the manifest.
    """

    labels: Taxonomy
    parts: dict[str, tuple[SearchTree | Dialogue, ...]]
    inputs: dict[str, str]
    round: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


def collect(data: FlowData) -> Material:
    """Return what a recipe's ``data:`` section names.

    Raises:
        DataError: If trees or corpus cannot be read, do not fit together, or leave nothing to learn from.
    """
    return _of_corpus(data.gold) if data.gold is not None else _of_trees(data)


def counts(material: Material, data: FlowData) -> dict[str, Any]:
    """Return how many dialogues or trees, paths and decisions there are of each use.

    Raises:
        DataError: If no path of a use is long enough.
    """
    found: dict[str, Any] = {"taxonomy": material.labels.name}
    for use, part in material.parts.items():
        if data.gold is not None:
            turns = [turn for one in part if isinstance(one, Dialogue) for turn in one.turns]
            found[use] = {"dialogues": len(part), "decisions": sum(turn.strategy is not None for turn in turns)}
            continue
        trees = [tree for tree in part if isinstance(tree, SearchTree)]
        paths = [path for tree in trees for path in trajectories(tree, min_actions=data.min_actions)]
        if not paths:
            raise DataError(
                f"no path in {use}", expected=f"at least data.min_actions: {data.min_actions} actions on some path"
            )
        found[use] = {"trees": len(trees), "paths": len(paths), "decisions": sum(len(path.steps) for path in paths)}
    return found


def _of_corpus(gold: GoldData) -> Material:
    shared = gold.model_dump(exclude={"split", "valid_split", "test_split", "unit", "taxonomy"})
    splits = {"train": gold.split, "valid": gold.valid_split, "test": gold.test_split}
    selections = {
        use: select_dialogues(
            DataConfig.model_validate({**shared, "split": split, "merge": gold.unit == "turn"}), taxonomy=gold.taxonomy
        )
        for use, split in splits.items()
        if split is not None
    }
    first = selections["train"]
    labels = first.known_strategies("data.gold.taxonomy")
    if labels is None:
        raise _without_taxonomy(first.dialogues, gold.path)
    return Material(
        labels=labels,
        parts={use: tuple(selection.dialogues) for use, selection in selections.items()},
        inputs=first.files,
        # With all ids: whoever evaluates the policy must know what it has seen.
        facts={use: selection.facts() for use, selection in selections.items()},
    )


def _without_taxonomy(dialogues: Iterable[Dialogue], path: str) -> DataError:
    """Return the error for a corpus that has no labels, or labels of no taxonomy."""
    n_labels = sum(turn.source_strategy is not None for dialogue in dialogues for turn in dialogue.turns)
    if not n_labels:
        return DataError("no strategy label", path=path, expected="dialogues with strategies")
    return DataError(
        f"{n_labels:,} strategy labels, and no taxonomy to read them by",
        path=path,
        expected="data.gold.taxonomy: the name or .yaml file of their taxonomy",
        hint="To begin a taxonomy of your own: esckit strategies copy esconv mine.yaml",
    )


def _of_trees(data: FlowData) -> Material:
    files = [tree_file(Path(name)) for name in data.trees]
    if len({file.resolve() for file in files}) < len(files):
        raise DataError("the same trees twice in data.trees", expected="every run once")
    trees = [tree for file in files for tree in read_trees(file)]
    usable = [tree for tree in trees if tree.status != "failed"]
    if not usable:
        raise DataError("no finished tree", path=", ".join(map(str, files)), expected="at least one")
    _check_together(usable, trees)
    parts: dict[str, tuple[SearchTree, ...]] = {}
    for use, split in (("train", data.split), ("valid", data.valid_split)):
        if split is None:
            continue
        parts[use] = tuple(tree for tree in usable if tree.split == split)
        if not parts[use]:
            found = ", ".join(f"{name} {n}" for name, n in sorted(Counter(str(t.split) for t in usable).items()))
            raise DataError(
                f"no tree in split {split!r} (found: {found})",
                expected="trees of both splits",
                hint="Search both (data.split: [train, valid]), or set data.split and data.valid_split",
            )
    first = usable[0]
    taxonomy = kept_taxonomy(first.taxonomy, *(file.parent for file in files))
    if taxonomy.names != first.strategies:
        raise ConfigError(
            f"taxonomy {first.taxonomy} has changed since tree {first.id} was grown",
            expected=", ".join(first.strategies),
        )
    return Material(
        labels=taxonomy,
        parts=dict(parts),
        inputs={str(file): file_sha256(file) for file in files},
        round=max(tree.round for tree in usable),
        facts={
            "readout": first.readout,
            "rounds": sorted({tree.round for tree in usable}),
            "n_failed_trees": len(trees) - len(usable),
        },
    )


def _check_together(usable: Sequence[SearchTree], trees: Sequence[SearchTree]) -> None:
    """Refuse trees whose values or strategies mean different things, and a scenario in two splits.

    The prefixes of such a scenario would be trained on and validated on.
    """
    for what, kinds in (
        ("read-outs", {tree.readout for tree in usable}),
        ("taxonomies", {f"{tree.taxonomy} ({', '.join(tree.strategies)})" for tree in usable}),
    ):
        if len(kinds) > 1:
            raise DataError(f"trees of different {what}: {'; '.join(sorted(kinds))}", expected="one for all of them")
    splits: dict[str, set[str]] = {}
    for tree in trees:
        splits.setdefault(tree.scenario.id, set()).add(str(tree.split))
    torn = sorted((scenario, found) for scenario, found in splits.items() if len(found) > 1)
    if torn:
        scenario, found = torn[0]
        raise DataError(
            f"{len(torn)} scenarios in more than one split, the first {scenario} in {', '.join(sorted(found))}",
            expected="every scenario in one split",
            hint="Search all rounds under one split scheme and seed",
        )


# ---------------------------------------------------------------- token ids


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
        exchanges: Where in ``tokens`` an exchange begins, after the header.
        words: Range in ``tokens`` of the words that the response term predicts, the closing line end included; None
            without a response term or a supporter turn.
    """

    key: str
    parent: int
    tokens: tuple[int, ...]
    facts: StateFacts | None
    words: tuple[int, int] | None = None
    exchanges: tuple[int, ...] = (0,)


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

    def facts(self, state: int) -> StateFacts:
        """Return the facts of a state."""
        facts = self.nodes[state].facts
        if facts is None:
            raise ValueError(f"node {self.nodes[state].key} is not a state")
        return facts

    def lineage(self, index: int) -> tuple[int, ...]:
        """Return the indices from the root down to a node."""
        found = [index]
        while self.nodes[found[0]].parent >= 0:
            found.insert(0, self.nodes[found[0]].parent)
        return tuple(found)

    def prefix_length(self, index: int) -> int:
        """Return the tokens from the root to the end of a node."""
        return sum(len(self.nodes[above].tokens) for above in self.lineage(index))


def flow_trees(material: Material, use: str, recipe: TrainFlowRecipe, text: FlowText) -> list[FlowTree]:
    """Return one part of the material as token ids.

    Raises:
        DataError: If nothing is left of it.
    """
    limit = recipe.encoding.max_path_tokens
    responses = recipe.response_weight > 0
    found: list[FlowTree] = []
    seen: Counter[str] = Counter()
    for one in material.parts[use]:
        if isinstance(one, Dialogue):
            found += gold_trees(one, text, material.labels.names, max_tokens=limit, window=use != "train")
            continue
        tree = flow_tree(one, text, min_actions=recipe.data.min_actions, max_path_tokens=limit, responses=responses)
        if tree is not None:
            seen[tree.id] += 1
            # Two rounds of search may grow the same seed dialogue under the same seed.
            found.append(tree if seen[tree.id] == 1 else replace(tree, id=f"{tree.id}~{seen[tree.id]}"))
    if not found:
        raise DataError(
            f"nothing to learn from in {use}",
            expected="paths of at least data.min_actions actions within encoding.max_path_tokens",
        )
    return found


def flow_tree(
    tree: SearchTree, text: FlowText, *, min_actions: int, max_path_tokens: int, responses: bool = False
) -> FlowTree | None:
    """Return a search tree for training, None if no path of it is kept.

    Args:
        tree: A complete or linear tree.
        text: How turns become token ids.
        min_actions: Least number of actions of a path.
        max_path_tokens: A longer path is dropped and counted.
        responses: Keep the text of leaves up to the end of their supporter turn, for the response term.
    """
    children = children_of(tree)
    header = text.header(tree.scenario)
    texts = {node.id: _node_text(node, text, header) for node in tree.nodes}
    found = trajectories(tree, min_actions=min_actions)
    kept: list[Trajectory] = []
    for path in found:
        read = [step.state for step in path.steps] + ([path.leaf] if responses else [])
        if sum(len(texts[node.id].tokens) for node in read) <= max_path_tokens:
            kept.append(path)
    if not kept:
        return None
    place: dict[str, int] = {}
    nodes: list[FlowNode] = []
    paths: list[FlowPath] = []
    for path, weight in zip(kept, _response_weights(kept), strict=True):
        for state in (step.state for step in path.steps):
            if state.id not in place:
                own = texts[state.id]
                facts = StateFacts(state.mean_return, state.prior or (), child_values(tree, state, children))
                parent = place.get(state.parent or "", -1)
                place[state.id] = len(nodes)
                words = own.words if responses else None
                nodes.append(FlowNode(state.id, parent, own.tokens, facts, words, own.exchanges))
        states = tuple(place[step.state.id] for step in path.steps)
        leaf = None
        if responses:
            ids, words, _ = texts[path.leaf.id]
            leaf = len(nodes)
            nodes.append(FlowNode(path.leaf.id, states[-1], ids if words is None else ids[: words[1]], None, words))
        actions = tuple(step.action for step in path.steps)
        paths.append(FlowPath(path.id, states, actions, path.leaf_value, leaf, weight))
    return FlowTree(
        id=f"{tree.run_seed}/{tree.id}",
        scenario_id=tree.scenario.id,
        n_header=len(header),
        nodes=tuple(nodes),
        paths=tuple(paths),
        n_dropped=len(found) - len(kept),
    )


class _NodeText(NamedTuple):
    """A node's ids, the range of its supporter's words, and where exchanges begin."""

    tokens: tuple[int, ...]
    words: tuple[int, int] | None
    exchanges: tuple[int, ...]


def _node_text(node: TreeNode, text: FlowText, header: tuple[int, ...]) -> _NodeText:
    ids = list(header) if node.parent is None else []
    words: tuple[int, int] | None = None
    begins: list[int] = []
    for turn in node.turns:
        pieces = text.turn(turn, strategy=node.strategy)
        begins.append(len(ids))
        start = len(ids) + len(pieces.marker)
        ids += pieces.ids
        # The root's opening is the corpus's, not an action's; only supporter turns under an edge are imitated.
        if turn.speaker == "supporter" and node.parent is not None:
            words = (start, len(ids))
    return _NodeText(tuple(ids), words, tuple(begins[at] for at in exchange_starts(node.turns)))


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


def gold_trees(
    dialogue: Dialogue, text: FlowText, strategies: tuple[str, ...], *, max_tokens: int, window: bool
) -> list[FlowTree]:
    """Return a dialogue as trees of one path.

    Args:
        dialogue: The dialogue, its utterances merged or not.
        text: How turns become token ids.
        strategies: The taxonomy in order.
        max_tokens: Longest sequence.
        window: Every decision is kept: those that come later than ``max_tokens`` are read behind the newest
            exchanges before them, in a tree of their own each. Otherwise the end of a long dialogue is cut.

    Returns:
        The tree of the dialogue if it has a decision; with ``window``, also those of its late decisions.
    """
    header, starts = text.header(dialogue.scenario), set(exchange_starts(dialogue.turns))
    pieces: list[tuple[tuple[int, ...], tuple[int, ...]]] = []  # what stands between two decisions, and its exchanges
    decisions: list[tuple[int, int]] = []  # the turn, and the strategy taken in it
    ids, begins = list(header), list[int]()
    for at, turn in enumerate(dialogue.turns):
        if turn.speaker == "supporter" and turn.strategy is not None:
            pieces.append((tuple(ids), tuple(begins)))
            decisions.append((at, strategies.index(turn.strategy)))
            ids, begins = [], []
        if at in starts:
            begins.append(len(ids))
        ids += text.turn(turn).ids
    unknown = StateFacts(1.0, (1.0 / len(strategies),) * len(strategies), (None,) * len(strategies))

    def tree(
        pieces: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], actions: Sequence[int], suffix: str = ""
    ) -> FlowTree:
        nodes = tuple(FlowNode(str(at), at - 1, ids, unknown, None, begins) for at, (ids, begins) in enumerate(pieces))
        name = f"{dialogue.id}{suffix}"
        path = FlowPath(name, tuple(range(len(nodes))), tuple(actions), leaf_value=1.0)
        return FlowTree(name, dialogue.id, len(header), nodes, (path,))

    n_fitting = sum(end <= max_tokens for end in accumulate(len(ids) for ids, _ in pieces))
    trees = [tree(pieces[:n_fitting], [action for _, action in decisions[:n_fitting]])] if n_fitting else []
    for late, (at, action) in enumerate(decisions) if window else ():
        if late >= n_fitting:
            newest = drop_oldest(text.exchanges(dialogue.turns[:at]), max_tokens - len(header))
            ends = tuple(accumulate(map(len, newest), initial=len(header)))
            trees.append(tree([((*header, *chain.from_iterable(newest)), ends[:-1])], [action], f"@{late}"))
    return trees


# ---------------------------------------------------------------- what is counted


def token_counts(trees: Iterable[FlowTree], *, padded_length: int = 512) -> dict[str, int]:
    """Return how many tokens each encoding would read of the states; leaf texts are not counted.

    Returns:
        ``padded``: one row per step, padded to a fixed length (as first released); ``steps``: one row per step;
        ``prefixes``: one per distinct prefix; ``paths``: one per path; ``tree``: every node once.
    """
    found = dict.fromkeys(("padded", "steps", "prefixes", "paths", "tree"), 0)
    for tree in trees:
        lengths = {at: tree.prefix_length(at) for at, node in enumerate(tree.nodes) if node.facts is not None}
        found["padded"] += padded_length * sum(len(path.states) for path in tree.paths)
        found["steps"] += sum(lengths[state] for path in tree.paths for state in path.states)
        found["prefixes"] += sum(lengths.values())
        found["paths"] += sum(lengths[path.states[-1]] for path in tree.paths)
        found["tree"] += sum(len(tree.nodes[state].tokens) for state in lengths)
    return found


def class_counts(trees: Iterable[FlowTree], n_strategies: int) -> tuple[int, ...]:
    """Return how often each strategy is taken."""
    found = Counter(action for tree in trees for path in tree.paths for action in path.actions)
    return tuple(found[strategy] for strategy in range(n_strategies))


def class_weights(counts: Sequence[int], *, power: float) -> tuple[float, ...]:
    """Return weights proportional to count^−power whose mean over the data is 1; 0 for a class that never occurs."""
    raw = [count**-power if count else 0.0 for count in counts]
    mean = sum(weight * count for weight, count in zip(raw, counts, strict=True)) / sum(counts)
    return tuple(weight / mean for weight in raw)
