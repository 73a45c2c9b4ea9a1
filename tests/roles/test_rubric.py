"""The rubric critic: the reward's numbers, both read-outs, and that nonsense never becomes a number."""

import asyncio
import logging

import pytest
from pydantic import ValidationError

from esckit.config import sections
from esckit.errors import ConfigError, ParseError, UnscoredError
from esckit.ledger import Ledger
from esckit.prompts.prompt import load_prompt
from esckit.roles.asking import Voice
from esckit.roles.rubric import (
    RATINGS,
    RubricCritic,
    expected_rating,
    load_rubric,
    parse_ratings,
    weighted_reward,
)
from esckit.types import RubricReading, Scenario, Score, StopReason, Turn
from tests.fakes import FakeModel

AFLOW = load_rubric("aflow")
WEIGHTS = {"empathy": 0.1, "information": 0.1, "naturalness": 0.1, "strategy": 0.2}
TURNS = (
    Turn(speaker="seeker", text="I failed."),
    Turn(speaker="supporter", text="That hurts.", strategy="Emotional Validation"),
)
P = dict(zip(RATINGS, (0.02, 0.08, 0.30, 0.45, 0.15), strict=True))


def critic(model: FakeModel, readout: str = "sampled", **changes: object) -> RubricCritic:
    settings = sections.RubricCritic(readout=readout, **changes)
    return RubricCritic(Voice(model), load_prompt("critic_aflow"), settings)


def score(found: RubricCritic, ledger: Ledger | None = None) -> Score:
    scope = (ledger or Ledger(7, "t")).at("r.EV", 0)
    return asyncio.run(found.score(Scenario(id="s"), TURNS, scope))


def test_the_worked_rewards() -> None:
    def reward(*ratings: float) -> float:
        return weighted_reward(dict(zip(AFLOW.keys, ratings, strict=True)), WEIGHTS)

    assert reward(4, 3, 5, 4) == pytest.approx(0.8)
    assert reward(3.63, 3.0, 4.2, 3.8) == pytest.approx(0.7372, abs=5e-5)
    assert (reward(1, 1, 1, 1), reward(5, 5, 5, 5)) == (pytest.approx(0.2), 1.0)
    assert expected_rating(tuple(P.values())) == pytest.approx(3.63)
    assert expected_rating((0.01, 0.04, 0.15, 0.225, 0.075)) == pytest.approx(3.63)


def test_four_lines_in_order_are_ratings() -> None:
    assert parse_ratings("1: 4\n2: 3\n\n 3 :5 \n4:4", 4) == [4, 3, 5, 4]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1: 4\n2: 3\n3: 5",
        "1: 4\n2: 3\n3: 5\n4: 4\n5: 1",
        "1: 4\n2: 3\n2: 5\n4: 4",
        "2: 4\n1: 3\n3: 5\n4: 4",
        "1: 4\n2: 3\n3: 6\n4: 4",
        "1: 0\n2: 3\n3: 5\n4: 4",
        "1: 4\n2: 3.5\n3: 5\n4: 4",
        "1: 4/5\n2: 3\n3: 5\n4: 4",
        "Ratings:\n1: 4\n2: 3\n3: 5\n4: 4",
        "1: 4 2: 3 3: 5 4: 4",
        "1: ４\n2: 3\n3: 5\n4: 4",
    ],
)
def test_anything_else_is_no_rating(text: str) -> None:
    with pytest.raises(ParseError):
        parse_ratings(text, 4)


def test_sampled_reads_one_reply_about_the_last_turn() -> None:
    model = FakeModel(lambda messages, seed: "1: 4\n2: 3\n3: 5\n4: 4")
    found = score(critic(model))
    assert found.reward == pytest.approx(0.8)
    assert isinstance(found.reading, RubricReading)
    assert found.reading.ratings == found.values == {"empathy": 4, "information": 3, "naturalness": 5, "strategy": 4}
    assert (found.reading.readout, found.reading.label_mass) == ("sampled", None)
    text = model.asked[0][0][1].content
    assert "Supporter [Emotional Validation]: That hurts." in text
    assert all(criterion.question in text for criterion in AFLOW.criteria)
    assert text.index("5: reaches what") < text.index("1: cold, blaming")


def test_the_strategy_can_be_hidden_from_the_critic() -> None:
    model = FakeModel(lambda messages, seed: "1: 4\n2: 3\n3: 5\n4: 4")
    score(critic(model, show_strategy=False))
    assert "Emotional Validation" not in model.asked[0][0][1].content


@pytest.mark.parametrize("stop_reason", list(StopReason))
def test_nonsense_is_unscored_after_all_attempts(stop_reason: StopReason) -> None:
    answer = "four stars" if stop_reason is StopReason.STOP else "1: 4\n2: 3\n3: 5\n4: 4"
    model = FakeModel(lambda messages, seed: answer, stop_reason=stop_reason)
    with pytest.raises(UnscoredError) as error:
        score(critic(model))
    assert (error.value.attempts, len({seed for _, seed in model.asked})) == (3, 3)


def test_expected_reads_a_distribution_per_criterion_only() -> None:
    def never(messages, seed):
        raise AssertionError("expected never asks for text")

    model = FakeModel(never, label_p=lambda label: P[label] / 2)
    ledger = Ledger(7, "t")
    found = score(critic(model, "expected"), ledger)
    assert found.values == pytest.approx(dict.fromkeys(AFLOW.keys, 3.63))
    assert found.reward == pytest.approx(3.63 / 5)
    assert found.reading.label_mass == pytest.approx(0.5)
    assert ledger.usage["critic"].calls == 4
    prompts = [messages[1].content for messages, _ in model.asked]
    for text, criterion in zip(prompts, AFLOW.criteria, strict=True):
        assert criterion.question in text
        assert sum(other.question in text for other in AFLOW.criteria) == 1
    start = prompts[0][: prompts[0].index("The criterion")]
    assert all(text.startswith(start) for text in prompts)


def test_too_little_mass_on_ratings_is_unscored() -> None:
    with pytest.raises(UnscoredError) as error:
        score(critic(FakeModel(label_p=lambda label: 0.009), "expected"))
    assert error.value.kind == "label_mass"
    with pytest.raises(UnscoredError):
        score(critic(FakeModel(label_p=lambda label: 0.0), "expected"))


def test_a_low_mean_mass_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    found = critic(FakeModel(label_p=lambda label: 0.05), "expected")
    with caplog.at_level(logging.WARNING):
        for _ in range(30):
            score(found)
    assert len(caplog.records) == 1


def test_a_model_without_next_tokens_is_refused_for_expected() -> None:
    with pytest.raises(ConfigError, match="sampled"):
        critic(FakeModel(capabilities=frozenset()), "expected")


@pytest.mark.parametrize(
    "weights",
    [{}, {**WEIGHTS, "length": 1.0}, {**WEIGHTS, "empathy": -0.1}, dict.fromkeys(AFLOW.keys, 0.0), {"empathy": 1.0}],
)
def test_weights_that_do_not_fit_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises((ConfigError, ValidationError)):
        critic(FakeModel(), weights=weights)


def test_the_identity_names_rubric_and_wording() -> None:
    name, _, digits = critic(FakeModel()).identity.partition("/")
    assert (name, len(digits)) == ("aflow", 16)
    with pytest.raises(ConfigError):
        load_rubric("esc")
