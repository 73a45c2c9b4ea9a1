"""Contexts: which supporter turns give one, what their prefixes hold, and their ids."""

import pytest
from hypothesis import given, settings

from esckit.data.contexts import contexts, merge_runs
from esckit.types import Dialogue
from tests.data.dialogues import dialogue, dialogues, turn

TALK = dialogue(
    turn("c", "0", "Others"),
    turn("s", "1"),
    turn("c", "2", "Question"),
    turn("c", "3"),
    turn("s", "4"),
    turn("c", "5", "Others"),
    situation="the problem",
)


def _texts(found: Dialogue, **options: object) -> list[str]:
    return ["".join(t.text for t in context.turns) for context in contexts(found, **options)]  # type: ignore[arg-type]


def test_one_for_every_supporter_turn_with_a_turn_before_it() -> None:
    found = list(contexts(TALK))
    assert [context.id for context in found] == [f"{TALK.id}#{index}" for index in (2, 3, 5)]
    assert _texts(TALK) == ["01", "012", "01234"]
    assert [context.reference for context in found] == [TALK.turns[index] for index in (2, 3, 5)]
    assert {context.dialogue_id for context in found} == {TALK.id}
    assert {context.n_dropped_turns for context in found} == {0}
    assert all(context.scenario == TALK.scenario for context in found)


def test_merged_dialogues_have_marked_ids() -> None:
    merged = merge_runs(TALK)
    assert [context.id for context in contexts(merged)] == [f"{TALK.id}#m2", f"{TALK.id}#m4"]
    assert [context.id for context in contexts(merged, merged=False)] == [f"{TALK.id}#2", f"{TALK.id}#4"]
    assert next(contexts(TALK, merged=True)).id == f"{TALK.id}#m2"


def test_last_turns_keeps_whole_turns_and_counts_the_rest() -> None:
    assert _texts(TALK, last_turns=2) == ["01", "12", "34"]
    assert [context.n_dropped_turns for context in contexts(TALK, last_turns=2)] == [0, 1, 3]


def test_a_supporter_opening_can_be_dropped() -> None:
    assert _texts(TALK, supporter_opening="drop") == ["1", "12", "1234"]
    assert [context.n_dropped_turns for context in contexts(TALK, supporter_opening="drop")] == [1, 1, 1]
    assert [context.id for context in contexts(TALK, supporter_opening="drop")] == [c.id for c in contexts(TALK)]
    assert _texts(TALK, supporter_opening="drop", last_turns=3) == ["1", "12", "4"]


def test_a_prefix_left_empty_gives_no_context() -> None:
    opening = dialogue(turn("c", "a"), turn("c", "b"), turn("s", "d"), turn("c", "e"))
    assert _texts(opening, supporter_opening="drop") == ["d"]
    assert _texts(opening) == ["a", "abd"]


def test_no_turn_at_all_is_no_window() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        next(contexts(TALK, last_turns=0))


@settings(max_examples=60, deadline=None)
@given(dialogues)
def test_prefix_and_dropped_turns_add_up(any_dialogue: Dialogue) -> None:
    merged = merge_runs(any_dialogue)
    found = list(contexts(merged, supporter_opening="drop"))
    assert all(context.turns[0].speaker == "seeker" == context.turns[-1].speaker for context in found)
    for context in found:
        index = int(context.id.rpartition("#m")[2])
        assert context.n_dropped_turns + len(context.turns) == index
        assert context.reference == merged.turns[index]
