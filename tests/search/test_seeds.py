"""Where a tree starts: the opening of a seed dialogue."""

import pytest

from esckit.data.contexts import cut_seed
from esckit.errors import DataError
from esckit.types import Dialogue, Scenario, Turn

SAID = [
    ("supporter", "Hello.", "Others"),
    ("seeker", "Hi.", None),
    ("seeker", "I failed.", None),
    ("supporter", "What happened?", "Question"),
    ("seeker", "An exam.", None),
    ("supporter", "Oh.", None),
    ("supporter", "That hurts.", "Reflection of feelings"),
]
DIALOGUE = Dialogue(
    scenario=Scenario(id="d"), turns=tuple(Turn(speaker=s, text=t, strategy=label) for s, t, label in SAID)
)


def test_the_opening_is_the_first_merged_seeker_turn() -> None:
    seed = cut_seed(DIALOGUE, root_turns=1)
    assert seed.opening == (Turn(speaker="seeker", text="Hi. I failed."),)
    assert [turn.text for turn in seed.rest] == ["What happened?", "An exam.", "Oh. That hurts."]
    assert [turn.strategy for turn in seed.rest] == ["Question", None, "Reflection of feelings"]


@pytest.mark.parametrize("root_turns", [2, 5])
def test_more_opening_exchanges_end_with_the_seeker(root_turns: int) -> None:
    opening = cut_seed(DIALOGUE, root_turns=root_turns).opening
    assert [turn.speaker for turn in opening] == ["seeker", "supporter", "seeker"]
    assert {turn.strategy for turn in opening} == {None}


def test_a_dialogue_that_is_over_is_no_opening() -> None:
    ended = DIALOGUE.model_copy(update={"turns": (*DIALOGUE.turns, Turn(speaker="seeker", text="Goodbye."))})
    seed = cut_seed(ended, root_turns=5)
    assert seed.opening[-1].text == "An exam."
    assert [turn.text for turn in seed.rest] == ["Oh. That hurts.", "Goodbye."]
    only = DIALOGUE.model_copy(update={"turns": DIALOGUE.turns[:3]})
    assert [turn.text for turn in cut_seed(only, root_turns=5).opening] == ["Hi. I failed."]


def test_a_dialogue_without_a_seeker_is_refused() -> None:
    with pytest.raises(DataError):
        cut_seed(DIALOGUE.model_copy(update={"turns": DIALOGUE.turns[:1]}), root_turns=1)
