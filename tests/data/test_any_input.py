"""Whatever the bytes are, a loader gives dialogues or a DataError, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.data.corpus import read_corpus
from esckit.data.formats import FORMATS
from esckit.data.layouts import IssueList
from esckit.errors import DataError
from tests.data.corpus_files import chat, extes, hub, lines, multiesc, original, own, ppdpp, rows, sharegpt

NAMES = st.sampled_from(["auto", *FORMATS])
KEYS = st.text(max_size=3) | st.sampled_from(
    [
        "dialog",
        "content",
        "turns",
        "scenario",
        "survey_score",
        "scene",
        "description",
        "situation",
        "emotion_type",
        "speaker",
        "text",
        "strategy",
        "annotation",
        "feedback",
        "User",
        "AI",
        "seeker",
        "supporter",
        "relevance",
        "schema",
        "id",
        "parts",
        "survey",
        "source",
        "answers",
        "record",
        "AI Strategy",
        "messages",
        "conversations",
        "role",
        "from",
        "value",
        "dialogue",
        "all_strategy",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        ["usr", "sys", "system", "seeker", "<think>a", "supporter", "5", "", "esckit.dialogue/1", "\ud800", "\x00"]
    )
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=12
)
GOOD = [original(), hub(), ppdpp(), multiesc(), extes(), own(), chat(), sharegpt(), *rows()]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any") / "corpus"


def stays_on_one_line(error: DataError) -> None:
    message, _, example = str(error).partition("Readable would be, for example:\n")
    assert "\n" not in message
    assert example in ("", *("  " + "\n  ".join(format.example) for format in FORMATS.values()))


def load(path: Path, content: bytes, format: str) -> None:
    path.write_bytes(content)
    sink = IssueList(go_on=True)
    try:
        corpus = read_corpus(path, format=format, sink=sink, max_refused_share=1.0)
    except DataError as error:
        stays_on_one_line(error)
        return
    assert corpus.n_records == len(corpus.dialogues) + corpus.n_refused + sum(
        issue.code == "duplicate_dialogue" for issue in sink.issues
    )
    assert all(dialogue.turns for dialogue in corpus.dialogues)
    for dialogue in corpus.dialogues:
        assert dialogue.model_dump_json()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"[", b"{", b'{"', b"PK\x03\x04", b"\xef\xbb\xbf["]), NAMES)
def test_any_bytes(path: Path, content: bytes, head: bytes, format: str) -> None:
    load(path, head + content, format)


@settings(max_examples=250, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=3), st.booleans(), NAMES)
def test_any_json(path: Path, values: list[Any], as_array: bool, format: str) -> None:
    load(path, (json.dumps(values) if as_array else lines(*values)).encode(), format)


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, item in inside for place in places(item, (*here, key)))]


@settings(max_examples=300, deadline=None)
@given(st.data(), NAMES)
def test_any_value_in_any_place_of_a_good_record(path: Path, data: st.DataObject, format: str) -> None:
    record = json.loads(json.dumps(data.draw(st.sampled_from(GOOD))))
    *way, last = data.draw(st.sampled_from(places(record)[1:]))
    parent = record
    for key in way:
        parent = parent[key]
    parent[last] = data.draw(VALUES)
    load(path, lines(record, *GOOD).encode(), format)


@settings(max_examples=150, deadline=None)
@given(st.data(), NAMES)
def test_any_damage_to_a_good_file(path: Path, data: st.DataObject, format: str) -> None:
    records = data.draw(st.lists(st.sampled_from(GOOD), min_size=1, max_size=3))
    content = (json.dumps(records) if data.draw(st.booleans()) else lines(*records)).encode()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.sampled_from([start, start + 1, start + 9, len(content)]))
    load(path, content[:start] + data.draw(st.binary(max_size=3)) + content[end:], format)


CELLS = st.text(max_size=6) | st.sampled_from(
    ["1", "user", "assistant", "Invented.", '"', '""', "\n", ",", "\ufeff", "dialogue"]
)


@settings(max_examples=250, deadline=None)
@given(
    st.lists(
        st.sampled_from(["dialogue", "speaker", "text", "strategy", "situation", "note", "Speaker", ""]), max_size=6
    ),
    st.lists(st.lists(CELLS, max_size=6), max_size=5),
    st.sampled_from(",;\t|"),
    st.booleans(),
    NAMES,
)
def test_any_table(
    path: Path, header: list[str], body: list[list[str]], delimiter: str, is_quoted: bool, format: str
) -> None:
    if is_quoted:
        body = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in body]
    content = "".join(delimiter.join(row) + "\n" for row in [header, *body])
    load(path, content.encode("utf-8", errors="replace"), format)
