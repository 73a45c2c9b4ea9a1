"""The real corpora, where they are present: only counts, ids and digests stand here."""

import time
from collections import Counter
from pathlib import Path

import pytest

from esckit.text import ids_digest
from tests.data.corpus_files import read, read_skipping

# file: dialogues, utterances, of seekers, of supporters, supporter first, supporter last, repeats, ids digest, first id
FILES = {
    "esconv/train.txt": (910, 26648, 13889, 12759, 488, 607, 72, "8208b396bfa8e4e4", "esconv-a2e71fab0cc9"),
    "esconv/valid.txt": (195, 5678, 2956, 2722, 101, 141, 16, "b194e01eb3665841", "esconv-967d212ca612"),
    "esconv/test.txt": (195, 6039, 3144, 2895, 94, 127, 11, "b0540533b910d284", "esconv-b3732e047ef6"),
    "ppdpp/esc-train.txt": (1040, 30621, 15965, 14656, 545, 689, 79, "f6b624b8a7488280", "esconv-bceee9e10bbf"),
    "ppdpp/esc-valid.txt": (130, 3724, 1952, 1772, 63, 94, 6, "29687b10d9286503", "esconv-967d212ca612"),
    "ppdpp/esc-test.txt": (130, 4020, 2072, 1948, 75, 92, 14, "ecf783e5e5a53a4c", "esconv-d76017fa0d05"),
}
LABELS = {
    "Question": 3801,
    "Restatement or Paraphrasing": 1089,
    "Reflection of feelings": 1436,
    "Self-disclosure": 1713,
    "Affirmation and Reassurance": 2827,
    "Providing Suggestions": 2954,
    "Information": 1215,
    "Others": 3341,
}


@pytest.fixture
def real(corpora: Path) -> Path:
    if not all((corpora / name).is_file() for name in FILES):
        pytest.skip("real corpora not found: set ESCKIT_DATA (see docs/data.md)")
    return corpora


@pytest.mark.parametrize("name", FILES)
def test_counts_of_a_file(real: Path, name: str) -> None:
    corpus, codes = read(real / name)
    turns = [turn for dialogue in corpus.dialogues for turn in dialogue.turns]
    speakers = Counter(turn.speaker for turn in turns)
    assert FILES[name] == (
        len(corpus.dialogues),
        len(turns),
        speakers["seeker"],
        speakers["supporter"],
        sum(dialogue.turns[0].speaker == "supporter" for dialogue in corpus.dialogues),
        sum(dialogue.turns[-1].speaker == "supporter" for dialogue in corpus.dialogues),
        codes["repeat", "N"],
        ids_digest(corpus.dialogues)[:16],
        corpus.dialogues[0].id,
    )
    assert corpus.format == ("esconv-hub" if name.startswith("esconv") else "ppdpp")


@pytest.mark.parametrize("family", ["esconv", "ppdpp"])
def test_a_family_gives_no_warning_and_loads_in_seconds(real: Path, family: str) -> None:
    begun = time.process_time()
    corpus, sink = read_skipping(real / family)
    assert time.process_time() - begun < 5
    assert (len(corpus.dialogues), corpus.n_records, corpus.n_refused) == (1300, 1300, 0)
    assert ids_digest(corpus.dialogues) == "4898fdbbade0e85c675e057562f7cb470fc8c611ea49e09899265be0382bf393"
    codes = Counter((issue.severity, issue.code) for issue in sink.issues)
    assert all(severity == "N" for severity, _ in codes)
    assert (codes["N", "duplicate_situation"], codes["N", "repeat"]) == (5, 99)
    assert codes["N", "rating_zero"] == (4 if family == "esconv" else 0)
    labels = Counter(turn.source_strategy for dialogue in corpus.dialogues for turn in dialogue.turns)
    assert labels == LABELS | {None: 19989}


def test_surveys(real: Path) -> None:
    surveys = [dialogue.survey for dialogue in read(real / "esconv")[0].dialogues]
    assert sum(survey is not None and survey.final_intensity is None for survey in surveys) == 150
    missing = Counter(
        issue.field for issue in read_skipping(real / "esconv")[1].issues if issue.code == "survey_missing"
    )
    assert missing["survey_score.supporter"] == 185


def test_the_families_hold_the_same_dialogues(real: Path) -> None:
    esconv, ppdpp = (read(real / family)[0].dialogues for family in ("esconv", "ppdpp"))
    assert {dialogue.id: dialogue.turns for dialogue in esconv} == {dialogue.id: dialogue.turns for dialogue in ppdpp}


def test_the_first_original_record_is_line_172_of_the_hub_file(real: Path) -> None:
    corpus, sink = read_skipping(real / "esconv" / "original_record_0.json")
    dialogue = corpus.dialogues[0]
    assert (corpus.format, dialogue.id, len(dialogue.turns)) == ("esconv", "esconv-9b1f37be6d7e", 27)
    assert sum(turn.speaker == "seeker" for turn in dialogue.turns) == 13
    assert {i: turn.feedback for i, turn in enumerate(dialogue.turns) if turn.feedback} == {
        4: 5, 8: 5, 11: 5, 15: 4, 18: 5, 23: 4,
    }  # fmt: skip
    contents = [issue for issue in sink.issues if issue.code == "white_space" and issue.field != "situation"]
    assert len(contents) == 17
    hub = read(real / "esconv" / "train.txt")[0].dialogues[171]
    assert hub.id == dialogue.id
    assert hub.survey == dialogue.survey
    assert hub.scenario == dialogue.scenario
    assert [turn.text for turn in hub.turns] == [turn.text for turn in dialogue.turns]
    assert [turn.source_strategy for turn in hub.turns] == [turn.source_strategy for turn in dialogue.turns]


def test_the_extes_record(real: Path) -> None:
    corpus, codes = read(real / "extes" / "sample.json")
    dialogue = corpus.dialogues[0]
    assert (corpus.format, dialogue.id, len(dialogue.turns)) == ("extes", "extes-f28c2927d17f", 16)
    assert [turn.source_strategy for turn in dialogue.turns if turn.source_strategy] == [
        "Reflective Statements", "Emotional Validation", "Suggest Options", "Empathetic Statements", "Affirmation",
    ]  # fmt: skip
    assert codes == {("unlabelled", "N"): 3}
