"""Corpus dialogues as trees without branches."""

import asyncio
from dataclasses import replace

import pytest

from esckit.errors import DataError
from esckit.search.linear import score_linear
from esckit.types import SearchTree, Turn
from tests.search.fakes import World, provenance, settings, task

REWARDS = (0.2, 0.4, 0.6, 0.8, 1.0)


def rest(*strategies: str | None) -> list[Turn]:
    turns: list[Turn] = []
    for number, strategy in enumerate(strategies):
        turns.append(Turn(speaker="supporter", text=f"say {number}", strategy=strategy))
        turns.append(Turn(speaker="seeker", text=f"hear {number}"))
    return turns


class Numbered(World):
    """Rewards by the number of the supporter turn in the text."""

    async def hear(self, role, turns, scope):
        strategies, seed = await super().hear(role, turns, scope)
        return strategies, int(turns[-1].text.split()[-1]) if role == "critic" else seed


def linear(turns: list[Turn], *, max_depth: int = 10, horizon: int = 2, **world: object) -> SearchTree:
    played = Numbered(reward=lambda strategies, number: REWARDS[number], **world)
    seed = replace(task(), rest=tuple(turns))
    players, knobs = played.players, settings(max_depth=max_depth, rollout_turns=horizon)
    return asyncio.run(
        score_linear(
            seed,
            critic=players.critic,
            strategist=players.strategist,
            knobs=knobs,
            provenance=provenance(),
        )
    )


def test_values_are_means_of_the_turns_ahead() -> None:
    tree = linear(rest("Clarification", "Affirmation", "Affirmation", "Suggest Options"))
    assert (tree.status, [node.id for node in tree.nodes]) == (
        "linear",
        ["r", "r.Cla", "r.Cla.Aff", "r.Cla.Aff.Aff", "r.Cla.Aff.Aff.SO"],
    )
    assert [node.value for node in tree.nodes] == pytest.approx([0.5, 0.4, 0.6, 0.7, 0.8])
    assert [node.reward for node in tree.nodes] == [None, 0.2, 0.4, 0.6, 0.8]
    assert [node.prior is None for node in tree.nodes] == [False, False, False, False, True]


def test_unlabelled_turns_are_text_and_scored_but_no_decisions() -> None:
    tree = linear(rest(None, "Clarification", None, "Affirmation"), horizon=1)
    assert [len(node.turns) for node in tree.nodes] == [3, 4, 2]
    assert [node.value for node in tree.nodes] == pytest.approx([0.6, 0.5, 0.8])


def test_depth_cuts_decisions_while_last_values_look_ahead() -> None:
    tree = linear(rest(*["Affirmation"] * 5), max_depth=2, horizon=2)
    assert [len(node.turns) for node in tree.nodes] == [1, 2, 2]
    assert [node.value for node in tree.nodes] == pytest.approx([0.3, 0.4, 0.6])
    assert tree.usage["critic"].calls == 4


def test_a_failure_fails_the_tree_and_leaves_no_value() -> None:
    tree = linear(rest("Clarification", "Affirmation"), nonsense=lambda role, strategies: role == "critic")
    assert (tree.status, len(tree.failures)) == ("failed", 2)
    assert {(node.visits, node.value, node.reward) for node in tree.nodes} == {(0, None, None)}


def test_a_strategy_of_another_taxonomy_is_refused() -> None:
    with pytest.raises(DataError, match="Question"):
        linear(rest("Question"))
