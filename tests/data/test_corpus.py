"""Whole corpora: folders, samples, loaders of one's own."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from esckit.data.corpus import read_corpus
from esckit.data.formats import FORMATS, READABLE, RECORD_READERS
from esckit.data.layouts import IssueList
from esckit.errors import ConfigError, DataError
from esckit.protocols import DatasetLoader, IssueSink
from esckit.text import ids_digest
from esckit.types import Dialogue, Scenario, Source, Turn
from tests.data.corpus_files import BROKEN, hub, lines, original, own, read, read_skipping, write


def test_a_folder_of_split_files(tmp_path: Path) -> None:
    write(tmp_path, lines(hub(1), hub(2)), "esc-train.txt")
    write(tmp_path, lines(hub(3)), "esc-dev.jsonl")
    write(tmp_path, [hub(4)], "my-esc-test.json")
    write(tmp_path, "hello", "README.md")
    write(tmp_path, lines(hub(5)), "train.txt.bak")
    corpus, codes = read(tmp_path)
    assert corpus.path == str(tmp_path)
    assert [(file.name, file.split, file.n_records) for file in corpus.files] == [
        ("esc-train.txt", "train", 2), ("esc-dev.jsonl", "valid", 1), ("my-esc-test.json", "test", 1),
    ]  # fmt: skip
    assert corpus.files[0].sha256 == sha256((tmp_path / "esc-train.txt").read_bytes()).hexdigest()
    assert corpus.ignored_files == ("README.md", "train.txt.bak")
    sources = [dialogue.source for dialogue in corpus.dialogues]
    assert [(source.file, source.record, source.split) for source in sources if source] == [
        ("esc-train.txt", 0, "train"), ("esc-train.txt", 1, "train"), ("esc-dev.jsonl", 0, "valid"),
        ("my-esc-test.json", 0, "test"),
    ]  # fmt: skip
    assert codes == {("container", "N"): 1}


def test_a_dialogue_in_two_files_is_kept_in_the_first(tmp_path: Path) -> None:
    write(tmp_path, lines(hub(1), hub(2)), "train.txt")
    write(tmp_path, lines(hub(2)), "test.txt")
    corpus, sink = read_skipping(tmp_path)
    assert (len(corpus.dialogues), corpus.n_records, [file.n_records for file in corpus.files]) == (2, 3, [2, 1])
    assert [issue.detail for issue in sink.issues if issue.severity == "W"] == [
        "the same dialogue as record 1 of train.txt"
    ]


def test_records_are_counted_per_file_refused_ones_included(tmp_path: Path) -> None:
    write(tmp_path, lines(hub(1), hub(2), {"dialog": 7}), "train.txt")
    write(tmp_path, lines(hub(3), hub(4), {"dialog": 8}), "test.txt")
    corpus, _ = read_skipping(tmp_path)
    assert (corpus.n_records, corpus.n_refused, [file.n_records for file in corpus.files]) == (6, 2, [3, 3])


def test_exactly_half_may_be_refused(tmp_path: Path) -> None:
    corpus, _ = read_skipping(write(tmp_path, lines(hub(1), {"dialog": 7})))
    assert (corpus.n_records, corpus.n_refused) == (2, 1)


def test_the_samples_ship() -> None:
    esconv, _ = read("sample:esconv")
    assert (esconv.path, esconv.format, len(esconv.dialogues)) == ("sample:esconv", "esconv-hub", 20)
    assert [file.split for file in esconv.files] == ["train", "valid", "test"]
    extes, _ = read("sample:extes")
    assert (extes.format, len(extes.dialogues)) == ("extes", 8)


def test_every_format_has_a_record_reader_and_a_description() -> None:
    assert set(RECORD_READERS.targets) == set(FORMATS)
    for name in FORMATS:
        assert callable(RECORD_READERS.resolve(name))
        assert name in READABLE


def test_an_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown data set format 'extess'.*esconv-hub.*did you mean 'extes'"):
        read(write(tmp_path, [original()]), format="extess")


def word_lines(path: Path, *, sink: IssueSink) -> Iterator[Dialogue]:
    """A loader of one's own: one line of a text file is one dialogue of one turn."""
    for number, line in enumerate(path.read_text().splitlines()):
        if "bad" in line:
            sink.refuse(DataError("a bad line", path=str(path), record=number))
            continue
        yield Dialogue(scenario=Scenario(id=f"words:{line}"), turns=(Turn(speaker="seeker", text=line),))


def test_a_loader_of_ones_own_is_named_as_the_format(tmp_path: Path) -> None:
    loader: DatasetLoader = word_lines
    path = write(tmp_path, "one\nbad\ntwo\ntwo\n")
    found = list(loader(write(tmp_path, "one\n", "w"), sink=IssueList(go_on=True)))
    assert [dialogue.id for dialogue in found] == ["words:one"]
    name = "tests.data.test_corpus:word_lines"
    corpus, sink = read_skipping(path, format=name)
    assert corpus.format == name
    assert [(dialogue.id, dialogue.source.record) for dialogue in corpus.dialogues if dialogue.source] == [
        ("words:one", 0), ("words:two", 2),
    ]  # fmt: skip
    assert corpus.dialogues[0].source == Source(corpus=name, format=name, file="corpus", record=0)
    assert (corpus.n_records, corpus.n_refused) == (4, 1)
    assert [(issue.code, issue.record) for issue in sink.issues] == [("duplicate_dialogue", 3)]


def test_a_loader_that_yields_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no dialogue"):
        read(write(tmp_path, ""), format="tests.data.test_corpus:word_lines")


def test_a_forced_format_reads_what_auto_would(tmp_path: Path) -> None:
    for record, name in ((original(), "esconv"), (hub(), "esconv-hub"), (hub(), "ppdpp"), (own(), "jsonl")):
        path = write(tmp_path, lines(record))
        assert read(path, format=name)[0].format == name


def test_order_of_files_does_not_change_ids(tmp_path: Path) -> None:
    records = [original(n) for n in range(6)]
    forward = read(write(tmp_path, records))[0].dialogues
    backward = read(write(tmp_path, records[::-1]))[0].dialogues
    assert ids_digest(forward) == ids_digest(backward)
    assert [dialogue.id for dialogue in forward] == [dialogue.id for dialogue in backward][::-1]


def test_whole_file_errors_always_raise() -> None:
    with pytest.raises(DataError):
        read_corpus(BROKEN / "array_cut.json", sink=IssueList(go_on=True), max_refused_share=1.0)
