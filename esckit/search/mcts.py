r"""Monte Carlo tree search over support strategies: one tree per seed dialogue (AFlow, arXiv 2602.08826).

One simulation draws strategies down the tree, expands one new node, rolls out, and backs the same undiscounted return
up along every edge of its path. Which strategy it draws at a node depends on that node's numbers only. With prior
:math:`\pi`, counts N(s,a), mean returns Q(s,a) and N(s) = Σ_a N(s,a)::

    u(s,a) = Q(s,a) + λ · π(a|s) · sqrt( N(s) / (1 + N(s,a)) )
    ρ(s)   = κ / (κ + ln(N(s) + 1))
    μ(a|s) = (1 − ρ(s)) · softmax_a( u(s,·) / τ ) + ρ(s) / |A|

A strategy is *sampled* from μ, never taken by argmax. At a node without visits it is sampled from π: μ is uniform there
and the prior would not act where it matters most. The paper's softmax has no temperature (τ = 1).

Several leaves may be expanded at once (a *wave*). Virtual visits keep them apart and are taken back before the true
returns are backed up in the order of selection, so a tree depends on its seed, the recipe, the models and the size of a
wave, but not on scheduling. A failed call ends its simulation: nothing is attached and nothing is backed up.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import exp, log, sqrt
from typing import Literal, NamedTuple

from esckit.ledger import uniform
from esckit.roles.asking import gather_all
from esckit.search.expansion import CallFailed, Expander, Expansion, Players, Rollout
from esckit.search.recipe import Mcts
from esckit.search.tree import ROOT, Node, Provenance, Task, Tree
from esckit.types import Failure, SearchTree


def edge_scores(
    prior: Sequence[float], visits: Sequence[int], values: Sequence[float], *, exploration: float
) -> list[float]:
    """Return u(s,·); the square root covers the whole fraction, and unvisited strategies keep Q = 0."""
    total = sum(visits)
    return [
        value + exploration * p * sqrt(total / (1 + count))
        for p, count, value in zip(prior, visits, values, strict=True)
    ]


def uniform_share(n_visits: int, kappa: float) -> float:
    """Return ρ(s) for a node with at least one visit; 0 if ``kappa`` is 0."""
    return kappa / (kappa + log(n_visits + 1))


def selection_distribution(
    prior: Sequence[float], visits: Sequence[int], values: Sequence[float], knobs: Mcts
) -> list[float]:
    """Return μ(·|s), or the prior itself at a node without visits.

    Args:
        prior: π(·|s) in taxonomy order, sum 1.
        visits: N(s,a) per strategy.
        values: Q(s,a) per strategy in [0, 1]; 0 where unvisited.
        knobs: λ, κ and τ.
    """
    total = sum(visits)
    if total == 0:
        return list(prior)
    scores = edge_scores(prior, visits, values, exploration=knobs.exploration)
    best = max(scores)
    weights = [exp((score - best) / knobs.selection_temperature) for score in scores]
    rho = uniform_share(total, knobs.uniform_kappa)
    scale, floor = (1.0 - rho) / sum(weights), rho / len(weights)
    return [scale * weight + floor for weight in weights]


def without(distribution: Sequence[float], blocked: Collection[int]) -> list[float]:
    """Return a distribution over the strategies that are not blocked, renormalised; at least one must be left."""
    kept = [0.0 if index in blocked else p for index, p in enumerate(distribution)]
    total = sum(kept)
    if total > 0.0:
        return [p / total for p in kept]
    # The rest can underflow at a tiny temperature without a uniform part.
    share = 1.0 / (len(kept) - len(set(blocked)))
    return [0.0 if index in blocked else share for index in range(len(kept))]


def draw(distribution: Sequence[float], uniform: float) -> int:
    """Return the index that a uniform number in [0, 1) falls on in the cumulative sum."""
    cumulative = 0.0
    last = 0
    for index, p in enumerate(distribution):
        if p > 0.0:
            cumulative += p
            last = index
            if uniform < cumulative:
                return index
    return last


class Grown(NamedTuple):
    """A finished tree, and its rollouts if they were asked for."""

    tree: SearchTree
    rollouts: tuple[Rollout, ...] = ()


class _Leaf(NamedTuple):
    """Where a descent ended: ``path`` holds (node, strategy) pairs; ``terminal`` if no call is needed."""

    path: list[tuple[Node, int]]
    terminal: Node | None


class _Search:
    """The state of one growing tree."""

    def __init__(self, task: Task, players: Players, knobs: Mcts, provenance: Provenance) -> None:
        self.knobs = knobs
        self.tree = Tree(task, provenance)
        self.rollouts: list[Rollout] = []
        self.expander = Expander(task.scenario, players, self.tree.ledger, provenance.taxonomy.names, knobs)

    async def run(self) -> Grown:
        """Grow the tree to its budget, or until too many simulations failed; it fails too if all of them did."""
        status = await self._status()
        mcts = self.knobs.model_dump(exclude={"trees_per_scenario"})
        mcts["max_failed_simulations"] = self.knobs.allowed_failures
        return Grown(self.tree.record(status, mcts), tuple(self.rollouts))

    async def _status(self) -> Literal["complete", "failed"]:
        root = self.tree.add(self.tree.task.opening)
        try:
            root.prior = await self.expander.prior(root.turns, ROOT, 0)
        except CallFailed as failed:
            self.tree.failures.append(failed.failure)
            return "failed"
        left = self.knobs.n_simulations
        while left > 0:
            left -= await self._wave(min(self.knobs.leaf_parallelism, left))
            if len(self.tree.failures) > self.knobs.allowed_failures:
                return "failed"
        # Without any return there is no tree to learn from, however many failures are allowed.
        return "complete" if root.visits else "failed"

    async def _wave(self, size: int) -> int:
        """Run up to ``size`` simulations at once; return how many."""
        leaves: list[_Leaf] = []
        while len(leaves) < size and (leaf := self._descend()) is not None:
            leaves.append(leaf)
            _hold(leaf, +1)
        results = await gather_all(*map(self._expand, leaves))
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
            scope = self.tree.ledger.at(node.id, node.n_draws)
            node.n_draws += 1
            strategy = draw(remaining, uniform(scope.seed("select")))
            if node.children[strategy] is not None or not node.in_flight[strategy]:
                return strategy
            blocked.add(strategy)
        return None

    def _distribution(self, node: Node) -> list[float]:
        """Return the selection distribution at a node, virtual visits included."""
        assert node.prior is not None
        visits = [child.visits if child else 0 for child in node.children]
        values = [child.value if child else 0.0 for child in node.children]
        if self.knobs.leaf_parallelism > 1:
            for strategy, virtual in enumerate(node.in_flight):
                if virtual:
                    total = visits[strategy] + virtual
                    returns = visits[strategy] * values[strategy] + virtual * self.knobs.virtual_value
                    visits[strategy], values[strategy] = total, returns / total
        return selection_distribution(node.prior, visits, values, self.knobs)

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
            self.tree.failures.append(result)
            return
        end = leaf.terminal if result is None else self._attach(*leaf.path[-1], result)
        assert end is not None
        assert end.first_return is not None
        self.tree.root.back_up(end.first_return)
        for node, strategy in leaf.path:
            child = node.children[strategy]
            assert child is not None
            child.back_up(end.first_return)

    def _attach(self, parent: Node, strategy: int, new: Expansion) -> Node:
        child = self.tree.add(new.exchange.turns, (parent, strategy), new.prior)
        child.reward, child.ratings = new.exchange.reward, new.exchange.ratings
        child.first_return, child.outcome = new.value, new.outcome
        if self.knobs.keep_rollouts:
            played = Rollout(tree=self.tree.task.tree_id, node=child.id, value=new.value, exchanges=new.rollout)
            self.rollouts.append(played)
        return child


def _hold(leaf: _Leaf, by: int) -> None:
    """Add or take back the virtual visits along a path."""
    for node, strategy in leaf.path:
        node.in_flight[strategy] += by


async def grow_tree(task: Task, players: Players, knobs: Mcts, provenance: Provenance) -> Grown:
    """Grow one tree.

    Failures of roles end up on the tree, never as an exception.

    Args:
        task: The seed.
        players: The roles.
        knobs: The settings of the search.
        provenance: What the record says about its origin.
    """
    return await _Search(task, players, knobs, provenance).run()
