"""Spoken replies: what is accepted, what is refused and under which name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.errors import ParseError
from esckit.roles.asking import UtteranceRules, as_tagged_lines, scene_of
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import Reply, Scenario, StopReason, Turn, Usage

RULES = UtteranceRules(load_taxonomy("aflow"), 8, "fail")


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
        RULES.check(text)
    assert error.value.kind == kind


@pytest.mark.parametrize(
    "text", ["a b c d e f g h", "I told the user: stop", "So [sigh] I left", "Aim: none", "Okay, [everything] hurts"]
)
def test_what_is_fine(text: str) -> None:
    assert RULES.check(text) == text


def test_cut_replies_are_refused_or_shortened() -> None:
    cut = Reply("Well. I  never\nsaid that. And th", StopReason.LENGTH, Usage())
    with pytest.raises(ParseError) as error:
        RULES.text_of(cut)
    assert error.value.kind == "too_long"
    assert UtteranceRules(RULES.taxonomy, 8, "last_sentence").text_of(cut) == "Well. I never said that."


@given(st.text(max_size=60))
@settings(max_examples=80, deadline=None)
def test_whatever_comes_is_one_clean_line_or_refused(text: str) -> None:
    try:
        found = RULES.check(RULES.text_of(Reply(text, StopReason.STOP, Usage())))
    except ParseError:
        return
    assert found == " ".join(text.split())
    assert 1 <= len(found.split()) <= 8
