"""Monte Carlo tree search over support strategies: one tree per seed dialogue (AFlow, arXiv 2602.08826).

One simulation draws strategies down the tree, expands one new node, rolls out, and backs the same undiscounted return
up along every edge of its path. Several leaves may be expanded at once (a *wave*); virtual visits keep them apart and
are taken back before the true returns are backed up in the order of selection, so a tree is a function of its seed, the
recipe, the models and the size of a wave, not of scheduling. A failed call ends its simulation: nothing is attached and
nothing is backed up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple

from esckit.ledger import Ledger, uniform
from esckit.protocols import StrategyPolicy
from esckit.roles.asking import gather_all
from esckit.roles.environment import CallFailed, Environment
from esckit.search.expansion import (
    Expander,
    Expansion,
    Rollout,
    draw,
    rollout_record,
    rubric_ratings,
    selection_distribution,
    without,
)
from esckit.search.tree import ROOT, Node, Tree, freeze
from esckit.strategies.taxonomy import Taxonomy
from esckit.types import Failure, Scenario, SearchTree, Turn


@dataclass(frozen=True, slots=True)
class Settings:
    """The knobs of the search; what they mean stands in :mod:`esckit.search.expansion` and in the recipe class.

    Attributes:
        n_simulations: Simulations per tree; those that end at a known terminal, and failed ones, count.
        max_depth: Depth at which a conversation ends.
        rollout_turns: Longest rollout.
        exploration: Weight λ of the prior term.
        uniform_kappa: Weight κ of the uniform part.
        selection_temperature: Temperature τ of the softmax over scores.
        prior_smoothing: Uniform part mixed into every prior.
        leaf_parallelism: Leaves of one wave; 1 is exact sequential search.
        virtual_value: Return of a virtual visit.
        max_failed_simulations: More failures than this fail the tree.
        keep_rollouts: Whether rollouts are handed back beside the tree.
    """

    n_simulations: int
    max_depth: int
    rollout_turns: int
    exploration: float
    uniform_kappa: float
    selection_temperature: float
    prior_smoothing: float
    leaf_parallelism: int
    virtual_value: float
    max_failed_simulations: int
    keep_rollouts: bool


@dataclass(frozen=True, slots=True)
class Task:
    """One tree to grow.

    Attributes:
        tree_id: ``{scenario id}#{k}``.
        opening: The root's turns; ends with a seeker turn.
        split: The split that the seed dialogue belongs to.
    """

    tree_id: str
    scenario: Scenario
    opening: tuple[Turn, ...]
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Players:
    """Who plays: seeker, supporter and critic in their environment, and the strategist."""

    environment: Environment
    strategist: StrategyPolicy


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


class Grown(NamedTuple):
    """A finished tree, and its rollouts if they were asked for."""

    tree: SearchTree
    rollouts: tuple[Rollout, ...] = ()


class _Leaf(NamedTuple):
    """Where a descent ended: ``path`` holds (node, strategy) pairs; ``terminal`` if no call is needed."""

    path: list[tuple[Node, int]]
    terminal: Node | None


async def grow_tree(task: Task, players: Players, settings: Settings, provenance: Provenance) -> Grown:
    """Grow one tree.

    Failures of roles end up on the tree, never as an exception.

    Args:
        task: The seed.
        players: The roles.
        settings: The knobs.
        provenance: What the record says about its origin.
    """
    return await _Search(task, players, settings, provenance).run()


def finished(
    task: Task,
    provenance: Provenance,
    tree: Tree,
    *,
    mcts: Mapping[str, float | int | bool],
    status: Literal["complete", "failed", "linear"],
    failures: tuple[Failure, ...],
    ledger: Ledger,
) -> SearchTree:
    """Return the record of a tree."""
    return SearchTree(
        id=task.tree_id,
        scenario=task.scenario,
        split=task.split,
        run_seed=provenance.run_seed,
        taxonomy=provenance.taxonomy.name,
        strategies=tree.strategies,
        round=provenance.round,
        prior_source=provenance.prior_source,
        readout=provenance.readout,
        prompts=dict(provenance.prompts),
        mcts=dict(mcts),
        status=status,
        nodes=freeze(tree),
        failures=failures,
        usage=dict(sorted(ledger.usage.items())),
        reasoning=ledger.thoughts(),
    )


class _Search:
    """The state of one growing tree."""

    def __init__(self, task: Task, players: Players, settings: Settings, provenance: Provenance) -> None:
        self.task = task
        self.settings = settings
        self.provenance = provenance
        self.ledger = Ledger(provenance.run_seed, task.tree_id)
        self.tree = Tree(provenance.taxonomy.names, provenance.taxonomy.abbrs)
        self.failures: list[Failure] = []
        self.rollouts: list[Rollout] = []
        self.expander = Expander(
            scenario=task.scenario,
            environment=players.environment,
            strategist=players.strategist,
            ledger=self.ledger,
            strategies=self.tree.strategies,
            max_depth=settings.max_depth,
            rollout_turns=settings.rollout_turns,
            prior_smoothing=settings.prior_smoothing,
        )

    async def run(self) -> Grown:
        """Grow the tree to its budget, or until too many simulations failed; it fails too if all of them did."""
        root = self.tree.plant(self.task.opening)
        try:
            root.prior = await self.expander.prior(root.turns, ROOT, 0)
        except CallFailed as failed:
            self.failures.append(failed.failure)
            return self._grown("failed")
        left = self.settings.n_simulations
        while left > 0:
            left -= await self._wave(min(self.settings.leaf_parallelism, left))
            if len(self.failures) > self.settings.max_failed_simulations:
                return self._grown("failed")
        # Without any return there is no tree to learn from, however many failures are allowed.
        return self._grown("complete" if root.visits else "failed")

    def _grown(self, status: Literal["complete", "failed"]) -> Grown:
        tree = finished(
            self.task,
            self.provenance,
            self.tree,
            mcts=asdict(self.settings),
            status=status,
            failures=tuple(self.failures),
            ledger=self.ledger,
        )
        return Grown(tree, tuple(self.rollouts))

    async def _wave(self, size: int) -> int:
        """Run up to ``size`` simulations at once; return how many."""
        leaves: list[_Leaf] = []
        while len(leaves) < size:
            leaf = self._descend()
            if leaf is None:
                break
            leaves.append(leaf)
            _hold(leaf, +1)
        results = [await self._expand(leaves[0])] if len(leaves) == 1 else await gather_all(*map(self._expand, leaves))
        for leaf in leaves:
            _hold(leaf, -1)
        for leaf, result in zip(leaves, results, strict=True):
            self._take(leaf, result)
        return len(leaves)

    def _descend(self) -> _Leaf | None:
        """Draw strategies from the root to a terminal or a missing child; None if every way on is being expanded."""
        node = self.tree.root
        path: list[tuple[Node, int]] = []
        while node.prior is not None:
            strategy = self._draw(node)
            if strategy is None:
                return None
            path.append((node, strategy))
            child = node.children[strategy]
            if child is None:
                return _Leaf(path, None)
            node = child
        return _Leaf(path, node)

    def _draw(self, node: Node) -> int | None:
        """Draw a strategy at a node, again without it if its edge is being expanded; None if all are."""
        distribution = self._distribution(node)
        blocked: set[int] = set()
        while len(blocked) < len(distribution):
            remaining = without(distribution, blocked) if blocked else distribution
            scope = self.ledger.at(node.id, node.n_draws)
            node.n_draws += 1
            strategy = draw(remaining, uniform(scope.seed("select")))
            if node.children[strategy] is not None or not node.in_flight[strategy]:
                return strategy
            blocked.add(strategy)
        return None

    def _distribution(self, node: Node) -> list[float]:
        """Return the selection distribution at a node, virtual visits included."""
        assert node.prior is not None
        visits, values = node.edge_visits(), node.edge_values()
        if self.settings.leaf_parallelism > 1:
            for strategy, virtual in enumerate(node.in_flight):
                if virtual:
                    total = visits[strategy] + virtual
                    returns = visits[strategy] * values[strategy] + virtual * self.settings.virtual_value
                    visits[strategy], values[strategy] = total, returns / total
        return selection_distribution(
            node.prior,
            visits,
            values,
            exploration=self.settings.exploration,
            uniform_kappa=self.settings.uniform_kappa,
            temperature=self.settings.selection_temperature,
        )

    async def _expand(self, leaf: _Leaf) -> Expansion | Failure | None:
        """Expand a leaf; None if it is a terminal, whose return is known."""
        if leaf.terminal is not None:
            return None
        parent, strategy = leaf.path[-1]
        try:
            return await self.expander.expand(
                parent.dialogue(), strategy, self.tree.child_id(parent, strategy), parent.depth + 1
            )
        except CallFailed as failed:
            return failed.failure

    def _take(self, leaf: _Leaf, result: Expansion | Failure | None) -> None:
        """Attach what an expansion brought and back its return up; a failure leaves no trace in the tree."""
        if isinstance(result, Failure):
            self.failures.append(result)
            return
        if result is None:
            assert leaf.terminal is not None
            assert leaf.terminal.first_return is not None
            value = leaf.terminal.first_return
        else:
            self._attach(leaf, result)
            value = result.value
        self.tree.root.back_up(value)
        for node, strategy in leaf.path:
            child = node.children[strategy]
            assert child is not None
            child.back_up(value)

    def _attach(self, leaf: _Leaf, new: Expansion) -> None:
        parent, strategy = leaf.path[-1]
        child = self.tree.attach(parent, strategy, new.exchange.turns, new.prior)
        child.reward = new.exchange.score.reward
        child.ratings = rubric_ratings(new.exchange.score)
        child.first_return = new.value
        child.outcome = new.outcome
        if self.settings.keep_rollouts:
            self.rollouts.append(rollout_record(self.task.tree_id, child.id, new))


def _hold(leaf: _Leaf, by: int) -> None:
    """Add or take back the virtual visits along a path."""
    for node, strategy in leaf.path:
        node.in_flight[strategy] += by
