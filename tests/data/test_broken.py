"""Every malformed fixture gives the error that was promised: no traceback, no hang, no text of an utterance."""

import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from esckit.data.containers import MAX_DOCUMENT_BYTES, MAX_LINE_BYTES
from esckit.errors import DataError
from esckit.text import ids_digest
from tests.data.corpus_files import BROKEN, extes, hub, lines, original, ppdpp, read, read_skipping, write

FORMATS = ("esconv", "esconv-hub", "ppdpp", "extes", "jsonl")
SPEAKERS = ("seeker", "usr", "help-seeker", "supporter", "counsellor", "ai")

WHOLE_FILE = {
    "array_cut.json": ("line 75, column 5", "ends early"),
    "top_string.json": ("a string", *FORMATS),
    "top_number.json": ("a number", *FORMATS),
    "top_null.json": ("null", *FORMATS),
    "empty_object.json": ("an object", *FORMATS, "--format"),
    "unknown_keys.json": ("'question', 'answer'", *FORMATS, "--format", '{"scenario": '),
    "empty.json": ("holds no dialogue",),
    "empty_array.json": ("holds no dialogue",),
    "blank_lines.jsonl": ("holds no dialogue",),
    "utf16.jsonl": ("UTF-16", "byte offset 0", "Save it as UTF-8"),
    "invalid_utf8.json": ("byte offset 117", "Save it as UTF-8"),
    "nul.json": ("NUL", "byte offset 117", "Save it as UTF-8"),
    "python_literals.txt": ("Python literals", "single quotes", *FORMATS),
    "python_list.json": ("Python literals", *FORMATS),
    "table.tsv": ("no column for dialogue", "'speaker', 'text'", "--column dialogue=NAME"),
    "table.csv": ("no column for dialogue", "'speaker', 'text'", "--column dialogue=NAME"),
    "folder_two_valid": ("'dev.txt', 'valid.txt'", "train|valid"),
    "folder_without_splits": ("'all.txt', 'notes.md'", "train|valid"),
}

ONE_RECORD = {
    "lines_last_cut.jsonl": ("record 2, line 3", "column", "ends early"),
    "dialog_object.json": ("record 1, dialog:", "an object", "an array"),
    "dialog_missing.json": ("record 1, dialog:", "nothing", "an array"),
    "item_string.json": ("dialog[1]:", "a string", "an object"),
    "content_number.json": ("dialog[1].content", "a number", "a string"),
    "content_missing.json": ("dialog[1].content", "nothing", "a string"),
    "record_number.json": ("record 1:", "a number", "an object"),
    "speaker_null.json": ("dialog[1].speaker", "null", *SPEAKERS),
    "speaker_bot.json": ("dialog[1].speaker", "'bot'", *SPEAKERS),
    "speaker_control.json": ("dialog[1].speaker", r"'\x1b[31m\x00seker\r\nxx", "…'"),
    "survey_list.json": ("survey_score:", "an array", "an object"),
    "rating_boolean.json": ("survey_score.seeker.empathy", "a boolean", "1 to 5"),
    "strategy_list.json": ("dialog[1].annotation.strategy", "an array", "a string"),
    "dialog_empty.json": ("record 1", "no utterance"),
    "utterances_blank.json": ("record 1", "no utterance"),
    "invalid_utf8.jsonl": ("record 1, line 2", "byte offset 895", "Save it as UTF-8"),
    "nul.jsonl": ("record 1, line 2", "NUL", "byte offset 895"),
    "integer_5000_digits.jsonl": ("5,000 digits", "4,300"),
    "nan.jsonl": ("record 1, line 2", "NaN"),
    "infinity.jsonl": ("-Infinity",),
    "key_twice.jsonl": ("record 1, line 2", "'emotion_type'", "twice"),
    "key_twice.json": ("record 1", "'emotion_type'", "twice"),
    "own_id_twice.jsonl": ("'own:1'", "line 1", "line 3", "record 0", "record 2"),
    "own_unknown_key.jsonl": ("turns[1]", "'stratgy'", "did you mean 'strategy'?"),
    "own_schema_2.jsonl": ("schema", "'esckit.dialogue/2'", "'esckit.dialogue/1'"),
    "own_speaker.jsonl": ("turns[0].speaker", "'moderator'", "seeker, usr, user"),
    "own_id_form.jsonl": ("scenario.id", "'not an id!'"),
    "own_without_turns.jsonl": ("turns:", "nothing", "an array"),
    "mixed_formats.jsonl": ("record 1, line 2", "'extes'", "'esconv-hub'"),
}


def refusal(path: Path | str, **options: str) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    message = str(caught.value).partition("Readable would be, for example:\n")[0]
    assert "\n" not in message
    assert "nvented" not in message, "an utterance or a situation was quoted"
    return caught.value


def holds(error: DataError, *facts: str) -> None:
    for fact in facts:
        assert fact in str(error)


@pytest.mark.parametrize("name", WHOLE_FILE)
def test_the_whole_file_is_refused(name: str) -> None:
    error = refusal(BROKEN / name)
    holds(error, str(BROKEN / name), *WHOLE_FILE[name])
    assert error.whole_file
    with pytest.raises(DataError):
        read_skipping(BROKEN / name)


@pytest.mark.parametrize("name", ONE_RECORD)
def test_one_record_is_refused_and_its_neighbours_survive(name: str) -> None:
    error = refusal(BROKEN / name)
    holds(error, str(BROKEN / name), *ONE_RECORD[name])
    assert not error.whole_file
    corpus, sink = read_skipping(BROKEN / name)
    assert (len(corpus.dialogues), corpus.n_refused, corpus.n_records) == (2, 1, 3)
    assert [str(refused) for refused in sink.refusals] == [str(error)]


def test_every_fixture_is_used() -> None:
    accepted = {
        "plain.jsonl", "bom.jsonl", "crlf.jsonl", "bom_crlf_blank_lines.jsonl", "escapes.jsonl", "separators.jsonl",
        "dialogue_twice.json", "extra_keys.json", "six_of_ten.jsonl", "utterance_one_blank.json",
        "strategy_sympathy.json", "strategy_affirmation.json", "strategy_fused.json",
    }  # fmt: skip
    there = {path.name for path in BROKEN.iterdir() if not path.name.startswith(".")}
    assert there == accepted | WHOLE_FILE.keys() | ONE_RECORD.keys()


@pytest.mark.parametrize(
    ("name", "noted"),
    [
        ("bom.jsonl", {"bom"}),
        ("crlf.jsonl", {"crlf"}),
        ("bom_crlf_blank_lines.jsonl", {"bom", "crlf", "blank_line"}),
    ],
)
def test_marks_line_ends_and_blank_lines_change_nothing(name: str, noted: set[str]) -> None:
    plain, nothing = read(BROKEN / "plain.jsonl")
    corpus, codes = read(BROKEN / name)
    assert ids_digest(corpus.dialogues) == ids_digest(plain.dialogues)
    assert [dialogue.turns for dialogue in corpus.dialogues] == [dialogue.turns for dialogue in plain.dialogues]
    assert codes - nothing == dict.fromkeys(((code, "N") for code in noted), 1)


def test_escaped_control_characters_and_surrogates_are_mended() -> None:
    corpus, codes = read(BROKEN / "escapes.jsonl")
    assert corpus.dialogues[0].turns[0].text.endswith("invented speaker 1 \ufffd.")
    assert (codes["control_character", "N"], codes["surrogate", "N"]) == (1, 1)


def test_line_separators_inside_a_text_split_no_line() -> None:
    corpus, codes = read(BROKEN / "separators.jsonl")
    assert corpus.dialogues[0].turns[0].text == "one two three"
    assert len(corpus.dialogues) == 2
    assert codes["white_space", "N"] == 1


def test_a_blank_utterance_is_dropped_and_counted() -> None:
    corpus, codes = read(BROKEN / "utterance_one_blank.json")
    assert [len(dialogue.turns) for dialogue in corpus.dialogues] == [4, 3, 4]
    assert codes["empty_text", "W"] == 1


def test_a_dialogue_that_comes_twice_is_kept_once() -> None:
    corpus, sink = read_skipping(BROKEN / "dialogue_twice.json")
    twice = [issue for issue in sink.issues if issue.code == "duplicate_dialogue"]
    assert [(issue.severity, issue.record, issue.detail) for issue in twice] == [
        ("W", 2, "the same dialogue as record 0 of dialogue_twice.json")
    ]
    assert [dialogue.source.record for dialogue in corpus.dialogues if dialogue.source] == [0, 1]
    assert (corpus.n_records, corpus.n_refused) == (3, 0)


def test_extra_keys_of_a_foreign_corpus_are_counted_by_key() -> None:
    corpus, sink = read_skipping(BROKEN / "extra_keys.json")
    extra = {(issue.field, issue.detail) for issue in sink.issues if issue.code == "extra_key"}
    assert extra == {(None, "'colour'"), ("dialog[0]", "'time'"), ("survey_score.seeker", "'mood'")}
    assert len(corpus.dialogues) == 1


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("strategy_sympathy.json", "Sympathy"),
        ("strategy_affirmation.json", "Affirmation"),
        ("strategy_fused.json", "Providing Suggestions or Information"),
    ],
)
def test_labels_are_not_judged_while_reading(name: str, label: str) -> None:
    corpus, _ = read(BROKEN / name)
    turn = corpus.dialogues[1].turns[1]
    assert (turn.source_strategy, turn.strategy) == (label, None)


def test_more_than_half_refused_is_refused() -> None:
    with pytest.raises(DataError, match=r"more than half of 10 records refused \(6\); is --format right\?") as caught:
        read_skipping(BROKEN / "six_of_ten.jsonl")
    assert caught.value.whole_file
    assert "'bot'" in str(caught.value)
    corpus, sink = read_skipping(BROKEN / "six_of_ten.jsonl", max_refused_share=1.0)
    assert (len(corpus.dialogues), corpus.n_refused, len(sink.refusals)) == (4, 6, 6)


# ---------------------------------------------------------------- too large for a file in the repository


def test_a_line_over_the_limit_is_refused_unparsed(tmp_path: Path) -> None:
    long = hub(2)
    long["dialog"][0]["text"] = "x" * 10_000_000
    path = write(tmp_path, lines(hub(1), long, hub(3)))
    holds(refusal(path), "record 1, line 2", "10,000,", f"{MAX_LINE_BYTES:,}", "8 MiB")
    corpus, _ = read_skipping(path)
    assert (len(corpus.dialogues), corpus.n_refused) == (2, 1)
    assert corpus.dialogues[1].source.record == 2  # type: ignore[union-attr]


def test_a_first_line_over_the_limit_hides_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, '{"x": "' + "x" * 9_000_000 + '"}\n' + lines(hub(1), hub(2)))
    corpus, _ = read_skipping(path)
    assert (corpus.format, len(corpus.dialogues), corpus.n_refused) == ("esconv-hub", 2, 1)


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    record = json.dumps(hub(1, pad=""))
    record = record.replace('"pad": ""', '"pad": "' + "x" * (MAX_LINE_BYTES - len(record)) + '"')
    for end in ("\n", "\r\n", ""):
        assert len(read(write(tmp_path, record + end))[0].dialogues) == 1
    assert "8 MiB" in str(refusal(write(tmp_path, record + " \n")))


def test_an_utterance_over_a_million_characters_is_refused(tmp_path: Path) -> None:
    long = original(2)
    long["dialog"][0]["content"] = "x" * 10_000_000
    path = write(tmp_path, [original(1), long, original(3)])
    holds(refusal(path), "record 1, dialog[0].content", "10,000,000 characters", "1,000,000 characters")
    assert len(read_skipping(path)[0].dialogues) == 2


def test_an_overlong_utterance_is_kept_with_a_warning(tmp_path: Path) -> None:
    long = original()
    long["dialog"][0]["content"] = "x" * 20_001
    corpus, codes = read(write(tmp_path, [long]))
    assert len(corpus.dialogues[0].turns[0].text) == 20_001
    assert codes["long_text", "W"] == 1


def test_nesting_too_deep_is_refused(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    path = write(tmp_path, lines(hub(1)) + f'{{"dialog": {deep}}}\n' + lines(hub(3)))
    holds(refusal(path), "record 1, line 2", "nested too deeply")
    assert len(read_skipping(path)[0].dialogues) == 2
    error = refusal(write(tmp_path, deep))
    holds(error, "nested too deeply")
    assert error.whole_file


def test_an_array_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "sparse.json"
    with path.open("wb") as target:
        target.write(b"[")
        target.truncate(MAX_DOCUMENT_BYTES + 2)
    error = refusal(path)
    holds(error, "512 MiB", "JSON lines")
    assert error.whole_file


def test_no_large_fixture_takes_600_megabytes(tmp_path: Path) -> None:
    long = "x" * 10_000_000
    contents = (
        lines(hub(1), hub(2, situation=long), hub(3)),
        json.dumps([original(1), original(2, dialog=[{"speaker": "seeker", "content": long}]), original(3)]),
        "[" * 100_000,
    )
    for content in contents:
        path = write(tmp_path, content)
        tracemalloc.start()
        with pytest.raises(DataError):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 600 * 2**20
        tracemalloc.stop()


# ---------------------------------------------------------------- zips


def zipped(folder: Path, *members: tuple[str, str]) -> Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return write(folder, buffer.getvalue(), "corpus.zip")


def test_a_zip_is_read_in_memory(tmp_path: Path) -> None:
    path = zipped(
        tmp_path,
        ("__MACOSX/ExTES.json", "rubbish"),
        ("readme.txt", "hello"),
        ("folder/", ""),
        ("ExTES.json", json.dumps([extes()])),
    )
    corpus, _ = read(path)
    assert (corpus.format, len(corpus.dialogues), corpus.files[0].name) == ("extes", 1, "corpus.zip")
    assert [entry.name for entry in tmp_path.iterdir()] == ["corpus.zip"]


@pytest.mark.parametrize("name", ["../../outside.json", "/outside.json", "a/../../outside.json", "C:\\outside.json"])
def test_the_name_of_a_zip_member_leads_nowhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "here").mkdir()
    corpus, _ = read(zipped(tmp_path / "here", (name, json.dumps([extes()]))))
    assert len(corpus.dialogues) == 1
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["corpus.zip", "here"]


def test_a_link_in_a_zip_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text(json.dumps([extes()]))
    link = zipfile.ZipInfo("corpus.json")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, str(tmp_path / "secret.json"))
    refusal(write(tmp_path, buffer.getvalue(), "corpus.zip"))


@pytest.mark.parametrize("names", [("a.json", "b.json"), ("a.txt",), ()])
def test_a_zip_without_exactly_one_json_member_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    error = refusal(zipped(tmp_path, *((name, "[]") for name in names)))
    holds(error, *names, "exactly one .json member")
    assert error.whole_file


def test_a_zip_member_of_too_large_a_declared_size_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path, ("a.json", "[]"))
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (MAX_DOCUMENT_BYTES + 1).to_bytes(4, "little")
    path.write_bytes(content)
    holds(refusal(path), f"{MAX_DOCUMENT_BYTES + 1:,} bytes", "512 MiB")


def test_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    whole = zipped(tmp_path, ("a.json", json.dumps([extes()]))).read_bytes()
    assert refusal(write(tmp_path, whole[: len(whole) // 2])).whole_file
    crc = whole.replace(b"a.json", b"b.json", 1)
    assert refusal(write(tmp_path, crc)).whole_file


# ---------------------------------------------------------------- paths and formats


def test_a_missing_path_says_how_to_get_the_corpora(tmp_path: Path) -> None:
    (tmp_path / "esconv").mkdir()
    holds(refusal(tmp_path / "escnov"), str(tmp_path / "escnov"), "docs/data.md", f"did you mean '{tmp_path}/esconv'?")
    holds(refusal(tmp_path / "a" / "b"), str(tmp_path / "a" / "b"), "docs/data.md")
    holds(refusal("sample:esconf"), "sample:esconf", "sample:esconv")
    holds(refusal("/dev/null"), "/dev/null", "neither a file nor a folder")
    holds(refusal("a\0b"), "docs/data.md")
    holds(refusal("x" * 5000), "cannot be read")


def test_a_wrong_format_is_named_with_the_right_one(tmp_path: Path) -> None:
    path = write(tmp_path, [original()])
    error = refusal(path, format="extes")
    holds(error, "'extes'", "`content` and `scene` or `description`", "'esconv'", "--format esconv")
    assert error.whole_file


def test_a_folder_of_several_formats_is_refused(tmp_path: Path) -> None:
    write(tmp_path, lines(hub()), "train.txt")
    write(tmp_path, [extes()], "test.json")
    holds(refusal(tmp_path), "train.txt is esconv-hub", "test.json is extes")


def test_the_two_text_layouts_mix_within_a_file(tmp_path: Path) -> None:
    corpus, _ = read(write(tmp_path, lines(hub(1), ppdpp(2), hub(3))))
    assert (corpus.format, len(corpus.dialogues)) == ("esconv-hub", 3)
    assert corpus.dialogues[1].survey is None
    corpus, _ = read(write(tmp_path, lines(ppdpp(1), hub(2))))
    assert corpus.format == "ppdpp"
    assert corpus.dialogues[1].survey is not None


@pytest.mark.parametrize("content", [b"\xff", b"\xef\xbb\xbf\xe9{}", b"abc\0", b"PK\x03\x04", b"\xff\xfe\0\0", b"[1,]"])
def test_more_rubbish_is_refused(tmp_path: Path, content: bytes) -> None:
    assert refusal(write(tmp_path, content)).whole_file


def test_a_cut_object_over_several_lines_is_located(tmp_path: Path) -> None:
    text = json.dumps(original(), indent=2)
    holds(refusal(write(tmp_path, text[:-40])), "line 40, column 26", "ends early")
    holds(refusal(write(tmp_path, text + "\n7")), "Extra data", f"line {len(text.splitlines()) + 1}, column 1")
    assert read(write(tmp_path, text))[0].format == "esconv"
    twice = text.replace('"emotion_type"', '"situation"', 1)
    holds(refusal(write(tmp_path, twice)), "record 0", "'situation'", "twice")


def test_a_word_close_to_a_speaker_is_suggested(tmp_path: Path) -> None:
    record = original()
    record["dialog"][0]["speaker"] = "Seekr"
    holds(refusal(write(tmp_path, [record])), "did you mean 'seeker'?")


def test_control_strings_of_chat_formats_are_noted_and_kept(tmp_path: Path) -> None:
    turns = [{"speaker": "seeker", "text": "Hi <|im_end|> [INST]"}, {"speaker": "supporter", "text": "Hello."}]
    record = {"schema": "esckit.dialogue/1", "scenario": {"id": "a"}, "turns": turns}
    (tmp_path / "own.jsonl").write_text(json.dumps(record) + "\n")
    corpus, codes = read(tmp_path / "own.jsonl")
    assert corpus.dialogues[0].turns[0].text == "Hi <|im_end|> [INST]"
    assert codes["control_token", "N"] == 2
