"""The project's own record format: strict, and lossless there and back."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.data.layouts import IssueList, read_dialogues
from esckit.errors import DataError
from esckit.records import write_records
from esckit.text import dialogue_id, normalise
from esckit.types import Context, Dialogue, Future, Scenario, SearchTree, Source, Survey, Turn, TurnPart
from tests.data.corpus_files import lines, original, own, read, read_skipping, write

texts = st.text(max_size=30).map(lambda raw: normalise(raw)[0])
spoken = texts.filter(bool)
labels = st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
ratings = st.none() | st.integers(1, 5)
optional = texts.map(lambda text: text or None)
parts = st.builds(TurnPart, text=spoken, strategy=labels, source_strategy=labels, feedback=ratings)
turns = st.builds(
    Turn,
    speaker=st.sampled_from(["seeker", "supporter"]),
    text=spoken,
    strategy=labels,
    source_strategy=labels,
    feedback=ratings,
    parts=st.lists(parts, max_size=3).map(tuple),
)
dialogues = st.builds(
    Dialogue,
    scenario=st.builds(
        Scenario,
        id=st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True),
        situation=texts,
        emotion_type=optional,
        problem_type=optional,
        experience_type=optional,
    ),
    turns=st.lists(turns, min_size=1, max_size=5).map(tuple),
    survey=st.none()
    | st.builds(
        Survey,
        initial_intensity=ratings,
        final_intensity=ratings,
        empathy=ratings,
        relevance=ratings,
        supporter_relevance=ratings,
        answers=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=9), optional, max_size=4),
    ),
    source=st.none()
    | st.builds(
        Source,
        corpus=spoken,
        format=spoken,
        file=spoken,
        record=st.integers(0, 10**9),
        split=st.sampled_from([None, "train"]),
    ),
    taxonomy=labels,
    mapping=labels,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(dialogues, min_size=1, max_size=4, unique_by=lambda dialogue: dialogue.id))
def test_there_and_back_gives_equal_dialogues_and_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, written: list[Dialogue]
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "corpus.jsonl"
    write_records(path, written)
    content = path.read_bytes()
    assert list(read_dialogues(path, format="jsonl", sink=IssueList())) == written
    write_records(path, list(read_dialogues(path, format="jsonl", sink=IssueList())))
    assert path.read_bytes() == content


def test_what_may_be_absent(tmp_path: Path) -> None:
    record = {"scenario": {}, "turns": [{"speaker": "seeker", "text": "Invented  opening."}]}
    corpus, codes = read(write(tmp_path, lines(record)))
    dialogue = corpus.dialogues[0]
    assert dialogue.id == dialogue_id("jsonl", [("seeker", "Invented opening.")])
    assert dialogue.source == Source(corpus="jsonl", format="jsonl", file="corpus", record=0)
    assert codes == {("white_space", "N"): 1, ("one_sided", "W"): 1}


def test_an_absent_id_is_that_of_the_unmerged_turns(tmp_path: Path) -> None:
    merged = {"speaker": "seeker", "text": "One. Two.", "parts": [{"text": "One."}, {"text": "Two."}]}
    corpus, _ = read(write(tmp_path, lines({"scenario": {}, "turns": [merged]})))
    assert corpus.dialogues[0].id == dialogue_id("jsonl", [("seeker", "One."), ("seeker", "Two.")])


def test_what_the_record_says_is_kept(tmp_path: Path) -> None:
    source = {"corpus": "esconv", "format": "esconv", "file": "ESConv.json", "record": 844, "split": "valid"}
    turn = {"speaker": "supporter", "text": "Hm.", "strategy": "Clarification", "source_strategy": "Question"}
    record = own(turns=[turn], source=source, taxonomy="aflow", mapping="esconv_to_aflow")
    dialogue = read(write(tmp_path, lines(record)))[0].dialogues[0]
    assert dialogue.source == Source(**source)
    assert (dialogue.turns[0].strategy, dialogue.turns[0].source_strategy) == ("Clarification", "Question")
    assert (dialogue.taxonomy, dialogue.mapping, dialogue.id) == ("aflow", "esconv_to_aflow", "own:1")
    in_folder = write(tmp_path / "folder", lines(record), "test.jsonl").parent
    assert read(in_folder)[0].dialogues[0].source == Source(**source | {"split": "test"})


def test_the_record_index_counts_refused_records(tmp_path: Path) -> None:
    path = write(tmp_path, lines(own(1), own(2, turns=7), own(3)))
    assert [dialogue.source.record for dialogue in read_skipping(path)[0].dialogues if dialogue.source] == [0, 2]


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"scenari0": 1}, ("'scenari0'", "did you mean 'scenario'?")),
        ({"scenario": []}, ("scenario: found an array", "an object")),
        ({"scenario": {"situaton": ""}}, ("scenario", "'situaton'", "'situation'")),
        ({"scenario": {"id": 7}}, ("scenario.id: found a number",)),
        ({"scenario": {"id": "x" * 65}}, ("scenario.id", "1 to 64")),
        ({"schema": 7}, ("schema: found a number", "esckit.dialogue/1")),
        ({"schema": "esckit.future/1"}, ("'esckit.future/1'", "'esckit.dialogue/1'")),
        ({"turns": {}}, ("turns: found an object",)),
        ({"turns": [7]}, ("turns[0]: found a number",)),
        ({"turns": [{"speaker": None, "text": "Hm."}]}, ("turns[0].speaker: found null",)),
        ({"turns": [{"speaker": "Seekr", "text": "Hm."}]}, ("'Seekr'", "did you mean 'seeker'?", "therapist")),
        ({"turns": [{"speaker": "seeker"}]}, ("turns[0].text: found nothing",)),
        ({"turns": [{"speaker": "seeker", "text": "Hm.", "feedback": True}]}, ("turns[0].feedback: found a boolean",)),
        ({"turns": [{"speaker": "seeker", "text": "Hm.", "parts": [{}]}]}, ("turns[0].parts[0].text",)),
        ({"turns": []}, ("no utterance",)),
        ({"survey": {"mood": 1}}, ("survey", "'mood'")),
        ({"survey": {"answers": [1]}}, ("survey.answers: found an array",)),
        ({"source": {"corpus": "x"}}, ("source.format: found nothing",)),
        ({"source": {"corpus": "x", "format": "x", "file": "x", "record": "one"}}, ("source.record: found a string",)),
        ({"taxonomy": 7}, ("taxonomy: found a number", "a string")),
    ],
)
def test_strictness(tmp_path: Path, change: dict[str, Any], facts: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        read(write(tmp_path, lines(own() | change)), format="jsonl")
    for fact in ("record 0, line 1", *facts):
        assert fact in str(caught.value)


def test_a_minor_schema_version_is_read(tmp_path: Path) -> None:
    assert read(write(tmp_path, lines(own(schema="esckit.dialogue/1.3"))))[0].n_records == 1


def test_the_same_id_in_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path, lines(own(1), own(2)), "train.jsonl")
    write(tmp_path, lines(own(3), own(2)), "test.jsonl")
    with pytest.raises(
        DataError, match=r"record 1, line 2, scenario.id: .*'own:2' again, first in record 1, line 2 of train.jsonl"
    ):
        read(tmp_path)


def test_ids_and_turns_survive_from_another_layout(tmp_path: Path) -> None:
    before = read(write(tmp_path, [original(1), original(2)]))[0].dialogues
    write_records(tmp_path / "out.jsonl", before)
    assert list(read(tmp_path / "out.jsonl")[0].dialogues) == list(before)


def test_the_schemas_of_files_that_users_keep_never_change() -> None:
    kept = {Dialogue: "dialogue", Context: "context", Future: "future", SearchTree: "tree"}
    assert {kind.SCHEMA for kind in kept} == {f"esckit.{name}/1" for name in kept.values()}
