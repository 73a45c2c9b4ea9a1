"""ESConv's layouts: what becomes of each quirk."""

from pathlib import Path
from typing import Any

import pytest

from esckit.errors import DataError
from esckit.types import Dialogue, Survey
from tests.data.corpus_files import DATA, hub, lines, original, ppdpp, read, read_skipping, write


def one(folder: Path, record: dict[str, Any]) -> tuple[Dialogue, dict[str, int]]:
    """Read one record; return it and the codes noted, warnings with a ``!``."""
    corpus, codes = read(write(folder, [record]))
    return corpus.dialogues[0], {code + ("!" if severity == "W" else ""): n for (code, severity), n in codes.items()}


def said(speaker: str, text: str = "Hm.", **annotation: Any) -> dict[str, Any]:
    if speaker == "supporter":
        annotation = {"strategy": "Question"} | annotation
    return {"speaker": speaker, "annotation": annotation, "content": text}


def test_the_original_layout(tmp_path: Path) -> None:
    dialogue, codes = one(tmp_path, original())
    assert codes == {}
    assert dialogue.scenario.model_dump(exclude={"id"}) == {
        "situation": "Invented case 1.",
        "emotion_type": "anxiety",
        "problem_type": "job crisis",
        "experience_type": "Current Experience",
    }
    assert [turn.speaker for turn in dialogue.turns] == ["seeker", "supporter", "seeker"]
    assert [turn.source_strategy for turn in dialogue.turns] == [None, "Question", None]
    assert [turn.strategy for turn in dialogue.turns] == [None, None, None]
    assert [turn.feedback for turn in dialogue.turns] == [None, None, 4]
    assert dialogue.survey == Survey(
        initial_intensity=4,
        final_intensity=2,
        empathy=5,
        relevance=3,
        supporter_relevance=1,
        answers={
            "seeker_question1": "Fine.",
            "seeker_question2": "Good.",
            "supporter_question1": "Well.",
            "supporter_question2": "N.A",
        },
    )
    assert dialogue.source is not None
    assert dialogue.source.model_dump() == {
        "corpus": "esconv", "format": "esconv", "file": "corpus", "record": 0, "split": None,
    }  # fmt: skip


def test_one_dialogue_has_one_id_in_every_layout(tmp_path: Path) -> None:
    layouts = {"esconv": [original()], "esconv-hub": [hub()], "ppdpp": [ppdpp()]}
    for container in ("array", "lines"):
        ids = set()
        for name, records in layouts.items():
            corpus, _ = read(write(tmp_path, records if container == "array" else lines(*records)))
            assert corpus.format == name
            ids.add(corpus.dialogues[0].id)
        assert len(ids) == 1


@pytest.mark.parametrize(("records", "own"), [([original(1), original(2)], "array"), ([hub(1), hub(2)], "lines")])
def test_any_format_may_come_in_any_container(tmp_path: Path, records: list[dict[str, Any]], own: str) -> None:
    _, array = read(write(tmp_path, records))
    _, in_lines = read(write(tmp_path, lines(*records)))
    assert array["container", "N"] == (0 if own == "array" else 1)
    assert in_lines["container", "N"] == (0 if own == "lines" else 1)
    assert not read(write(tmp_path, lines(records[0])))[1]["container", "N"]


def test_rows_with_a_text_column_are_unwrapped(tmp_path: Path) -> None:
    rows = [{"text": lines(record).strip()} for record in (hub(1), hub(2))]
    corpus, codes = read(write(tmp_path, lines(*rows)))
    assert (corpus.format, len(corpus.dialogues), codes["text_column", "N"]) == ("esconv-hub", 2, 2)
    rows[1]["text"] = rows[1]["text"].replace('"situation"', '"emotion_type"')
    with pytest.raises(DataError, match="line 2, text: found the key 'emotion_type' twice"):
        read(write(tmp_path, lines(*rows)))


def test_the_first_telling_record_among_twenty_decides(tmp_path: Path) -> None:
    undecided = [original(n, dialog=[]) for n in range(19)]
    corpus, _ = read_skipping(write(tmp_path, [*undecided, hub()]), max_refused_share=1.0)
    assert (corpus.format, len(corpus.dialogues), corpus.n_refused) == ("esconv-hub", 1, 19)


def test_failed_esconv_needs_no_option() -> None:
    corpus, codes = read(DATA / "failed_esconv.json")
    assert corpus.format == "esconv"
    assert all(dialogue.id.startswith("esconv-") for dialogue in corpus.dialogues)
    assert [turn.source_strategy for turn in corpus.dialogues[0].turns if turn.speaker == "supporter"] == [
        "Questions", "Approval and Reassurance", "Direct Guidance",
    ]  # fmt: skip
    assert corpus.dialogues[0].survey is not None
    assert set(corpus.dialogues[0].survey.answers.values()) == {None}
    assert codes == {("speaker_alias", "N"): 14, ("white_space", "N"): 2, ("survey_missing", "N"): 10}


def test_the_ppdpp_layout_has_no_survey() -> None:
    corpus, codes = read(DATA / "ppdpp_style.txt")
    assert (corpus.format, len(corpus.dialogues), codes) == ("ppdpp", 3, {})
    assert corpus.dialogues[0].survey is None
    assert corpus.dialogues[0].scenario.experience_type is None


@pytest.mark.parametrize("word", ["Seeker ", "usr", "USER", "speaker", "patient", "Client", "help-seeker"])
def test_words_for_the_seeker(tmp_path: Path, word: str) -> None:
    dialogue, codes = one(tmp_path, original(dialog=[said("supporter"), said(word)]))
    assert dialogue.turns[1].speaker == "seeker"
    assert codes == {"speaker_alias": 1}


@pytest.mark.parametrize("word", ["sys", "Assistant", "listener", "therapist", "counselor", "counsellor", "AI"])
def test_words_for_the_supporter(tmp_path: Path, word: str) -> None:
    turn = said("supporter") | {"speaker": word}
    dialogue, codes = one(tmp_path, original(dialog=[said("seeker"), turn]))
    assert (dialogue.turns[1].speaker, dialogue.turns[1].source_strategy) == ("supporter", "Question")
    assert codes == {"speaker_alias": 1}


def test_turns_are_never_invented_dropped_or_reordered(tmp_path: Path) -> None:
    turns = [said("supporter", "a"), said("supporter", "a"), said("supporter", "b"), said("seeker", "c")]
    dialogue, codes = one(tmp_path, original(dialog=turns * 45))
    assert [turn.text for turn in dialogue.turns] == list("aabc" * 45)
    assert codes == {"same_speaker_run": 45, "repeat": 45}


def test_a_single_speaker_is_kept_with_a_warning(tmp_path: Path) -> None:
    assert one(tmp_path, original(dialog=[said("seeker")]))[1] == {"one_sided!": 1}


@pytest.mark.parametrize(
    ("score", "n_missing"),
    [
        (None, 1),
        ({}, 2),
        ({"seeker": {}, "supporter": {}}, 2),
        ({"seeker": None, "supporter": {"relevance": "3"}}, 1),
        ({"seeker": {"initial_emotion_intensity": "3"}, "supporter": {"relevance": 3}}, 3),
    ],
)
def test_missing_ratings_stay_missing(tmp_path: Path, score: Any, n_missing: int) -> None:
    dialogue, codes = one(tmp_path, original(survey_score=score))
    assert dialogue.survey is not None
    assert dialogue.survey.final_intensity is None
    assert codes == {"survey_missing": n_missing}


def test_missing_answers_and_annotations_are_noted(tmp_path: Path) -> None:
    record = original(seeker_question1="", dialog=[said("seeker"), said("supporter")])
    del record["seeker_question2"]
    record["dialog"][0]["annotation"] = None
    dialogue, codes = one(tmp_path, record)
    assert dialogue.survey is not None
    assert list(dialogue.survey.answers.values()) == [None, None, "Well.", "N.A"]
    assert codes == {"survey_missing": 3}


@pytest.mark.parametrize(
    ("value", "rating", "code"),
    [
        ("1", 1, None), (5, 5, None), (" 3 ", 3, None), ("0", None, "rating_zero"), (0, None, "rating_zero"),
        ("6", None, "rating_invalid!"), (-1, None, "rating_invalid!"), ("", None, "rating_invalid!"),
        ("good", None, "rating_invalid!"), (2.5, None, "rating_invalid!"), ("9" * 5000, None, "rating_invalid!"),
    ],
)  # fmt: skip
def test_ratings(tmp_path: Path, value: Any, rating: int | None, code: str | None) -> None:
    record = original()
    record["survey_score"]["supporter"]["relevance"] = value
    record["dialog"][2]["annotation"]["feedback"] = value
    dialogue, codes = one(tmp_path, record)
    assert dialogue.survey is not None
    assert dialogue.survey.supporter_relevance == dialogue.turns[2].feedback == rating
    assert codes == ({code: 2} if code else {})


@pytest.mark.parametrize("value", [True, ["4"], {"value": 4}])
def test_a_rating_of_another_type_is_refused(tmp_path: Path, value: Any) -> None:
    record = original()
    record["dialog"][2]["annotation"]["feedback"] = value
    with pytest.raises(DataError, match=r"dialog\[2\].annotation.feedback: found an? \w+; expected a rating"):
        read(write(tmp_path, [record]))


@pytest.mark.parametrize("key", ["situation", "emotion_type", "problem_type"])
@pytest.mark.parametrize("value", [None, " \n"])
def test_missing_metadata_is_warned_of(tmp_path: Path, key: str, value: str | None) -> None:
    dialogue, codes = one(tmp_path, original(**{key: value}))
    assert codes["metadata_missing!"] == 1
    assert getattr(dialogue.scenario, key) == ("" if key == "situation" else None)


def test_spelling_of_problems_is_kept(tmp_path: Path) -> None:
    assert one(tmp_path, original(problem_type="Issues with Parents"))[0].scenario.problem_type == "Issues with Parents"


def test_feedback_stays_where_it_is(tmp_path: Path) -> None:
    turns = [
        said("seeker", "a", feedback="3"),
        said("supporter", "b"),
        said("seeker", "c", feedback="4"),
        said("seeker", "d", feedback="5"),
    ]
    dialogue, codes = one(tmp_path, original(dialog=turns))
    assert [turn.feedback for turn in dialogue.turns] == [3, None, 4, 5]
    assert codes == {"feedback_without_target": 2, "same_speaker_run": 1}


def test_misplaced_annotations_are_ignored_with_a_warning(tmp_path: Path) -> None:
    turns = [said("seeker", "a", strategy="Question"), said("supporter", "b", feedback="5")]
    dialogue, codes = one(tmp_path, original(dialog=turns))
    assert (dialogue.turns[0].source_strategy, dialogue.turns[1].feedback) == (None, None)
    assert codes == {"misplaced_annotation!": 2}


@pytest.mark.parametrize("annotation", [{"strategy": ""}, {"strategy": None}, {"strategy": "  "}, {}])
def test_a_missing_label_is_warned_of_and_never_filled(tmp_path: Path, annotation: dict[str, Any]) -> None:
    turn = {"speaker": "supporter", "content": "Hm.", "annotation": annotation}
    dialogue, codes = one(tmp_path, original(dialog=[said("seeker"), turn]))
    assert dialogue.turns[1].source_strategy is None
    assert codes == {"unlabelled!": 1}


def test_a_label_is_kept_exactly(tmp_path: Path) -> None:
    dialogue, _ = one(tmp_path, original(dialog=[said("seeker"), said("supporter", strategy=" [others]  ")]))
    assert dialogue.turns[1].source_strategy == " [others]  "


def test_equal_situations_are_noted(tmp_path: Path) -> None:
    records = [original(1, situation="One Case."), original(2, situation=" one  case. "), original(3)]
    corpus, codes = read(write(tmp_path, records))
    assert len(corpus.dialogues) == 3
    assert codes["duplicate_situation", "N"] == 1


def test_a_refused_record_leaves_no_notes(tmp_path: Path) -> None:
    bad = original(2)
    bad["dialog"][0]["content"] = " two  spaces "
    bad["dialog"][2]["content"] = 7
    _, sink = read_skipping(write(tmp_path, [original(1), bad, original(3)]))
    assert sink.issues == []
