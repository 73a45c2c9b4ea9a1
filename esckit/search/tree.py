"""A search tree in memory, and its record.

In memory a node knows its parent and its children, so that descending and backing up are cheap; on disk the edge into a
node lives on the node and there is no edge table (:class:`esckit.types.TreeNode`). Nothing here calls a model: trees
are grown in :mod:`esckit.search.mcts`, or laid along a dialogue in :mod:`esckit.search.linear`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from esckit.ledger import Ledger
from esckit.strategies.taxonomy import Taxonomy
from esckit.types import Failure, Outcome, Scenario, SearchTree, TreeNode, Turn

ROOT = "r"


@dataclass(frozen=True, slots=True)
class Task:
    """One tree to grow.

    Attributes:
        tree_id: ``{scenario id}#{k}``.
        opening: The root's turns; ends with a seeker turn.
        split: The split that the seed dialogue belongs to.
        rest: What followed the opening in the corpus, runs of one speaker merged; starts with a supporter turn.
        memory: The turns of the whole seed dialogue, which only the seeker knows.
    """

    tree_id: str
    scenario: Scenario
    opening: tuple[Turn, ...]
    split: str | None = None
    rest: tuple[Turn, ...] = ()
    memory: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class Provenance:
    """What every tree of a run says about where it came from.

    Attributes:
        run_seed: Seed of the run.
        taxonomy: The strategies, and the abbreviations that node ids are made of.
        round: 0 for the first search; r if the strategist was trained on round r - 1.
        prior_source: Digest of the prompt or checkpoint behind the priors.
        readout: How the critic is read.
        prompts: Role to prompt digest.
    """

    run_seed: int
    taxonomy: Taxonomy
    round: int
    prior_source: str
    readout: str
    prompts: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Node:
    """A dialogue prefix: its own turns, the answers of strategist and critic, and the returns backed up through it.

    Attributes:
        id: Path from the root in abbreviations, ``r.EV.Cla``.
        strategy: Index of the strategy on the edge into the node; None at the root.
        turns: The node's own turns only.
        prior: Smoothed probabilities in taxonomy order; None if terminal.
        children: One slot per strategy in taxonomy order.
        in_flight: Virtual visits per strategy while leaves of a wave are being expanded.
        visits: Visits of the edge into the node; at the root, simulations backed up.
        value: Mean return of those visits; 0 without any, which is no value.
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

    def dialogue(self) -> tuple[Turn, ...]:
        """Return the whole prefix, oldest turn first."""
        return (*(self.parent.dialogue() if self.parent else ()), *self.turns)


@dataclass(slots=True)
class Tree:
    """A root and its descendants, and what the calls of models made of them.

    Attributes:
        task: What is grown.
        provenance: Where it comes from; its taxonomy gives the order of all per-strategy lists.
        nodes: In creation order; the first is the root.
        failures: Calls that gave nothing usable.
        ledger: What the calls used, and what the models thought.
    """

    task: Task
    provenance: Provenance
    nodes: list[Node] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.provenance.run_seed, self.task.tree_id)

    @property
    def root(self) -> Node:
        """The node of the opening."""
        return self.nodes[0]

    def child_id(self, parent: Node, strategy: int) -> str:
        """Return the id that a parent's child has or would have."""
        return f"{parent.id}.{self.provenance.taxonomy.abbrs[strategy]}"

    def add(
        self,
        turns: tuple[Turn, ...],
        edge: tuple[Node, int] | None = None,
        prior: tuple[float, ...] | None = None,
    ) -> Node:
        """Make a node: the root, or the child at an edge, which is a parent and a strategy."""
        parent, strategy = edge or (None, None)
        name = self.child_id(*edge) if edge else ROOT
        width, depth = len(self.provenance.taxonomy.names), parent.depth + 1 if parent else 0
        node = Node(name, parent, depth, strategy, turns, prior, [None] * width, [0] * width)
        self.nodes.append(node)
        if edge:
            edge[0].children[edge[1]] = node
        return node

    def record(self, status: Literal["complete", "failed", "linear"], mcts: Mapping[str, Any]) -> SearchTree:
        """Return the record of the finished tree.

        Args:
            status: How it ended.
            mcts: The settings that it was grown with.
        """
        names = self.provenance.taxonomy.names
        nodes = tuple(
            TreeNode(
                id=node.id,
                parent=None if node.parent is None else node.parent.id,
                depth=node.depth,
                strategy=None if node.strategy is None else names[node.strategy],
                turns=node.turns,
                prior=node.prior,
                visits=node.visits,
                value=node.value if node.visits else None,
                reward=node.reward,
                ratings=node.ratings,
                first_return=node.first_return,
                outcome=node.outcome,
            )
            for node in self.nodes
        )
        return SearchTree(
            id=self.task.tree_id,
            scenario=self.task.scenario,
            split=self.task.split,
            run_seed=self.provenance.run_seed,
            taxonomy=self.provenance.taxonomy.name,
            strategies=names,
            round=self.provenance.round,
            prior_source=self.provenance.prior_source,
            readout=self.provenance.readout,
            prompts=dict(self.provenance.prompts),
            mcts=dict(mcts),
            status=status,
            nodes=nodes,
            failures=tuple(self.failures),
            usage=dict(sorted(self.ledger.usage.items())),
            reasoning=self.ledger.thoughts(),
        )
