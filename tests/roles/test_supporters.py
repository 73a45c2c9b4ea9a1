"""Supporters: AFlow's is told one strategy and shown only the talk; the prompted one may reason."""

import asyncio

import pytest

from esckit.config.sections import RoleOptions
from esckit.errors import ConfigError, ParseError
from esckit.ledger import Ledger
from esckit.prompts.prompt import load_prompt
from esckit.roles.asking import Voice
from esckit.roles.players import AFlowSupporter, PromptedSupporter
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import Generation, Sampling, Turn
from tests.fakes import FakeModel

AFLOW = load_taxonomy("aflow")
TURNS = (
    Turn(speaker="seeker", text="I failed."),
    Turn(speaker="supporter", text="Oh.", strategy="Affirmation"),
    Turn(speaker="seeker", text="Yes."),
)


def reply(model: FakeModel, strategy: str | None = "Clarification") -> Generation:
    supporter = AFlowSupporter(Voice(model, RoleOptions(max_words=75)), load_prompt("supporter_aflow"), AFLOW)
    return asyncio.run(supporter.reply(TURNS, Ledger(7, "t").at("r.Cla", 0), strategy=strategy))


def test_the_prompt_holds_the_strategy_and_no_earlier_one() -> None:
    model = FakeModel(lambda messages, seed: " What\n happened? ")
    found = reply(model)
    assert (found.response, found.reasoning, found.raw) == ("What happened?", None, " What\n happened? ")
    text = model.asked[0][0][1].content
    assert f"Clarification. {AFLOW.by_name('Clarification').definition}" in text
    assert "Affirmation" not in text
    assert "Supporter: Oh." in text


@pytest.mark.parametrize("text", ["", "Supporter: hi", "[Cla] What?", "Good. <ok>", " ".join(["so"] * 76)])
def test_invalid_replies_fail_after_all_attempts(text: str) -> None:
    model = FakeModel(lambda messages, seed: text)
    with pytest.raises(ParseError) as error:
        reply(model)
    assert error.value.attempts == len(model.asked) == 3


def test_seventy_five_words_are_allowed() -> None:
    assert reply(FakeModel(lambda messages, seed: " ".join(["so"] * 75))).response


def test_a_supporter_without_a_strategy_is_a_recipe_error() -> None:
    with pytest.raises(ConfigError):
        reply(FakeModel(), strategy=None)


def test_what_a_reasoning_policy_thinks_is_no_part_of_its_reply() -> None:
    said = "<think>They are\n tired.</think> <response>What happened?</response>"
    found = reply(FakeModel(lambda messages, seed: said))
    assert (found.response, found.reasoning, found.raw) == ("What happened?", "They are\n tired.", said)
    with pytest.raises(ParseError, match="reasoning without an answer"):
        reply(FakeModel(lambda messages, seed: "<think>They are tired."))


@pytest.mark.parametrize(
    ("prompt", "text", "format_ok"),
    [
        ("supporter_rlff", "<think>a</think> <response>Hi.</response>", True),
        ("supporter_rlff", "Hi.", False),
        ("supporter_ppdpp", "Hi.", True),
        ("supporter_ppdpp", "<response>Hi.", False),
    ],
)
def test_plain_text_is_agreed_where_the_prompt_asks_for_no_tags(prompt: str, text: str, format_ok: bool) -> None:
    voice = Voice(FakeModel(lambda messages, seed: text), RoleOptions(sampling=Sampling(temperature=0.0)))
    talk = [Turn(speaker="seeker", text="I am low.")]
    found = asyncio.run(PromptedSupporter(voice, load_prompt(prompt)).reply(talk, Ledger(7, "d").at(1)))
    assert (found.response, found.format_ok) == ("Hi.", format_ok)
