"""Rewards that are played while training: their scale, their seeds, and what they must not see."""

import asyncio
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from anyio.from_thread import start_blocking_portal

from esckit.config import sections
from esckit.play.rollout import Cast, Rules
from esckit.prompts.prompt import load_prompt
from esckit.rl.rewards import Completion, OnlineMeasure, PairedRewards, scaled
from esckit.roles.asking import Voice, read_output
from esckit.roles.critics import ResolutionCritic
from esckit.roles.players import PromptedSeeker, PromptedSupporter
from esckit.roles.verdicts import load_preset
from tests.fakes import FakeModel
from tests.rl.rl_fakes import WELL_FORMED, contexts, said
from tests.rl.rl_fakes import columns as columns_of

RULES = Rules(horizon=2)


@dataclass
class Players:
    """A cast of fakes that remember what they were shown."""

    seeker: FakeModel = field(default_factory=lambda: FakeModel(answer=lambda m, s: "I am a bit better."))
    supporter: FakeModel = field(
        default_factory=lambda: FakeModel(answer=lambda m, s: "<think>plan</think> <response>Go on.</response>")
    )
    critic: FakeModel = field(default_factory=lambda: FakeModel(answer=lambda m, s: "Slightly better"))

    def cast(self) -> Cast:
        return Cast(
            PromptedSupporter(Voice(self.supporter), load_prompt("supporter_rlff")),
            PromptedSeeker(Voice(self.seeker), load_prompt("seeker")),
            ResolutionCritic(
                Voice(self.critic, max_attempts=1),
                load_prompt("critic_resolution"),
                load_preset("rlff7"),
                sections.ResolutionCritic(samples=2),
            ),
        )


def measured(players, outputs=(WELL_FORMED,), value="scaled", rules=RULES, step=3):
    by_id = {context.id: context for context in contexts(1)}
    (context,) = by_id.values()
    completions = [
        Completion(context.id, context.turns, read_output(text), index, step) for index, text in enumerate(outputs)
    ]
    with start_blocking_portal() as portal:
        return OnlineMeasure(by_id, players.cast(), rules, value, 7, portal)(completions)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [("11/36", "27/43"), ("229/720", "549/860"), ("21/40", "349/430"), ("-4/9", "0"), ("3/4", "1")],
)
def test_online_scaling(reward, expected):
    assert scaled(Fraction(reward), Rules(horizon=8)) == Fraction(expected)


def test_scaling_reaches_one_where_the_first_exchange_is_scored():
    assert scaled(Fraction(1), Rules(horizon=8, score_first_exchange=True)) == 1


@pytest.mark.parametrize(("value", "expected"), [("raw", (1 / 4 + 1 / 3) / 2), ("goal", 0.0)])
def test_what_of_a_future_counts(value, expected):
    assert measured(Players(), value=value) == [pytest.approx(expected)]


def test_a_goal_that_is_reached_counts_one():
    players = Players(critic=FakeModel(answer=lambda m, s: "Significantly better"))
    assert measured(players, value="goal") == [1.0]
    assert measured(players) == [1.0]


def test_the_reply_is_played_and_its_reasoning_seen_by_nobody():
    players = Players()
    measured(players)
    shown = str([*players.seeker.asked, *players.critic.asked])
    assert "That sounds hard." in shown
    assert "They sound tired" not in shown
    assert "plan" not in shown
    assert "They sound tired" not in str(players.supporter.asked)
    assert len(players.supporter.asked) == 2  # exchanges 1 and 2; exchange 0 is the policy's own


def test_what_the_policy_says_in_the_seekers_name_is_not_played():
    players = Players()
    measured(players, ["<think>a</think> <response>Hi.\nPatient: Thank you, I feel better!</response>"])
    shown = str([*players.seeker.asked, *players.critic.asked])
    assert "Hi." in shown
    assert "Thank you" not in shown


def test_draws_differ_by_step_and_by_place_in_the_group_only():
    def seeds(step):
        players = Players()
        measured(players, (WELL_FORMED, WELL_FORMED), step=step)
        return {seed for _, seed in players.seeker.asked}

    assert len(seeds(3)) == 6
    assert seeds(3) == seeds(3)
    assert not seeds(3) & seeds(4)


def test_a_failed_future_is_no_number_and_takes_the_format_along():
    players = Players(critic=FakeModel(answer=lambda m, s: "What a lovely day."))
    by_id = {context.id: context for context in contexts(1)}
    with start_blocking_portal() as portal:
        rewards = PairedRewards(OnlineMeasure(by_id, players.cast(), RULES, "scaled", 7, portal), n_generations=1)
        given = columns_of(1, context_ids=list(by_id))
        assert rewards.future_reward([], said(WELL_FORMED), **given) == [None]
        assert rewards.format_reward([], said(WELL_FORMED), **given) == [None]


def test_futures_are_played_beside_a_running_event_loop():
    async def inside() -> list[float | None]:
        return measured(Players(), value="goal")

    assert asyncio.run(inside()) == [0.0]

    players = Players(seeker=FakeModel(answer=lambda m, s: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        measured(players)
