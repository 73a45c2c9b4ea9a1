"""One expansion: what it returns, when it stops, and that it is all or nothing."""

import asyncio
from collections import Counter

import pytest

from esckit.ledger import Ledger
from esckit.search.expansion import CallFailed, Expander, Expansion, simulation_return
from esckit.types import Outcome
from tests.search.fakes import AFLOW, World, flat_prior, settings, task


def expand(world: World, *, depth: int = 1, max_depth: int = 10, rollout_turns: int = 3) -> Expansion:
    players = world.players
    knobs = settings(max_depth=max_depth, rollout_turns=rollout_turns)
    expander = Expander(task().scenario, players, Ledger(7, "s-0#0"), AFLOW.names, knobs)
    return asyncio.run(expander.expand(task().opening, 2, "r.EV", depth))


def test_the_return_is_the_mean_of_the_rewards() -> None:
    assert simulation_return([0.80, 0.72, 0.88, 0.64], disengaged=False) == pytest.approx(0.76)
    assert simulation_return([0.80, 0.72, 0.88, 0.64], disengaged=True) == 0.0
    rewards = (0.80, 0.72, 0.88, 0.64)
    found = expand(World(reward=lambda strategies, seed: rewards[len(strategies) - 1]))
    assert found.value == pytest.approx(0.76)
    assert len(found.rollout) == 3


def test_calls_and_places_of_one_simulation() -> None:
    world = World()
    expand(world)
    assert Counter(role for role, _, _ in world.calls) == {"supporter": 4, "seeker": 4, "critic": 4, "strategist": 3}
    assert Counter(place for _, place, _ in world.calls) == {
        ("r.EV", 0): 4,
        ("r.EV", 1): 4,
        ("r.EV", 2): 4,
        ("r.EV", 3): 3,
    }


def test_the_rollout_follows_the_favourite_strategy() -> None:
    def prior(strategies, seed):
        return tuple(0.93 if index == len(strategies) else 0.01 for index in range(8))

    found = expand(World(prior=prior))
    assert [played.turns[0].strategy for played in found.rollout] == [AFLOW.names[index] for index in (1, 2, 3)]


def test_tied_favourites_are_drawn_not_listed() -> None:
    found = [expand(World(prior=flat_prior)) for _ in range(2)]
    strategies = [[played.turns[0].strategy for played in one.rollout] for one in found]
    assert strategies[0] == strategies[1]
    assert set(strategies[0]) != {AFLOW.names[0]}


@pytest.mark.parametrize(("depth", "turns"), [(7, 3), (8, 2), (9, 1)])
def test_a_rollout_ends_at_the_greatest_depth(depth: int, turns: int) -> None:
    assert len(expand(World(), depth=depth).rollout) == turns


def test_without_rollout_turns_the_return_is_the_own_reward() -> None:
    world = World(reward=lambda strategies, seed: 0.7)
    found = expand(world, rollout_turns=0)
    assert (found.value, found.rollout, len(world.calls)) == (0.7, (), 4)
    assert found.prior is not None


def test_the_last_depth_is_terminal_and_scored() -> None:
    found = expand(World(reward=lambda strategies, seed: 0.7), depth=10)
    assert (found.outcome, found.prior, found.value) == (Outcome.MAX_TURNS, None, 0.7)


def test_disengaging_at_the_last_depth_zeroes_the_return() -> None:
    world = World(outcome=lambda strategies, seed: Outcome.DISENGAGED)
    for depth in (1, 10):
        found = expand(world, depth=depth)
        assert (found.outcome, found.value, found.prior) == (Outcome.DISENGAGED, 0.0, None)
        assert found.exchange.reward >= 0.5
        assert [turn.speaker for turn in found.exchange.turns] == ["supporter"]


def test_disengaging_in_a_rollouts_last_turn_zeroes_the_return() -> None:
    for last in (2, 3, 4):
        world = World(outcome=lambda s, seed, last=last: Outcome.DISENGAGED if len(s) == last else None)
        found = expand(world)
        assert (found.outcome, found.value, len(found.rollout)) == (None, 0.0, last - 1)


def test_relief_ends_a_rollout_with_its_mean() -> None:
    world = World(
        reward=lambda strategies, seed: 0.6 if len(strategies) == 1 else 0.8,
        outcome=lambda strategies, seed: Outcome.RESOLVED if len(strategies) == 2 else None,
    )
    found = expand(world)
    assert (len(found.rollout), found.value) == (1, pytest.approx(0.7))


@pytest.mark.parametrize("role", ["supporter", "seeker", "critic", "strategist"])
@pytest.mark.parametrize("n_strategies", [1, 3])
def test_any_failure_fails_the_whole_expansion(role: str, n_strategies: int) -> None:
    heard = n_strategies - 1 if role == "supporter" else n_strategies
    world = World(nonsense=lambda who, strategies: who == role and len(strategies) == heard)
    with pytest.raises(CallFailed) as error:
        expand(world)
    failure = error.value.failure
    assert (failure.stage, failure.place, failure.turn) == (role, "r.EV", n_strategies - 1)
