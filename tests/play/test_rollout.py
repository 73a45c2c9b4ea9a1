"""Playing one future: stop rule, exact reward, failures as records, and who sees what."""

import asyncio
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esckit.config import sections
from esckit.errors import BackendError
from esckit.ledger import derive_seed
from esckit.play.rollout import Cast, Rules, play_future
from esckit.prompts.prompt import load_prompt
from esckit.protocols import Decision
from esckit.roles.asking import Voice
from esckit.roles.critics import ResolutionCritic
from esckit.roles.players import PromptedSeeker, PromptedSupporter
from esckit.roles.verdicts import future_reward, load_preset
from esckit.types import Context, Future, Outcome, Sampling, Scenario, Turn
from tests.fakes import Answer, FakeModel

CONTEXT = Context(
    id="esconv-9b1f37be6d7e#m5",
    dialogue_id="esconv-9b1f37be6d7e",
    scenario=Scenario(id="esconv-9b1f37be6d7e", situation="I lost my job.", emotion_type="fear"),
    turns=(Turn(speaker="seeker", text="Hello, I lost my job."),),
)
OUTPUT = "<think>secret reasoning</think> <response>I hear you.</response>"


class World:
    """Three scripted models and the cast over them."""

    def __init__(
        self,
        critic: Answer,
        supporter: Answer = lambda messages, seed: OUTPUT,
        seeker: Answer = lambda messages, seed: "I feel bad.",
        samples: int = 10,
    ) -> None:
        self.supporter, self.seeker, self.critic = FakeModel(supporter), FakeModel(seeker), FakeModel(critic)
        options = sections.RoleOptions(sampling=Sampling(max_tokens=64))
        self.cast = Cast(
            PromptedSupporter(Voice(self.supporter, options), load_prompt("supporter_rlff")),
            PromptedSeeker(Voice(self.seeker, options), load_prompt("seeker")),
            ResolutionCritic(
                Voice(self.critic, options),
                load_prompt("critic_resolution"),
                load_preset("rlff7"),
                sections.ResolutionCritic(samples=samples),
            ),
        )

    def play(self, candidate: int = 0, **rules: object) -> Future:
        return asyncio.run(play_future(CONTEXT, candidate, cast=self.cast, rules=Rules(**rules), run_seed=7))


def by_turn(*levels: str) -> Answer:
    """Answer a level by how often the therapist has spoken after the candidate."""

    def answer(messages: object, seed: int) -> str:
        k = messages[1].content.count("Therapist:") - 1
        return levels[min(k, len(levels)) - 1]

    return answer


def test_a_future_stops_at_the_first_strict_success() -> None:
    future = World(by_turn("Same", "Moderately better", "Significantly better")).play()
    assert (future.outcome, future.k, len(future.exchanges)) == (Outcome.RESOLVED, 3, 4)
    assert future.fraction == Fraction(5, 8)
    assert future.exchanges[0].reading is None
    assert [exchange.k for exchange in future.exchanges] == [0, 1, 2, 3]


def test_exactly_one_half_is_no_success() -> None:
    future = World(by_turn("Moderately better")).play()
    assert (future.outcome, future.k, future.fraction) == (Outcome.MAX_TURNS, 8, Fraction(11, 36))


def test_the_first_exchange_can_be_scored() -> None:
    future = World(lambda messages, seed: "Significantly better").play(score_first_exchange=True)
    assert (future.outcome, future.k, future.fraction) == (Outcome.RESOLVED, 0, Fraction(1))


def test_every_seed_comes_from_the_stated_ids() -> None:
    world = World(by_turn("Significantly better"))
    world.play()
    assert world.supporter.asked[0][1] == 7846760151267754813
    assert world.seeker.asked[1][1] == 705113917903731546
    assert [seed for _, seed in world.critic.asked][:2] == [4998589976182991941, 4042982585926106817]
    other = World(by_turn("Significantly better"))
    other.play(candidate=1)
    assert other.critic.asked[0][1] == 8864464504026475749


def test_reasoning_reaches_neither_seeker_nor_critic() -> None:
    world = World(by_turn("Same"))
    future = world.play(horizon=2)
    for model in (world.seeker, world.critic):
        assert not any("secret" in message.content for messages, _ in model.asked for message in messages)
    assert future.exchanges[0].supporter.reasoning == "secret reasoning"
    assert future.exchanges[0].supporter.response == "I hear you."


def test_the_supporter_sees_neither_situation_nor_types() -> None:
    world = World(by_turn("Same"))
    world.play(horizon=1)
    text = "".join(message.content for messages, _ in world.supporter.asked for message in messages)
    assert "fear" not in text
    assert "I lost my job.\n" not in text


def fails_at(turn: int, text: str = "") -> Answer:
    """Answer something unusable once the other side has spoken so often."""

    def answer(messages: object, seed: int) -> str:
        return text if sum(message.role == "user" for message in messages) > turn else "I feel bad."

    return answer


@pytest.mark.parametrize(
    ("world", "stage", "turn", "kind", "attempts"),
    [
        (World(by_turn("Same"), supporter=lambda m, s: "<think>only</think>"), "candidate", 0, "blank", 3),
        (World(by_turn("Same"), seeker=fails_at(2)), "seeker", 1, "blank", 3),
        (World(lambda m, s: "What?"), "critic", 1, "unparsed", 2),
    ],
)
def test_a_failure_is_recorded_and_gives_no_number(
    world: World, stage: str, turn: int, kind: str, attempts: int
) -> None:
    future = world.play()
    assert future.outcome is Outcome.FAILED
    assert future.reward is None
    assert future.fraction is None
    assert future.failure is not None
    assert (future.failure.stage, future.failure.turn) == (stage, turn)
    assert (future.failure.kind, future.failure.attempts) == (kind, attempts)


def test_a_backend_failure_keeps_what_was_reached() -> None:
    def answer(messages: object, seed: int) -> str:
        raise BackendError("the server is gone")

    future = World(answer).play()
    assert future.failure is not None
    assert (future.failure.kind, future.failure.stage) == ("backend", "critic")
    assert [exchange.seeker for exchange in future.exchanges] == ["I feel bad.", "I feel bad."]
    assert future.exchanges[-1].reading is None


def test_a_blank_reply_is_retried_with_the_next_seed() -> None:
    first = derive_seed(7, CONTEXT.id, 0, 0, "supporter", 0)
    world = World(by_turn("Significantly better"), supporter=lambda m, seed: "" if seed == first else OUTPUT)
    assert world.play().outcome is Outcome.RESOLVED
    assert world.supporter.asked[1][1] == derive_seed(7, CONTEXT.id, 0, 0, "supporter", 1)


@given(st.lists(st.integers(0, 6), min_size=4, max_size=4), st.integers(1, 6))
def test_reward_above_the_goal_line_means_goal_reached(quarters: list[int], horizon: int) -> None:
    levels = load_preset("rlff7").levels
    values = [Fraction(load_preset("rlff7").quarters[quarter], 4) for quarter in quarters]
    k = next((k for k, value in enumerate(values[:horizon], start=1) if value > Fraction(1, 2)), None)
    future = World(by_turn(*(levels[quarter] for quarter in quarters)), samples=2).play(horizon=horizon)
    line = (Fraction(1, 2) + Fraction(1, horizon + 1)) / 2
    assert future.fraction is not None
    assert (future.fraction > line) == (future.outcome is Outcome.RESOLVED)
    if k is not None:
        assert future.fraction == future_reward(values[k - 1], k)


def test_usage_counts_every_call() -> None:
    future = World(by_turn("Same")).play()
    assert {role: usage.calls for role, usage in future.usage.items()} == {"critic": 80, "seeker": 9, "supporter": 9}


def strategist(name: str) -> object:
    class Fixed:
        strategies = ("Question",)

        async def decide(self, *args: object) -> Decision:
            return Decision(name, (1.0,))

    return Fixed()


def test_a_strategist_names_the_strategy_of_every_turn() -> None:
    world = World(by_turn("Same"))
    supporter = PromptedSupporter(
        Voice(world.supporter), load_prompt("supporter_rlff"), definitions={"Question": "ask one thing"}
    )
    cast = Cast(supporter, world.cast.seeker, world.cast.critic, strategist("Question"))
    future = asyncio.run(play_future(CONTEXT, 0, cast=cast, rules=Rules(horizon=2), run_seed=7))
    assert [exchange.strategy for exchange in future.exchanges] == ["Question"] * 3
    assert all("Question: ask one thing" in messages[0].content for messages, _ in world.supporter.asked)


def test_reasoning_of_every_role_is_kept_apart_and_counted() -> None:
    world = World(
        lambda messages, seed: f"<think>Solved? {seed % 2}</think>Same",
        seeker=lambda messages, seed: "<think>Sound tired.</think>\n\nI slept badly.",
        samples=2,
    )
    future = world.play(horizon=1)
    assert [exchange.seeker for exchange in future.exchanges] == ["I slept badly."] * 2
    assert all("<think>" not in message.content for asked, _ in world.critic.asked for message in asked)
    assert [(thought.place, thought.role) for thought in future.reasoning] == [
        ("0/0", "seeker"),
        ("0/1", "critic.0"),
        ("0/1", "critic.1"),
        ("0/1", "seeker"),
    ]
    assert {role: usage.reasoned for role, usage in future.usage.items()} == {"critic": 2, "seeker": 2, "supporter": 2}
    assert future.exchanges[1].reading.counts[0] == 2


def test_a_critic_cut_inside_its_reasoning_gives_no_number() -> None:
    world = World(lambda messages, seed: "<think>Would I call it Significantly Better, as", samples=2)
    future = world.play(horizon=1)
    assert (future.outcome, future.failure.stage, future.failure.kind) == (Outcome.FAILED, "critic", "unparsed")
    assert future.usage["critic"].only_reasoned == 4


@pytest.mark.parametrize("said", ["<think>I am", "<think>I am</think>", "I am</think> "])
def test_a_seeker_that_only_reasons_is_asked_again(said: str) -> None:
    world = World(lambda messages, seed: "Same", seeker=lambda messages, seed: said)
    future = world.play(horizon=1)
    assert (future.failure.stage, future.failure.kind, future.failure.attempts) == ("seeker", "only_reasoned", 3)
    assert future.exchanges[0].seeker is None
