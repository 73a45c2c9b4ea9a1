"""Conversion to the Hub layout: byte for byte where the source has all of it, and what is said to be lost."""

import json
from pathlib import Path

from hypothesis import given, settings

from esckit.data.contexts import merge_runs
from esckit.data.corpus import read_corpus
from esckit.data.layouts import IssueList
from esckit.data.writers import hub_line, hub_losses
from esckit.text import dialogue_id
from esckit.types import Dialogue, Survey
from tests.data.dialogues import dialogue, dialogues, real, turn


def test_the_first_original_record_becomes_its_published_line(corpora: Path) -> None:
    whole = read_corpus(real(corpora, "esconv/original_record_0.json"), sink=IssueList())
    published = real(corpora, "esconv/train.txt").read_bytes().split(b"\n")[171]
    assert hub_line(whole.dialogues[0]).encode() == published
    assert hub_losses(whole.dialogues) == ["6 turns with the seeker's feedback"]


def test_published_lines_come_back_where_nothing_was_normalised(corpora: Path) -> None:
    sink = IssueList()
    whole = read_corpus(real(corpora, "esconv/valid.txt"), sink=sink)
    changed = {issue.record for issue in sink.issues if issue.code in ("white_space", "rating_zero")}
    lines = real(corpora, "esconv/valid.txt").read_text(encoding="ascii").split("\n")
    same = [hub_line(one) == line for one, line in zip(whole.dialogues, lines, strict=False)]
    assert [record for record, is_same in enumerate(same) if not is_same] == sorted(changed)


def test_what_is_missing_stays_missing() -> None:
    one = dialogue(turn("s", "héllo"), turn("c", "hi"), turn("c", "so", "Question"))
    rated = one.model_copy(update={"survey": Survey(initial_intensity=4, answers={"seeker_question2": "fine"})})
    record = json.loads(hub_line(rated))
    assert record["survey_score"] == {"seeker": {"initial_emotion_intensity": "4"}, "supporter": {}}
    assert record["dialog"] == [
        {"text": "héllo", "speaker": "usr"},
        {"text": "hi", "speaker": "sys"},
        {"text": "so", "speaker": "sys", "strategy": "Question"},
    ]
    assert (record["seeker_question1"], record["seeker_question2"]) == ("", "fine")
    assert hub_line(rated).isascii()


def test_mapped_labels_replace_the_originals_with_a_notice() -> None:
    one = dialogue(turn("s", "a"), turn("c", "b", "Question"), turn("c", "d", "Others"))
    turns = (one.turns[0], one.turns[1].model_copy(update={"strategy": "Clarification"}), one.turns[2])
    mapped = one.model_copy(update={"turns": turns, "taxonomy": "aflow", "mapping": "esconv_to_aflow"})
    labels = [item.get("strategy") for item in json.loads(hub_line(mapped))["dialog"]]
    assert labels == [None, "Clarification", None]
    assert hub_losses([mapped]) == ["2 original labels, replaced by mapped ones"]
    assert "1 merged turns' pieces, with their labels" in hub_losses([merge_runs(mapped)])


@settings(max_examples=40, deadline=None)
@given(dialogues)
def test_ids_survive_layout_merging_and_relabelling(any_dialogue: Dialogue) -> None:
    items = json.loads(hub_line(any_dialogue))["dialog"]
    speakers = {"usr": "seeker", "sys": "supporter"}
    assert dialogue_id("esconv", ((speakers[i["speaker"]], i["text"]) for i in items)) == any_dialogue.id
    relabelled = tuple(t.model_copy(update={"strategy": "Others"}) for t in any_dialogue.turns)
    assert merge_runs(any_dialogue.model_copy(update={"turns": relabelled})).id == any_dialogue.id
