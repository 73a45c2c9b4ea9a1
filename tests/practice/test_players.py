"""A state belongs to its transcript, and the four baselines lie where the bands want them."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import pytest

from esckit.config import sections
from esckit.errors import ConfigError, UnscoredError
from esckit.ledger import Ledger
from esckit.practice.language import function_of
from esckit.practice.players import (
    POLICIES,
    BaselineStrategist,
    Game,
    GrammarSupporter,
    PolicyName,
    WorldSeeker,
    rule_function,
    turn_ratings,
    wellbeing,
)
from esckit.practice.world import State, load_profile, solution, start
from esckit.roles.practice import WorldResolutionCritic, WorldRubricCritic
from esckit.roles.verdicts import load_preset
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import Outcome, Scenario, Turn

AFLOW = load_taxonomy("aflow")


def scenario(number: int) -> Scenario:
    return Scenario(id=f"s{number}", situation="The pile of bills has been on my mind.", problem_type="money troubles")


async def played(game: Game, policy: PolicyName, number: int) -> tuple[Outcome | None, list[Turn]]:
    strategist = BaselineStrategist(game, policy, AFLOW.names, solution(game.profile.name))
    seeker, ledger, case = WorldSeeker(game), Ledger(7, f"s{number}"), scenario(number)
    turns = [Turn(speaker="seeker", text=seeker.answer(case, [], 0).text)]
    outcome = None
    for t in range(8):
        scope = ledger.at(t)
        strategy = (await strategist.decide(case, turns, scope)).strategy
        reply = await GrammarSupporter(game).reply(turns, scope, strategy=strategy)
        turns.append(Turn(speaker="supporter", text=reply.response, strategy=strategy))
        answer = await seeker.reply(case, turns, scope)
        turns.append(Turn(speaker="seeker", text=answer.text))
        outcome = answer.outcome
        if outcome is not None:
            break
    return outcome, turns


@pytest.mark.parametrize(
    ("policy", "low", "high"),
    [
        ("random", 0.05, 0.20),
        ("novice", 0.30, 0.50),
        ("fixed", 0.45, 0.60),
        ("rule", 0.70, 0.87),
        ("optimum", 0.82, 0.94),
    ],
)
def test_success_of_the_baselines(policy: PolicyName, low: float, high: float) -> None:
    game = Game(load_profile("default"))
    outcomes = [asyncio.run(played(game, policy, number))[0] for number in range(250)]
    assert low <= outcomes.count(Outcome.RESOLVED) / len(outcomes) <= high


def test_the_state_belongs_to_the_transcript() -> None:
    outcome, turns = asyncio.run(played(Game(load_profile("guarded")), "rule", 3))
    fresh = Game(load_profile("guarded"))
    moves = fresh.moves(scenario(3), turns)
    assert moves == Game(load_profile("guarded")).moves(scenario(3), turns)
    assert [move.after for move in moves[:-1]] == [move.before for move in moves[1:]]
    assert fresh.moves(scenario(3), turns[:4]) == moves[:2]
    assert (moves[-1].after.intensity == 0) == (outcome is Outcome.RESOLVED)


def test_another_profile_draws_otherwise() -> None:
    turns = asyncio.run(played(Game(load_profile("default")), "rule", 5))[1]
    states = {name: Game(load_profile(name)).state(scenario(5), turns) for name in ("default", "guarded", "open")}
    assert len(set(states.values())) > 1


def test_a_claimed_strategy_gains_nothing() -> None:
    game = Game(load_profile("default"))
    opening = Turn(speaker="seeker", text="I need to get this off my chest, the pile of bills.")
    advice = Turn(
        speaker="supporter", text="You could write down one small thing and begin with it.", strategy="Affirmation"
    )
    move = game.moves(scenario(1), [opening, advice])[0]
    assert (move.meant, move.done, move.function, move.fit) == ("comfort", "act", "other", "neutral")


def test_a_supporter_slips_as_often_as_it_is_told() -> None:
    game = Game(load_profile("default"))
    opening = Turn(speaker="seeker", text="I need to get this off my chest, the pile of bills.")

    def failed(slips: float) -> int:
        supporter, turns = GrammarSupporter(game, slips), []
        for number in range(200):
            reply = supporter.reply([opening], Ledger(1, f"s{number}").at(0), strategy="Reflective Statements")
            turns.append(Turn(speaker="supporter", text=asyncio.run(reply).response))
        return sum(function_of(turn.text, [opening]) == "other" for turn in turns)

    assert failed(0.0) == 0
    assert 40 <= failed(0.3) <= 80
    assert failed(1.0) == 200


def test_the_rule_reads_the_last_need() -> None:
    def said(*texts: str) -> list[Turn]:
        return [Turn(speaker="supporter" if index % 2 else "seeker", text=text) for index, text in enumerate(texts)]

    heard, act, hidden = "I keep it all inside.", "I ask myself what to do next.", "It is the rent again."
    assert rule_function(said(heard)) == "comfort"
    assert rule_function(said(heard, "x", hidden)) == "reflect"
    assert rule_function(said(heard, "x", act)) == "act"
    assert rule_function(said(heard, "x", act, "x", act, "x", hidden)) == "comfort"


def test_no_function_for_a_strategist_or_supporter() -> None:
    game = Game(load_profile("default"))
    with pytest.raises(ConfigError, match="no strategy that is meant to"):
        BaselineStrategist(game, "rule", ("Affirmation",), solution("default"))
    with pytest.raises(ConfigError, match="without a strategy"):
        asyncio.run(GrammarSupporter(game).reply([], Ledger(1, "s").at(0)))


@pytest.mark.parametrize(
    ("state", "value"),
    [
        (State("heard", 1, 4), 0.0),
        (State("act", 3, 0), 1.0),
        (State("heard", 0, 5, has_left=True), -1.0),
        (State("understood", 2, 2), 0.25),
        (State("act", 3, 1), 0.4),
        (State("heard", 0, 5), -0.1),
    ],
)
def test_wellbeing(state: State, value: float) -> None:
    assert wellbeing(start(4), state) == pytest.approx(value)


@pytest.mark.parametrize("preset", ["rlff7", "ppdpp4"])
@pytest.mark.parametrize("readout", ["expected", "sampled"])
def test_only_success_passes_one_half(preset: str, readout: str) -> None:
    game = Game(load_profile("default"))
    settings = sections.ResolutionCritic(preset=preset, readout=readout)  # type: ignore[arg-type]
    critic = WorldResolutionCritic(game, load_preset(preset), settings)
    for number in range(25):
        outcome, turns = asyncio.run(played(game, "rule", number))
        reading = asyncio.run(critic.score(scenario(number), turns, Ledger(1, "s").at(0))).reading
        assert (reading.fraction > Fraction(1, 2)) == (outcome is Outcome.RESOLVED)  # type: ignore[union-attr]
        if readout == "expected":
            truth = wellbeing(game.opening(scenario(number)), game.state(scenario(number), turns))
            assert reading.value == pytest.approx(truth, abs=1e-6)  # type: ignore[union-attr]


def test_ratings_follow_the_fit() -> None:
    game, critic_of = Game(load_profile("default")), sections.RubricCritic(readout="expected")
    turns = asyncio.run(played(game, "optimum", 2))[1]
    critic = WorldRubricCritic(game, critic_of)
    best = asyncio.run(critic.score(scenario(2), turns[:2], Ledger(1, "s").at(0)))
    assert best.reward == pytest.approx(1.0)
    pushed = [turns[0], Turn(speaker="supporter", text="You could write down one small thing and begin with it.")]
    assert asyncio.run(critic.score(scenario(2), pushed, Ledger(1, "s").at(0))).reward < 0.5
    assert turn_ratings(game.moves(scenario(2), pushed)[0])["strategy"] == 1
    with pytest.raises(UnscoredError):
        asyncio.run(critic.score(scenario(2), turns[:1], Ledger(1, "s").at(0)))


def test_the_policies_are_named() -> None:
    assert POLICIES == ("random", "fixed", "rule", "optimum")
