"""Search trees, flat as on disk: a node holds its parent's id and its own turns."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field

from esckit.errors import DataError
from esckit.types.chat import Reasoned, Usage
from esckit.types.conversation import Scenario, Turn
from esckit.types.record import Record
from esckit.types.simulation import Failure, Outcome


class TreeNode(Record):
    """A node of a search tree; the edge into it lives on it.

    Attributes:
        id: Path from the root: ``r``, then ``r.EV``, ``r.EV.Cla`` …
        strategy: Name of the strategy on the edge into the node; None at the root.
        turns: The node's own turns only.
        prior: Smoothed strategist probabilities at this node in taxonomy order; None if terminal.
        visits: Visits of the edge into the node; at the root, simulations backed up.
        value: Mean return of those visits, in [0, 1]; None without any, as at the root where every simulation failed.
        reward: Reward of the node's own supporter turn; None at the root.
        first_return: Return of the simulation that created the node; None at the root.
    """

    id: str
    parent: str | None
    depth: int
    strategy: str | None
    turns: tuple[Turn, ...]
    prior: tuple[float, ...] | None
    visits: int
    value: float | None
    reward: float | None = None
    ratings: dict[str, float] | None = None
    first_return: float | None = None
    outcome: Outcome | None = None

    @property
    def mean_return(self) -> float:
        """The value of a node that was visited.

        Raises:
            DataError: If it was not.
        """
        if self.value is None:
            raise DataError(f"node {self.id} without a value", expected="a node that was visited")
        return self.value


class SearchTree(Reasoned):
    """One search tree with everything needed to train from it.

    Attributes:
        id: ``{scenario id}#{k}``.
        prior_source: Digest of the prompt or the checkpoint that gave the priors.
        readout: How the critic was read; trees of different readouts do not mix.
        status: ``complete``, ``failed`` (not used for training) or ``linear`` (a corpus dialogue as a tree).
        nodes: In creation order; the first is the root.
    """

    SCHEMA: ClassVar[str] = "esckit.tree/1"

    id: str
    scenario: Scenario
    split: str | None
    run_seed: int
    taxonomy: str
    strategies: tuple[str, ...]
    round: int
    prior_source: str
    readout: str
    prompts: dict[str, str]
    mcts: dict[str, float | int | bool]
    status: Literal["complete", "failed", "linear"]
    nodes: tuple[TreeNode, ...]
    failures: tuple[Failure, ...] = ()
    usage: dict[str, Usage] = Field(default_factory=dict)

    def by_id(self) -> dict[str, TreeNode]:
        """Return the nodes keyed by id."""
        return {node.id: node for node in self.nodes}

    def replaced(self, **changes: object) -> Self:
        """Return a copy with some fields replaced."""
        return self.model_copy(update=changes)
