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

from esckit.data.decoding import OWN_DATA
from esckit.errors import DataError
from tests.data.corpus_files import extes, hub, lines, original, own, ppdpp, read, read_skipping, write

RATINGS = ("initial_emotion_intensity", "empathy", "relevance", "final_emotion_intensity")


def table(*records: dict[str, Any]) -> bytes:
    """Parquet with the records as rows."""
    target = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(records)), target)
    return target.getvalue()


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


# ---------------------------------------------------------------- layouts that are known and not read

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Invented."}]
SHAREGPT = [{"from": "human", "value": "Invented."}, {"from": "gpt", "value": "Also invented."}]
MULTIESC = ppdpp(dialog=[{"text": "Invented.", "speaker": "sys", "strategy": "Question", "all_strategy": ["Question"]}])


@pytest.mark.parametrize(
    ("record", "name", "way_out"),
    [
        ({"messages": CHAT}, "chat records", OWN_DATA),
        ({"conversations": CHAT, "id": 7}, "chat records", OWN_DATA),
        (CHAT, "chat records", OWN_DATA),
        ({"id": "a", "conversations": SHAREGPT}, "ShareGPT", OWN_DATA),
        ({"base": "Age: none", "res": "x", "source": "ESconv", "id": 1}, "role cards", "docs/data.md"),
        (MULTIESC, "MultiESC", "docs/data.md"),
    ],
)
@pytest.mark.parametrize("container", ["array", "lines", "table"])
def test_a_known_foreign_layout_is_named_with_the_way_out(
    tmp_path: Path, record: Any, name: str, way_out: str, container: str
) -> None:
    if container == "table" and isinstance(record, list):
        pytest.skip("a row is an object")
    content = {"array": [record], "lines": lines(record)}
    message = refused(write(tmp_path, table(record) if container == "table" else content[container]))
    assert name in message
    assert way_out in message
    assert "Invented" not in message


def test_a_forced_format_does_not_read_multiesc_either(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="MultiESC"):
        read(write(tmp_path, lines(MULTIESC)), format="ppdpp")


def test_the_record_that_errors_show_can_be_read(tmp_path: Path) -> None:
    shown = OWN_DATA[OWN_DATA.index("{") : OWN_DATA.rindex("}") + 1]
    assert "esckit data convert" in OWN_DATA
    corpus, _ = read(write(tmp_path, shown))
    assert [turn.speaker for turn in corpus.dialogues[0].turns] == ["seeker", "supporter"]


@pytest.mark.parametrize("keys", [{"prompt": "x", "answer": "y"}, {"id": 1}])
def test_an_unknown_layout_shows_how_to_bring_data(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert OWN_DATA in refused(write(tmp_path, [keys]))


def test_a_csv_shows_how_to_bring_data(tmp_path: Path) -> None:
    message = refused(write(tmp_path, "speaker,text\nuser,hi\n"))
    assert "CSV" in message
    assert OWN_DATA in message


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
