"""AFlow's seeker: end tokens, the memory guard, what the prompt shows, retries."""

import asyncio

import pytest

from esckit.config.sections import RoleOptions
from esckit.errors import ParseError
from esckit.ledger import Ledger
from esckit.prompts.prompt import load_prompt
from esckit.protocols import SeekerTurn
from esckit.roles.asking import Voice
from esckit.roles.players import AFlowSeeker, parse_seeker, quotes
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import Outcome, Sampling, Scenario, Turn
from tests.fakes import FakeModel

AFLOW = load_taxonomy("aflow")
SCENARIO = Scenario(id="s", situation="An exam went wrong.", problem_type="academic pressure", emotion_type="shame")
MEMORY = (
    Turn(speaker="seeker", text="My tutor said I'd never, ever make it through the final year again."),
    Turn(speaker="supporter", text="one two three four five six seven", strategy="Clarification"),
    Turn(speaker="seeker", text="eight nine ten"),
)
TURNS = (
    Turn(speaker="seeker", text="I failed."),
    Turn(speaker="supporter", text="That hurts.", strategy="Emotional Validation"),
)


def seeker(model: FakeModel, *, memory_guard: bool = True, max_attempts: int = 3) -> AFlowSeeker:
    voice = Voice(model, RoleOptions(sampling=Sampling(temperature=0.7, top_p=0.9), max_words=60), max_attempts)
    return AFlowSeeker(voice, load_prompt("seeker_aflow"), AFLOW, {"s": MEMORY}, memory_guard)


def reply(found: AFlowSeeker, turns=TURNS) -> SeekerTurn:
    return asyncio.run(found.reply(SCENARIO, turns, Ledger(7, "t").at("r.EV", 0)))


def test_the_two_ways_to_end() -> None:
    assert parse_seeker("</end/>", AFLOW, 60) == SeekerTurn("", Outcome.DISENGAGED)
    assert parse_seeker("Thanks, that helped. <ok>", AFLOW, 60) == SeekerTurn("Thanks, that helped.", Outcome.RESOLVED)
    assert parse_seeker("Thanks.<ok>", AFLOW, 60) == SeekerTurn("Thanks.", Outcome.RESOLVED)
    assert parse_seeker("I don't know.", AFLOW, 60) == SeekerTurn("I don't know.")


@pytest.mark.parametrize(
    "text",
    ["<ok>", "<ok> thanks", "Bye </end/>", "</end/> <ok>", "ok <ok> <ok>", "", "Seeker: no", " ".join(["no"] * 61)],
)
def test_tokens_elsewhere_blanks_and_long_replies_are_invalid(text: str) -> None:
    with pytest.raises(ParseError):
        parse_seeker(text, AFLOW, 60)


def test_sixty_words_are_allowed() -> None:
    assert parse_seeker(" ".join(["no"] * 60), AFLOW, 60).outcome is None


def test_eight_words_in_a_row_from_one_memory_turn_are_a_quote() -> None:
    assert quotes("Well, my TUTOR said: Id never ever make - it!", MEMORY)
    assert not quotes("My tutor said I'd never ever make cakes", MEMORY)
    assert not quotes("tutor said I'd never, ever make it", MEMORY)
    assert not quotes("one two three four five six seven eight nine ten", MEMORY)
    assert not quotes("notmy tutor said Id never ever make ittle", MEMORY)


def test_the_prompt_shows_the_private_case_and_no_strategies() -> None:
    model = FakeModel(lambda messages, seed: "It does.")
    assert reply(seeker(model)) == SeekerTurn("It does.")
    (messages, seed), *_ = model.asked
    text = messages[1].content
    assert [message.role for message in messages] == ["system", "user"]
    for shown in ("academic pressure (shame)", SCENARIO.situation, MEMORY[0].text, "turn number 2", "Supporter: That"):
        assert shown in text
    assert "Emotional Validation" not in text
    assert "Clarification" not in text
    assert seed == Ledger(7, "t").at("r.EV", 0).seed("seeker")


def test_invalid_replies_are_asked_again_and_never_replaced() -> None:
    answers = iter(["Seeker: no", "my tutor said Id never ever make it", "Fine. <ok>"])
    model = FakeModel(lambda messages, seed: next(answers))
    assert reply(seeker(model)) == SeekerTurn("Fine.", Outcome.RESOLVED)
    assert len({seed for _, seed in model.asked}) == 3
    with pytest.raises(ParseError) as error:
        reply(seeker(FakeModel(lambda messages, seed: "<ok>")))
    assert (error.value.attempts, error.value.kind) == (3, "blank")


def test_the_memory_guard_can_be_switched_off() -> None:
    model = FakeModel(lambda messages, seed: "my tutor said Id never ever make it")
    assert reply(seeker(model, memory_guard=False)).text.startswith("my tutor")


def test_sixteen_characters_are_a_quote_in_unspaced_scripts() -> None:
    memory = [Turn(speaker="seeker", text="我的导师说我永远都不可能在这个领域成功的")]
    assert quotes("是啊，导师说我永远都不可能在这个领域成功", memory)
    assert not quotes("导师说我永远都不可能做到", memory)
