"""Whatever the bytes are, a loader gives dialogues or a DataError, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.data.corpus import read_corpus
from esckit.data.layouts import NEEDS, IssueList
from esckit.errors import DataError
from tests.data.corpus_files import extes, hub, lines, original, own, ppdpp

FORMATS = st.sampled_from(["auto", *NEEDS])
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
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["usr", "sys", "seeker", "supporter", "5", "", "esckit.dialogue/1", "\ud800", "\x00"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=12
)
GOOD = [original(), hub(), ppdpp(), extes(), own()]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any") / "corpus"


def stays_on_one_line(error: DataError) -> None:
    assert "\n" not in str(error)


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
@given(st.binary(max_size=200), st.sampled_from([b"", b"[", b"{", b'{"', b"PK\x03\x04", b"\xef\xbb\xbf["]), FORMATS)
def test_any_bytes(path: Path, content: bytes, head: bytes, format: str) -> None:
    load(path, head + content, format)


@settings(max_examples=250, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=3), st.booleans(), FORMATS)
def test_any_json(path: Path, values: list[Any], as_array: bool, format: str) -> None:
    load(path, (json.dumps(values) if as_array else lines(*values)).encode(), format)


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, item in inside for place in places(item, (*here, key)))]


@settings(max_examples=300, deadline=None)
@given(st.data(), FORMATS)
def test_any_value_in_any_place_of_a_good_record(path: Path, data: st.DataObject, format: str) -> None:
    record = json.loads(json.dumps(data.draw(st.sampled_from(GOOD))))
    *way, last = data.draw(st.sampled_from(places(record)[1:]))
    parent = record
    for key in way:
        parent = parent[key]
    parent[last] = data.draw(VALUES)
    load(path, lines(record, *GOOD).encode(), format)


@settings(max_examples=150, deadline=None)
@given(st.data(), FORMATS)
def test_any_damage_to_a_good_file(path: Path, data: st.DataObject, format: str) -> None:
    records = data.draw(st.lists(st.sampled_from(GOOD), min_size=1, max_size=3))
    content = (json.dumps(records) if data.draw(st.booleans()) else lines(*records)).encode()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.sampled_from([start, start + 1, start + 9, len(content)]))
    load(path, content[:start] + data.draw(st.binary(max_size=3)) + content[end:], format)
