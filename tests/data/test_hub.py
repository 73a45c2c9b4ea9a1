"""``hub:`` paths, with a stub in the place of the ``datasets`` library."""

import json
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest

from esckit.data.names import Names
from esckit.errors import DataError
from tests.data.corpus_files import chat, extes, hub, read, rows

Stub = Callable[..., list[tuple[str, str | None]]]


class LibraryError(Exception):
    """Stands for the library's own base class."""


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Puts a library in place that answers with these splits, or raises; returns what it was asked for."""

    def put(
        answer: dict[str, list[Any]] | Exception, *, offline: bool = True, endpoint: str = "https://hub.test"
    ) -> Any:
        asked: list[tuple[str, str | None]] = []

        def load_dataset(name: str, *, revision: str | None = None) -> dict[str, list[Any]]:
            asked.append((name, revision))
            if isinstance(answer, Exception):
                raise answer
            return answer

        library = SimpleNamespace(
            load_dataset=load_dataset,
            config=SimpleNamespace(HF_HUB_OFFLINE=offline, HF_ENDPOINT=endpoint),
            exceptions=SimpleNamespace(DatasetsError=LibraryError),
        )
        monkeypatch.setitem(sys.modules, "datasets", library)
        return asked

    return put


def text_rows(*records: dict[str, Any]) -> list[dict[str, str]]:
    return [{"text": json.dumps(record)} for record in records]


def test_rows_with_a_text_column(stub: Stub) -> None:
    test, train = text_rows(hub(3)), text_rows(hub(1), hub(2))
    asked = stub({"test": test, "validation": text_rows(hub(4)), "train": train, "extra": []})
    corpus, codes = read("hub:thu-coai/esconv@v1.0")
    assert asked == [("thu-coai/esconv", "v1.0")]
    assert (corpus.path, corpus.format) == ("hub:thu-coai/esconv@v1.0", "esconv-hub")
    assert [(file.name, file.split, file.n_records) for file in corpus.files] == [
        ("train", "train", 2), ("validation", "valid", 1), ("test", "test", 1),
    ]  # fmt: skip
    as_file = "".join(row["text"] + "\n" for row in train)
    assert corpus.files[0].sha256 == sha256(as_file.encode()).hexdigest()
    assert corpus.ignored_files == ("extra",)
    assert codes == {("text_column", "N"): 4}
    sources = [dialogue.source for dialogue in corpus.dialogues]
    assert [(source.file, source.record, source.split) for source in sources if source][1] == ("train", 1, "train")


def test_rows_with_columns(stub: Stub) -> None:
    stub({"train": [extes()]})
    corpus, _ = read("hub:someone/extes")
    assert (corpus.format, len(corpus.dialogues)) == ("extes", 1)


def test_rows_of_utterances_with_columns_of_their_own(stub: Stub) -> None:
    said = [{"conv": row["dialogue"], "who": row["speaker"], "words": row["text"]} for row in [*rows(1), *rows(2)]]
    stub({"train": said, "test": [{**row, "conv": 3} for row in said]})
    names = Names({"client": "seeker"}, {"dialogue": "conv", "speaker": "who", "text": "words"})
    corpus, _ = read("hub:someone/utterances", names=names)
    assert (corpus.format, [file.n_records for file in corpus.files]) == ("table", [2, 1])
    with pytest.raises(DataError, match=r"hub:someone/utterances.*nearest to table.*--column"):
        read("hub:someone/utterances")


def test_rows_of_chat_records(stub: Stub) -> None:
    stub({"train": [chat(1), chat(2)]})
    assert [len(one.turns) for one in read("hub:someone/chats")[0].dialogues] == [2, 2]


def test_a_broken_row_is_placed(stub: Stub) -> None:
    stub({"train": text_rows(hub(1), hub(2, dialog=[7]))})
    with pytest.raises(DataError, match=r"hub:a/b/train: record 1, dialog\[0\]: found a number"):
        read("hub:a/b")


@pytest.mark.parametrize(
    "error", [ConnectionError("x"), FileNotFoundError("x"), ValueError("x"), RuntimeError("x"), LibraryError("x")]
)
def test_what_the_library_raises_becomes_one_clear_error(stub: Stub, error: Exception) -> None:
    stub(error)
    with pytest.raises(DataError, match=r"hub:a/b: .*hub \(\w+\)\. .*HF_HUB_OFFLINE=1.*docs/data.md"):
        read("hub:a/b")


def test_without_a_network_the_library_is_not_asked(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    asked = stub({"train": []}, offline=False, endpoint="http://127.0.0.1:9")
    with pytest.raises(DataError, match="no connection"):
        read("hub:a/b")
    assert asked == []


@pytest.mark.parametrize(
    "path", ["hub:", "hub:esconv", "hub:a/b@", "hub:a/b/c", "hub:a b/c", "hub:../..", "hub:./data"]
)
def test_malformed_names(stub: Stub, path: str) -> None:
    stub({})
    with pytest.raises(DataError, match="hub:OWNER/NAME@REVISION"):
        read(path)


@pytest.mark.parametrize("splits", [{}, {"all": []}, {"dev": [], "validation": []}])
def test_unknown_splits(stub: Stub, splits: dict[str, list[Any]]) -> None:
    stub(splits)
    with pytest.raises(DataError, match="train, validation and test"):
        read("hub:a/b")


def test_an_empty_split_is_an_error(stub: Stub) -> None:
    stub({"train": []})
    with pytest.raises(DataError, match=r"hub:a/b/train: found .*no dialogue"):
        read("hub:a/b")


def test_a_loader_of_ones_own_cannot_read_the_hub(stub: Stub) -> None:
    stub({"train": []})
    with pytest.raises(DataError, match="a shipped format"):
        read("hub:a/b", format="tests.data.test_corpus:word_lines")


def test_the_library_is_imported_on_use_only() -> None:
    code = "import sys, esckit.data.corpus; sys.exit(any(m in sys.modules for m in ('datasets', 'numpy', 'torch')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
