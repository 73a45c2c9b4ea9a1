"""Self-play under several critics at once."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import pytest

from esckit.errors import BackendError, ModelError, ParseError, UnscoredError
from esckit.ledger import Scope
from esckit.play.rollout import EpisodeCast, Played, play_episode
from esckit.protocols import Decision, SeekerTurn
from esckit.roles.verdicts import Preset, load_preset
from esckit.types import CriticReading, Generation, Scenario, Score, Turn

SCENARIO = Scenario(id="d1", situation="I lost my job.", emotion_type="fear")


@dataclass
class Supporter:
    told: list[str | None] = field(default_factory=list)
    fails_at: int = 0

    async def reply(self, turns: Sequence[Turn], scope: Scope, *, strategy: str | None = None) -> Generation:
        self.told.append(strategy)
        if len(self.told) == self.fails_at:
            raise ParseError("nothing", kind="blank")
        text = f"reply {scope.seed('supporter') % 1000}"
        return Generation(raw=text, reasoning=None, response=text, format_ok=False, parse_kind="untagged")


class Seeker:
    async def reply(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> SeekerTurn:
        return SeekerTurn(f"answer {scope.seed('seeker') % 1000} to {turns[-1].text}")


@dataclass
class Critic:
    """Gives values in quarter sums of ten answers (S of 4n = 40), turn by turn."""

    sums: Sequence[int | ModelError]
    heard: list[tuple[Turn, ...]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    async def score(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Score:
        self.heard.append(tuple(turns))
        self.seeds.append(scope.seed("critic.0"))
        said = self.sums[len(self.heard) - 1]
        if isinstance(said, ModelError):
            raise said
        value = Fraction(said, 40)
        reading = CriticReading(
            readout="sampled", critic="c/1", n_parsed=10, num=value.numerator, den=value.denominator, value=float(value)
        )
        return Score(values={"resolution": float(value)}, reward=float(value), reading=reading)


class Strategist:
    strategies = ("Question", "Others")

    async def decide(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Decision:
        return Decision("Question", (1.0, 0.0))


def play(max_turns: int = 8, supporter: Supporter | None = None, **critics: Critic) -> Played:
    cast = EpisodeCast(supporter or Supporter(), Seeker(), critics)
    return asyncio.run(play_episode(SCENARIO, cast=cast, max_turns=max_turns, run_seed=7))


def test_the_seeker_opens_and_every_turn_is_read_whole() -> None:
    critic = Critic([0, 30])
    played = play(one=critic)
    assert [turn.t for turn in played.turns] == [1, 2]
    assert [len(turns) for turns in critic.heard] == [3, 5]
    assert critic.heard[0][0] == Turn(speaker="seeker", text="I lost my job.")
    assert [turn.speaker for turn in critic.heard[1]] == ["seeker", "supporter"] * 2 + ["seeker"]


@pytest.mark.parametrize(("total", "n_turns"), [(20, 3), (21, 1)])
def test_exactly_one_half_is_no_success(total: int, n_turns: int) -> None:
    assert len(play(3, one=Critic([total, 0, 0])).turns) == n_turns


def test_play_goes_on_for_the_last_critic_without_satisfied_ones() -> None:
    quick, slow = Critic([30]), Critic([0, 0, 30])
    played = play(quick=quick, slow=slow)
    assert (len(quick.heard), len(slow.heard), len(played.turns)) == (1, 3, 3)
    assert [sorted(turn.readings) for turn in played.turns] == [["quick", "slow"], ["slow"], ["slow"]]


def test_a_second_critic_changes_nothing_for_the_first() -> None:
    alone, beside = Critic([0, 10, 30]), Critic([0, 10, 30])
    first = play(one=alone)
    second = play(one=beside, other=Critic([30]))
    assert alone.seeds == beside.seeds
    assert alone.heard == beside.heard
    assert [turn.supporter for turn in first.turns] == [turn.supporter for turn in second.turns]


def test_a_critic_that_fails_ends_its_own_reading_only() -> None:
    played = play(3, broken=Critic([0, UnscoredError("?")]), fine=Critic([0, 0, 30]))
    assert played.failure is None
    assert (played.critic_failures["broken"].turn, played.critic_failures["broken"].stage) == (2, "critic")
    assert [sorted(turn.readings) for turn in played.turns] == [["broken", "fine"], ["fine"], ["fine"]]


def test_a_failing_supporter_ends_play_and_keeps_the_dialogue() -> None:
    played = play(supporter=Supporter(fails_at=3), one=Critic([0, 0]))
    assert played.failure is not None
    assert (played.failure.stage, played.failure.turn, played.failure.kind) == ("supporter", 3, "blank")
    assert len(played.turns) == 2


def test_a_backend_that_is_down_for_all_critics_ends_play() -> None:
    played = play(one=Critic([BackendError("down")]), two=Critic([BackendError("down")]))
    assert len(played.turns) == 1
    assert {failure.kind for failure in played.critic_failures.values()} == {"backend"}


def test_a_strategist_names_the_strategy_of_every_turn() -> None:
    supporter = Supporter()
    cast = EpisodeCast(supporter, Seeker(), {"one": Critic([0, 0])}, Strategist())
    played = asyncio.run(play_episode(SCENARIO, cast=cast, max_turns=2, run_seed=7))
    assert supporter.told == ["Question", "Question"]
    assert [turn.strategy for turn in played.turns] == ["Question", "Question"]


# ---------------------------------------------------------------- PPDPP's own reading


@pytest.mark.parametrize(
    ("text", "strict", "compat"),
    [
        ("No, but the patient feels better.", "Better", "Better"),
        ("Yes, it has been solved.", "Solved", "Solved"),
        ("Not solved, but better", "ambiguous", "Better"),
        ("no", "unparsed", "unparsed"),
    ],
)
def test_ppdpp4_answers(text: str, strict: str, compat: str) -> None:
    preset = load_preset("ppdpp4")
    assert _level(preset, text) == strict
    assert _level(replace(preset, takes_first=True), text) == compat


def _level(preset: Preset, text: str) -> str:
    try:
        return preset.levels[preset.parse(text)]
    except ParseError as error:
        return error.kind
