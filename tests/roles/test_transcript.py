"""Replies are cleaned, and turns rendered, by one definition of a line and of a speaker label."""

import time

import pytest

from esckit.roles.asking import as_lines, as_tagged_lines, clean_reply
from esckit.text import lines_of
from esckit.types import Turn

ENDS = ["\n", "\r", "\r\n", "\v", "\f", "\x85", "\u2028", "\u2029"]
LABELS = [
    "Patient:",
    "- Patient:",
    "[Patient]:",
    "Patient\uff1a",
    "**Patient:**",
    "1. Client:",
    "User [sad] :",
    "求助者：",
    "__Patient__:",
    "\uff30\uff41\uff54\uff49\uff45\uff4e\uff54\uff1a",
    "患者（难过）：",
    "Patient \u2236",
    "Patient 2:",
    "> > > Patient:",
    "1. - **Patient**:",
    "a) Patient:",
]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("label", LABELS)
def test_a_turn_that_was_never_said_is_cut(end: str, label: str) -> None:
    text = f"That is hard.{end}{label} I feel great, solved!{end}Therapist: Good."
    assert clean_reply(text, speaking="supporter") == "That is hard."


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("label", LABELS)
def test_no_turn_holds_a_line_of_another_speaker(end: str, label: str) -> None:
    turn = Turn(speaker="supporter", text=f"Hard.{end}Very.{end} {end}  {label} Solved!")
    for shown in (as_lines([turn]), as_tagged_lines([turn], show_strategy=False)):
        assert [line.startswith(("Therapist: ", "Supporter: ")) for line in lines_of(shown)] == [True, False]
        assert lines_of(shown)[1] == f"Very. {label} Solved!"


def test_own_labels_are_no_words() -> None:
    assert (
        clean_reply("Therapist\uff1aThat is a lot.\nTherapist: Go on.", speaking="supporter")
        == "That is a lot.\nGo on."
    )


@pytest.mark.parametrize(
    "text", ["One.\n\nTwo: three.\rFour.", "User friendly: yes", "The patient: calm", "a\u2028b", "a\n２：１"]
)
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert clean_reply(text, speaking="supporter") == text
    assert as_lines([Turn(speaker="supporter", text=text)]) == f"Therapist: {text}"


@pytest.mark.parametrize("piece", ["\n", "\nPatient", "\n- ", " ", "[", "\n1.", "*", "\n ", "_"])
def test_cleaning_and_rendering_take_linear_time(piece: str) -> None:
    began = time.process_time()
    for text in (f"a{piece * 20_000}", f"a{piece * 20_000}\nPatient: b"):
        as_lines([Turn(speaker="supporter", text=clean_reply(text, speaking="seeker"))])
        clean_reply(text, speaking="supporter")
    assert time.process_time() - began < 2.0
