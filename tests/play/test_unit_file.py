"""The file of a run's units: what is found in it, how it is sorted, and that memory does not grow with it."""

import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from esckit.errors import DataError
from esckit.play.unit_file import Numbers, UnitFile
from esckit.records import dump_line, quick_id, write_records
from esckit.types import Reasoned, Thought
from tests.big_runs import N_CONTEXTS, peak_mb, write_corpus


class Note(Reasoned):
    """A record whose id is not always its first key."""

    SCHEMA: ClassVar[str] = "esckit.note/1"

    id: str
    text: str = ""
    bad: bool = False


def file(folder: Path, ids: Sequence[str], notes: Sequence[Note] = (), **options: object) -> UnitFile[str, Note]:
    if notes:
        write_records(folder / "notes.jsonl", notes)
    found = UnitFile("notes.jsonl", Note, ids, ids.__getitem__, is_failed=lambda note: note.bad, **options)  # type: ignore[arg-type]
    found.read(folder)
    return found


def missing(found: UnitFile[str, Note]) -> list[str]:
    return [found.ids[number] for number in found.missing]


THOUGHT = (Thought(role="critic", place="0", text='so ],"id":"x" is no id, and "id":"y" neither'),)


@pytest.mark.parametrize(
    "note",
    [
        Note(id="a#m3:c0", text='{"id":"x"}'),
        Note(id="a", reasoning=THOUGHT),
        Note(id="ünï-咳", text="line\u2028end"),
        Note(id=""),
    ],
)
def test_the_id_of_a_line_is_seen_without_reading_it(note: Note) -> None:
    assert quick_id(Note, dump_line(note).encode() + b"\n") == note.id


@pytest.mark.parametrize(
    "line",
    [
        b'{"schema": "esckit.note/1", "id": "a"}',
        b'{"id":"a"}',
        b'{"schema":"esckit.other/1","id":"a"}',
        dump_line(Note(id='quo"ted')).encode(),
        b'{"schema":"esckit.note/1","text":"cut',
        b"",
    ],
)
def test_a_line_that_is_not_as_written_is_read_in_full(line: bytes) -> None:
    assert quick_id(Note, line) is None


def test_units_are_found_by_id_however_often_and_foreign_ids_are_not() -> None:
    numbers = Numbers(["a", "b", "a", "c"])
    assert (numbers.of("a"), numbers.of("c"), numbers.of("d")) == ([0, 2], [3], [])


def test_the_last_record_of_a_unit_counts_and_others_are_dropped(tmp_path: Path) -> None:
    notes = [Note(id="b", bad=True), Note(id="old"), Note(id="a", text="1"), Note(id="b", text="2")]
    found = file(tmp_path, ["a", "b", "c"], notes)
    assert (missing(found), list(found.finished()), found.n_found) == (["c"], [False, False], 2)
    found.settle()
    assert list(found.records()) == [notes[2], notes[3]]
    assert (tmp_path / "notes.jsonl").read_text() == "".join(dump_line(note) + "\n" for note in (notes[2], notes[3]))
    assert found.done["b"] == notes[3]
    assert (found.done.get("c"), list(found.done), len(found.done)) == (None, ["a", "b"], 2)


def test_failed_units_are_counted_or_played_again(tmp_path: Path) -> None:
    notes = [Note(id="a", bad=True), Note(id="b"), Note(id="c", bad=True)]
    kept = file(tmp_path, ["a", "b", "c"], notes)
    assert (missing(kept), list(kept.finished())) == ([], [True, False, True])
    again = file(tmp_path, ["a", "b", "c"], is_retried=lambda note: note.bad)
    assert (missing(again), list(again.finished())) == (["a", "c"], [False])


def test_lines_that_cannot_have_failed_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text(
        '{"schema":"esckit.note/1","id":"a","bad":"not a bool"}\n' + dump_line(Note(id="b", bad=True)) + "\n"
    )
    found = file(tmp_path, ["a", "b"], may_fail=lambda raw: b'"bad":true' in raw)
    assert list(found.finished()) == [False, True]
    with pytest.raises(DataError, match=r"line 1, bad"):
        list(found.records())
    with pytest.raises(DataError, match=r"line 1, bad"):
        file(tmp_path, ["a", "b"])


def test_a_sorted_file_is_left_as_it_is_and_any_other_is_not(tmp_path: Path) -> None:
    notes = [Note(id="a"), Note(id="b")]
    found = file(tmp_path, ["a", "b"], notes)
    path = tmp_path / "notes.jsonl"
    whole, before = path.read_bytes(), path.stat().st_ino
    found.settle()
    assert path.stat().st_ino == before
    first, second = whole.splitlines(keepends=True)
    for content in (
        whole + b'{"schema":"esckit.no',
        second + first,
        first + b"\n" + second,
        whole.replace(b"\n", b"\r\n"),
        whole.replace(b'":', b'": '),
        first + whole,
        b"\xef\xbb\xbf" + whole,
    ):
        path.write_bytes(content)
        found.settle()
        assert path.read_bytes() == whole, content


def test_memory_does_not_grow_with_the_records(tmp_path: Path) -> None:
    def growth(n: int) -> int:
        folder = tmp_path / str(n)
        folder.mkdir()
        ids = [f"unit-{number}" for number in range(n)]
        notes: Iterator[Note] = (Note(id=name, text="x" * 5_000) for name in reversed(ids))
        write_records(folder / "notes.jsonl", notes)
        tracemalloc.start()
        found = file(folder, ids)
        found.settle()
        assert sum(1 for _ in found.records()) == n
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert growth(2_000) - growth(200) < 1_800 * 300


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "n", "changes"),
    [
        ("simulate", 40, (f"contexts.per_dialogue={N_CONTEXTS}", "simulation={candidates: 1, horizon: 1}")),
        ("search", 80, ("mcts={n_simulations: 3, max_depth: 2, rollout_turns: 1}", "concurrency.trees=2")),
    ],
)
def test_a_run_ten_times_as_large_takes_no_more_memory(
    command: str, n: int, changes: tuple[str, ...], tmp_path: Path
) -> None:
    peaks = [
        peak_mb(command, write_corpus(tmp_path / f"{size}.jsonl", size), *changes, out=tmp_path / f"run-{size}")
        for size in (n // 10, n)
    ]
    assert peaks[1] < 1.1 * peaks[0]
