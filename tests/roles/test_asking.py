"""Asking a model: what it is shown of a talk, what its reply may look like, and which error is raised."""

import asyncio
import re
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.errors import BackendError, OutageError, ParseError
from esckit.ledger import Ledger
from esckit.roles.asking import (
    Window,
    as_lines,
    as_tagged_lines,
    clean_output,
    clean_reply,
    clean_utterance,
    gather_all,
    one_line,
    read_output,
    scene_of,
    split_output,
)
from esckit.strategies.taxonomy import load_taxonomy
from esckit.text import lines_of
from esckit.types import Message, Reply, Scenario, StopReason, Turn, Usage


async def failing(error: Exception) -> None:
    raise error


def test_what_stops_the_run_goes_before_the_failure_of_one_call() -> None:
    async def gather() -> list[None]:
        return await gather_all(failing(BackendError("one call")), failing(OutageError("all")))

    with pytest.raises(OutageError):
        asyncio.run(gather())


TALK = [Turn(speaker="seeker", text=str(index)) for index in range(800)]


def fitted(max_tokens: int, n_turns: int = 800) -> tuple[list[str], int, int]:
    """Return the turns shown, the turns dropped and the tokens counted, where a turn is a token beside 10 others."""
    counted = []

    def count(messages: Sequence[Message]) -> int:
        counted.append(10 + len(messages))
        return counted[-1]

    ledger = Ledger(0, "u")
    messages = Window(max_tokens, count).fit(
        lambda turns: [Message("user", turn.text) for turn in turns], TALK[:n_turns], ledger.at(), "critic"
    )
    dropped = ledger.usage["critic"].dropped_turns if ledger.usage else 0
    return [message.content for message in messages], dropped, sum(counted)


@pytest.mark.parametrize("max_tokens", [11, 12, 100, 500, 809, 810, 900])
def test_as_many_of_the_latest_turns_as_fit_are_shown(max_tokens: int) -> None:
    shown, dropped, _ = fitted(max_tokens)
    n = min(800, max_tokens - 10)
    assert shown == [str(index) for index in range(800 - n, 800)]
    assert dropped == 800 - n


def test_the_last_turn_always_stays() -> None:
    assert fitted(3)[:2] == (["799"], 799)
    assert fitted(3, n_turns=1)[:2] == (["0"], 0)


def test_a_long_conversation_is_read_a_few_times_only() -> None:
    assert fitted(12)[2] < 3 * 810


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


AFLOW = load_taxonomy("aflow")


def test_dialogues_as_lines_with_and_without_tags() -> None:
    turns = (Turn(speaker="seeker", text="Hi."), Turn(speaker="supporter", text="Hm.", strategy="Affirmation"))
    assert as_tagged_lines(turns, show_strategy=True) == "Seeker: Hi.\nSupporter [Affirmation]: Hm."
    assert as_tagged_lines(turns, show_strategy=False) == "Seeker: Hi.\nSupporter: Hm."


def test_scenes_name_the_feeling_where_it_is_known() -> None:
    assert scene_of(Scenario(id="s", problem_type="job crisis", emotion_type="fear")) == "job crisis (fear)"
    assert scene_of(Scenario(id="s", problem_type="job crisis")) == "job crisis"
    assert scene_of(Scenario(id="s")) == "not stated"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "blank"),
        ("Seeker: hello", "role_label"),
        ("**Supporter:** hello", "role_label"),
        ("supporter [EV]: hello", "role_label"),
        ("Assistant : hello", "role_label"),
        ("[EV] That hurts.", "strategy_tag"),
        ("That hurts [emotional validation].", "strategy_tag"),
        ("[Emotional Validation (EV)] Ouch", "strategy_tag"),
        ("I am <ok> with it", "control_token"),
        ("bye </end/> bye", "control_token"),
        ("hello<|im_end|>", "control_token"),
        ("a b c d e f g h i", "too_long"),
    ],
)
def test_what_is_refused(text: str, kind: str) -> None:
    with pytest.raises(ParseError) as error:
        clean_utterance(text, AFLOW, 8)
    assert error.value.kind == kind


@pytest.mark.parametrize(
    "text", ["a b c d e f g h", "I told the user: stop", "So [sigh] I left", "Aim: none", "Okay, [everything] hurts"]
)
def test_what_is_fine(text: str) -> None:
    assert clean_utterance(text, AFLOW, 8) == text


def test_cut_replies_are_refused_or_shortened() -> None:
    cut = Reply("Well. I  never\nsaid that. And th", StopReason.LENGTH, Usage())
    with pytest.raises(ParseError) as error:
        one_line(cut, "fail")
    assert error.value.kind == "too_long"
    assert one_line(cut, "last_sentence") == "Well. I never said that."


@given(st.text(max_size=60))
@settings(max_examples=80, deadline=None)
def test_whatever_comes_is_one_clean_line_or_refused(text: str) -> None:
    try:
        found = clean_utterance(one_line(Reply(text, StopReason.STOP, Usage()), "fail"), AFLOW, 8)
    except ParseError:
        return
    assert found == " ".join(text.split())
    assert 1 <= len(found.split()) <= 8


VECTORS = [
    ("<think>a</think> <response>Hi.</response>", "ok", "Hi."),
    ("<response>Hi.</response>", "closed_response", "Hi."),
    ("<think>a</think> Hi.", "untagged", "Hi."),
    ("<think>a</think><response>Hi.", "open_response", "Hi."),
    ("a</think> Hi.", "untagged", "Hi."),
    ("<think>a <response>Hi.</response>", "closed_response", "Hi."),
    ("<think>a</think> <response> </response>", "blank", ""),
    ("<think>a</think> <response>Hi.</response> Bye.", "closed_response", "Hi."),
    ("<think>a", "blank", ""),
    ("<think></think> <response>Hi.</response>", "closed_response", "Hi."),
    ("<think>say <response>x</response></think> <response>Hi.</response>", "closed_response", "Hi."),
    ("<response>Hi.</response> <think>a</think>", "closed_response", "Hi."),
]


@pytest.mark.parametrize(("text", "kind", "reply"), VECTORS)
def test_vectors(text: str, kind: str, reply: str) -> None:
    found = split_output(text)
    assert (found.parse_kind, found.response) == (kind, reply)
    assert found.format_ok is (kind == "ok")
    assert found.raw == text


THANKS = "Hi.\nPatient: Thank you, I feel significantly better now!"


@pytest.mark.parametrize(
    ("text", "kind", "reply"),
    [
        (THANKS, "untagged", "Hi."),
        (f"<think>a</think> <response>{THANKS}</response>", "ok", "Hi."),
        (f"<response>Therapist: {THANKS}</response>", "closed_response", "Hi."),
        ("<think>a</think> <response>Patient: Thank you!</response>", "blank", ""),
        ("<think>a", "blank", ""),
    ],
)
def test_an_output_is_read_without_what_the_seeker_says(text: str, kind: str, reply: str) -> None:
    found = read_output(text)
    assert (found.parse_kind, found.response) == (kind, reply)
    assert found.format_ok is (kind == "ok")
    assert found.raw == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (
            f"<think>{THANKS}</think> <response>{THANKS}</response>\n",
            f"<think>{THANKS}</think> <response>Hi.</response>",
        ),
        (f"<response>{THANKS}</response> Bye.", "<response>Hi.</response> Bye."),
        ("<response>Hi.</think>\nPatient: Thank you!</response>", "Hi."),
        (" <think>a</think> <response>Hi.</response>", "<think>a</think> <response>Hi.</response>"),
        ("<think>a", "<think>a"),
    ],
)
def test_a_clean_output_keeps_its_form_and_its_own_words(text: str, clean: str) -> None:
    assert clean_output(split_output(text)) == clean
    assert split_output(clean).response == read_output(text).response


def test_white_space_around_the_agreed_form_is_fine() -> None:
    found = split_output("\n <think>so\nsad</think>\n\n<response>I hear you.\n</response> \n")
    assert (found.parse_kind, found.reasoning, found.response) == ("ok", "so\nsad", "I hear you.")


def test_tags_are_case_sensitive() -> None:
    assert split_output("<Think>a</Think> <response>Hi.</response>").parse_kind == "closed_response"


pieces = st.lists(
    st.sampled_from(["<think>", "</think>", "<response>", "</response>", "<resp", "onse>", "a", " ", "\n", "Hi."]),
    max_size=12,
)


@given(pieces)
def test_no_tag_reaches_a_reply_and_blank_means_blank(parts: list[str]) -> None:
    found = split_output("".join(parts))
    assert not any(tag in found.response for tag in ("<think>", "</think>", "<response>", "</response>"))
    assert (found.response == "") == (found.parse_kind == "blank")
    assert found.format_ok == (found.parse_kind == "ok")


@pytest.mark.parametrize(
    "piece", ["<response>", "<think>", "</think>", "<response>a</response>", "<think> </think>", " "]
)
def test_splitting_takes_linear_time(piece: str) -> None:
    began = time.process_time()
    split_output(piece * 64_000)
    split_output(f"<think>a</think>{' ' * 80_000}b<response>")
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("text", ["<resp</response>onse>So.", "<think>a</think> <resp<response>onse>So.</response>"])
def test_a_tag_inside_a_tag_leaves_none(text: str) -> None:
    assert not set(re.findall(r"</?(?:think|response)>", read_output(text).response))
