"""Files as they come from elsewhere: packed, from tables, alone in a folder, or in a layout that is not read."""

import gzip
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from esckit.data.formats import FORMATS, shown
from esckit.errors import DataError
from tests.data.corpus_files import extes, hub, lines, original, own, ppdpp, read, read_skipping, write

RATINGS = ("initial_emotion_intensity", "empathy", "relevance", "final_emotion_intensity")


def table(*records: dict[str, Any]) -> bytes:
    """Parquet with the records as rows."""
    target = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(records)), target)
    return target.getvalue()


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    target = io.BytesIO()
    columns = {"conv": "1", "speaker": "user", "text": "a"}
    both = pa.table([[value] for value in (*columns.values(), "b")], names=[*columns, "text"])
    parquet.write_table(both, target)
    assert "2 columns that are called 'text'" in refused(write(tmp_path, target.getvalue()))


def rated(values: dict[str, Any]) -> dict[str, Any]:
    return original(survey_score={"seeker": values, "supporter": {"relevance": "5"}})


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.whole_file
    return str(caught.value)


# ---------------------------------------------------------------- ratings


@pytest.mark.parametrize("written", [4, 4.0, "4", "4.0", " 4.00 "])
def test_a_whole_rating_is_read_however_it_is_written(tmp_path: Path, written: Any) -> None:
    corpus, codes = read(write(tmp_path, [rated(dict.fromkeys(RATINGS, written))]))
    survey = corpus.dialogues[0].survey
    assert survey is not None
    assert {survey.initial_intensity, survey.empathy, survey.relevance, survey.final_intensity} == {4}
    assert ("rating_invalid", "W") not in codes


@pytest.mark.parametrize("written", [4.5, "4.5", 6.0, "9", -4.0, "4.0.0", "4,0", 44])
def test_a_rating_between_or_beyond_is_invalid(tmp_path: Path, written: Any) -> None:
    corpus, codes = read(write(tmp_path, [rated(dict.fromkeys(RATINGS, written))]))
    assert codes["rating_invalid", "W"] == 4
    assert corpus.dialogues[0].survey is not None
    assert corpus.dialogues[0].survey.empathy is None


def test_zero_is_noted_as_a_number_too(tmp_path: Path) -> None:
    assert read(write(tmp_path, [rated(dict.fromkeys(RATINGS, 0.0))]))[1]["rating_zero", "N"] == 4


# ---------------------------------------------------------------- gzip and Parquet


@pytest.mark.parametrize("content", [json.dumps([original(1), original(2)]), lines(original(1), original(2))])
def test_gzip_is_read_as_what_it_holds(tmp_path: Path, content: str) -> None:
    packed = write(tmp_path, gzip.compress(content.encode()), "corpus.gz")
    assert read(packed)[0].dialogues[1].turns == read(write(tmp_path, content))[0].dialogues[1].turns


@pytest.mark.parametrize("cut", [-40, 12])
def test_a_damaged_gzip_is_said_to_be_one(tmp_path: Path, cut: int) -> None:
    content = gzip.compress(lines(*(original(number) for number in range(9))).encode())
    damaged = content[:cut] if cut < 0 else content[:cut] + b"\xff" * 40
    assert "a gzip file that" in refused(write(tmp_path, damaged))


@pytest.mark.parametrize(
    "records",
    [
        (original(1), original(2)),
        (hub(1), hub(2)),
        (ppdpp(1), ppdpp(2)),
        (extes(), extes({"User": "Hi."}, {"AI": "Hello."})),
        (own(1), own(2)),
        ({"text": json.dumps(hub(1))}, {"text": json.dumps(hub(2))}),
    ],
)
def test_parquet_gives_the_dialogues_of_json(tmp_path: Path, records: tuple[dict[str, Any], ...]) -> None:
    corpus, codes = read(write(tmp_path / "table", table(*records)))
    expected, json_codes = read(write(tmp_path / "json", lines(*records)))
    assert corpus.format == expected.format
    assert [one.turns for one in corpus.dialogues] == [one.turns for one in expected.dialogues]
    assert [one.survey for one in corpus.dialogues] == [one.survey for one in expected.dialogues]
    assert {code for code, severity in codes if severity == "W"} == {code for code, sev in json_codes if sev == "W"}


def test_a_gap_in_a_column_of_ratings_is_missing(tmp_path: Path) -> None:
    rows = [rated({"empathy": 4.0, "relevance": float("nan")}), rated({"empathy": 3.0, "relevance": 2.0})]
    corpus, codes = read(write(tmp_path, table(*rows)))
    surveys = [(one.survey.empathy, one.survey.relevance) for one in corpus.dialogues if one.survey]
    assert surveys == [(4, None)]
    assert ("rating_invalid", "W") not in codes


def test_a_decimal_rating_of_a_table_is_read(tmp_path: Path) -> None:
    corpus, _ = read(write(tmp_path, table(rated(dict.fromkeys(RATINGS, Decimal("4.00"))))))
    assert corpus.dialogues[0].survey is not None
    assert corpus.dialogues[0].survey.empathy == 4


def test_a_damaged_parquet_is_said_to_be_one(tmp_path: Path) -> None:
    assert "a Parquet file that cannot be read" in refused(write(tmp_path, b"PAR1" + b"\0" * 80))
    assert "holds no dialogue" in refused(write(tmp_path, table(hub())[:0]))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"BZh91AY&SY" + b"\0" * 90, "bzip2"),
        (b"\xfd7zXZ\0" + b"\0" * 90, "xz"),
        (b"\x28\xb5\x2f\xfd" + b"\0" * 90, "Zstandard"),
        (b"ARROW1\0\0" + b"\0" * 90, "Arrow"),
        (b"\x80\x04\x95" + b"\0" * 90, "pickle"),
        (b"x" * 257 + b"ustar\0" + b"\0" * 250, "tar archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html></html>", "web page"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, content: bytes, kind: str) -> None:
    message = refused(write(tmp_path, content))
    assert kind in message
    assert "NUL" not in message


def test_a_tar_in_gzip_is_named(tmp_path: Path) -> None:
    assert "tar archive" in refused(write(tmp_path, gzip.compress(b"x" * 257 + b"ustar\0" + b"\0" * 250)))


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("name", ["ESConv.json", "ESConv.json.gz", "ESConv.parquet", "corpus.jsonl"])
def test_a_folder_with_one_corpus_file_is_that_file(tmp_path: Path, name: str) -> None:
    contents = {".gz": gzip.compress(json.dumps([original()]).encode()), ".parquet": table(original())}
    write(tmp_path, contents.get(Path(name).suffix, lines(original())), name)
    write(tmp_path, "read me", "README.md")
    write(tmp_path, "terms", "LICENSE.txt")
    corpus, _ = read(tmp_path)
    assert [(file.name, file.split) for file in corpus.files] == [(name, None)]
    assert corpus.ignored_files == ("LICENSE.txt", "README.md")


def test_a_folder_with_two_corpus_files_asks_which(tmp_path: Path) -> None:
    write(tmp_path, [original(1)], "ESConv.json")
    write(tmp_path, [original(2)], "FailedESConv.json")
    message = refused(tmp_path)
    assert "2 corpus files" in message
    assert str(tmp_path / "ESConv.json") in message
    assert "'FailedESConv.json'" in message


def test_split_files_may_be_packed_or_come_in_shards(tmp_path: Path) -> None:
    write(tmp_path, table(hub(1)), "train-00000-of-00002.parquet")
    write(tmp_path, table(hub(2)), "train-00001-of-00002.parquet")
    write(tmp_path, gzip.compress(lines(hub(3)).encode()), "test.jsonl.gz")
    corpus, _ = read(tmp_path)
    assert [(file.name, file.split) for file in corpus.files] == [
        ("train-00000-of-00002.parquet", "train"), ("train-00001-of-00002.parquet", "train"), ("test.jsonl.gz", "test"),
    ]  # fmt: skip
    (tmp_path / "train-00000-of-00002.parquet").unlink()
    assert "all shards of the split train" in refused(tmp_path)


# ---------------------------------------------------------------- layouts that are not read

CARD = {"base": "Age: none", "res": "x", "source": "ESconv", "id": 1}


@pytest.mark.parametrize("container", ["array", "lines", "table"])
def test_role_cards_are_named_with_the_way_out(tmp_path: Path, container: str) -> None:
    content = {"array": [CARD], "lines": lines(CARD), "table": table(CARD)}
    message = refused(write(tmp_path, content[container]))
    assert "role cards" in message
    assert "docs/data.md" in message


@pytest.mark.parametrize("name", FORMATS)
def test_the_two_lines_that_errors_show_can_be_read(tmp_path: Path, name: str) -> None:
    corpus, _ = read(write(tmp_path, "\n".join(FORMATS[name].example) + "\n"))
    assert corpus.format == name
    assert corpus.dialogues[0].turns[0].speaker == "seeker"


@pytest.mark.parametrize(
    ("record", "format", "says"),
    [
        ({"mesages": []}, "messages", "has 'mesages' in place of 'messages'"),
        (
            {"conversation_id": 7, "speaker": "a", "words": "b"},
            "table",
            "has 'conversation_id', 'speaker', lacks 'text'",
        ),
        ({"dialogs": [], "situation": "Invented."}, "esconv", "has 'situation', has 'dialogs' in place of 'dialog'"),
        ({"prompt": "x", "answer": "y"}, "jsonl", "nothing in common"),
        (
            {"chat": [{"author": "A", "body": "Invented."}, {"author": "B", "body": "Too."}]},
            "messages",
            "'chat' is a list of objects with 'author', 'body'; say what holds what: "
            "--column messages=chat --column speaker=NAME --column text=NAME",
        ),
        (
            {"the chat": [{"role": "A", "content": "Invented.", "n": 3}]},
            "messages",
            "say what holds what: --column 'messages=the chat'",
        ),
    ],
)
def test_an_unknown_file_shows_the_closest_format(
    tmp_path: Path, record: dict[str, Any], format: str, says: str
) -> None:
    message = refused(write(tmp_path, [record]))
    assert says in message
    assert message.endswith(shown(format))
    assert "Invented" not in message


def test_a_folder_around_the_files_is_told_with_the_folder_to_name(tmp_path: Path) -> None:
    (tmp_path / "snapshot/data").mkdir(parents=True)
    (tmp_path / "snapshot/notes").mkdir()
    (tmp_path / "snapshot/data/train-00000-of-00001.parquet").touch()
    assert f"such as {tmp_path / 'snapshot/data'}" in refused(tmp_path / "snapshot")


def test_a_text_that_is_no_table_is_not_quoted(tmp_path: Path) -> None:
    message = refused(write(tmp_path, "Invented words, said aloud\nAnd an answer, in full\n"))
    assert "what looks like CSV" in message
    assert message.endswith(shown("table"))
    assert "nvented" not in message


# ---------------------------------------------------------------- speakers


@pytest.mark.parametrize(
    ("seeker", "supporter"),
    [("user", "assistant"), ("Client", "THERAPIST"), ("help seeker", "Counsellor"), ("Help_Seeker", " ai ")],
)
def test_speaker_words_mean_the_same_in_every_format(tmp_path: Path, seeker: str, supporter: str) -> None:
    words = (seeker, supporter)
    turns = [{"speaker": word, "text": f"Invented {word}."} for word in words]
    dialog = [{"speaker": word, "annotation": {}, "content": f"Invented {word}."} for word in words]
    for record in (own(turns=turns), original(dialog=dialog), hub(dialog=turns)):
        corpus, sink = read_skipping(write(tmp_path, [record]))
        assert [turn.speaker for turn in corpus.dialogues[0].turns] == ["seeker", "supporter"]
        assert [issue.code for issue in sink.issues].count("speaker_alias") == 2
