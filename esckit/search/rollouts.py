"""The record of one rollout, kept only where the recipe asks for it (``mcts.keep_rollouts``)."""

from __future__ import annotations

from typing import ClassVar

from esckit.search.expansion import Expansion
from esckit.types import Outcome, Record, RubricReading, Score, Turn


class RolloutExchange(Record):
    """One exchange of a rollout, with the reward of its supporter turn."""

    turns: tuple[Turn, ...]
    reward: float
    ratings: dict[str, float] | None
    outcome: Outcome | None


class Rollout(Record):
    """What was played beyond a new node.

    Attributes:
        tree: Id of the tree.
        node: Id of the node that the rollout started from.
        value: Return of the simulation.
    """

    SCHEMA: ClassVar[str] = "esckit.rollout/1"

    tree: str
    node: str
    value: float
    exchanges: tuple[RolloutExchange, ...]


def rollout_record(tree_id: str, node_id: str, expansion: Expansion) -> Rollout:
    """Return the rollout of an expansion as a record."""
    return Rollout(
        tree=tree_id,
        node=node_id,
        value=expansion.value,
        exchanges=tuple(
            RolloutExchange(
                turns=played.turns,
                reward=played.score.reward,
                ratings=rubric_ratings(played.score),
                outcome=played.outcome,
            )
            for played in expansion.rollout
        ),
    )


def rubric_ratings(score: Score) -> dict[str, float] | None:
    """Return the ratings behind a score, None where the critic gives none (a reward model)."""
    return score.reading.ratings if isinstance(score.reading, RubricReading) else None
