"""Merging runs of one speaker: texts, pieces, labels and ratings."""

from hypothesis import given, settings

from esckit.data.contexts import RatedTurns, feedback_targets, merge_runs
from esckit.types import Dialogue
from tests.data.dialogues import dialogue, dialogues, turn

RUNS = dialogue(
    turn("s", "one"),
    turn("s", "two", feedback=2),
    turn("s", "two", feedback=4),
    turn("c", "three"),
    turn("c", "four", "Question"),
    turn("c", "five", "Others"),
    turn("s", "six"),
)


def test_texts_are_joined_and_repeats_stay() -> None:
    assert [(t.speaker, t.text) for t in merge_runs(RUNS).turns] == [
        ("seeker", "one two two"),
        ("supporter", "three four five"),
        ("seeker", "six"),
    ]


def test_pieces_keep_their_own_and_a_run_of_one_has_none() -> None:
    seeker, supporter, last = merge_runs(RUNS).turns
    assert [(part.text, part.feedback) for part in seeker.parts] == [("one", None), ("two", 2), ("two", 4)]
    assert [part.source_strategy for part in supporter.parts] == [None, "Question", "Others"]
    assert last.parts == ()
    assert seeker.feedback == 4


def test_label_is_that_of_the_first_or_last_labelled_piece() -> None:
    assert merge_runs(RUNS).turns[1].source_strategy == "Question"
    assert merge_runs(RUNS, label="last").turns[1].source_strategy == "Others"


def test_once_resolved_only_a_strategy_is_a_label() -> None:
    unknown = turn("c", "a", "Sympathy")
    known = turn("c", "b", "other").model_copy(update={"strategy": "Others"})
    plain = dialogue(unknown, known)
    merged = merge_runs(plain.model_copy(update={"taxonomy": "esconv"})).turns[0]
    assert (merged.strategy, merged.source_strategy) == ("Others", "other")
    assert merge_runs(plain).turns[0].source_strategy == "Sympathy"


def test_ids_stay() -> None:
    assert merge_runs(RUNS).id == RUNS.id


def test_feedback_rates_what_came_since_the_last_rating() -> None:
    rated = dialogue(
        turn("s", "a", feedback=3),
        turn("c", "b"),
        turn("s", "c"),
        turn("c", "d"),
        turn("s", "e", feedback=5),
        turn("s", "f", feedback=1),
        turn("c", "g"),
    )
    assert list(feedback_targets(rated)) == [RatedTurns(3, ()), RatedTurns(5, (1, 3)), RatedTurns(1, ())]
    assert list(feedback_targets(merge_runs(rated))) == list(feedback_targets(rated))


@settings(max_examples=60, deadline=None)
@given(dialogues)
def test_merging_twice_equals_once_and_keeps_the_order_of_words(any_dialogue: Dialogue) -> None:
    merged = merge_runs(any_dialogue)
    assert merge_runs(merged) == merged
    assert merge_runs(merged, label="last") == merged
    words = [word for t in any_dialogue.turns for word in t.text.split()]
    assert [word for t in merged.turns for word in t.text.split()] == words
    assert merged.id == any_dialogue.id
    assert [part.text for t in merged.turns for part in t.parts or (t,)] == [t.text for t in any_dialogue.turns]
