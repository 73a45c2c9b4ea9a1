import errno
import fcntl
import json
import math
import os
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from esckit import records
from esckit.errors import DataError, NotFiniteError, StorageError
from esckit.records import (
    JsonlAppender,
    canonical_json,
    clear_leftovers,
    digest,
    dump_line,
    fresh_folder,
    parse_line,
    read_records,
    write_atomic,
    write_json,
    write_records,
)
from esckit.types import Dialogue, Record, Scenario, Turn

NOT_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


class Note(Record):
    SCHEMA: ClassVar[str] = "esckit.note/1"

    text: str
    count: int = 0


def read(path: Path, **options: bool) -> list[Note]:
    return list(read_records(Note, path, **options))


@given(st.text(alphabet=st.characters(codec="utf-8")), st.integers())
@settings(deadline=None)
def test_writing_then_reading_gives_an_equal_record_on_one_line(text, count):
    line = dump_line(Note(text=text, count=count))
    assert "\n" not in line
    assert line.startswith('{"schema":"esckit.note/1","text":')
    assert parse_line(Note, line) == Note(text=text, count=count)


def test_a_dialogue_survives_and_equal_records_give_equal_bytes(tmp_path):
    dialogue = Dialogue(scenario=Scenario(id="x"), turns=(Turn(speaker="seeker", text="Sé.\u2028 \n"),))
    for name in ("a", "b"):
        write_records(tmp_path / name, [dialogue, dialogue])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert list(read_records(Dialogue, tmp_path / "a")) == [dialogue, dialogue]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "a JSON list; expected an object"),
        ('{"schema":"esckit.note/2","text":"x"}', "schema 'esckit.note/2'; expected schema 'esckit.note/1'"),
        ('{"schema":"esckit.note/1","txt":"x","text":"y"}', "txt: found an unknown key. did you mean 'text'?"),
        ('{"schema":"esckit.note/1","text":3}', "text: found a wrong value; expected text"),
        ('{"schema":"esckit.note/1"}', "text: found nothing; expected a value"),
    ],
)
def test_a_wrong_line_is_refused_with_its_place(line, message):
    with pytest.raises(DataError) as caught:
        parse_line(Note, line, path="f.jsonl", line=3)
    assert message in str(caught.value)
    assert str(caught.value).startswith("f.jsonl: record 2, line 3")


def test_a_refusal_never_quotes_a_value():
    with pytest.raises(DataError) as caught:
        parse_line(Note, '{"text": "private", "count": "also private"}')
    assert "private" not in str(caught.value)


def test_reading_names_the_line_and_refuses_what_is_not_utf8(tmp_path):
    path = tmp_path / "n.jsonl"
    path.write_bytes(b'{"text":"a"}\n\n{"text":"\xff"}\n')
    with pytest.raises(DataError, match="line 3: found bytes that are not UTF-8"):
        read(path)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "absent")


def test_a_byte_order_mark_is_not_content(tmp_path):
    path = tmp_path / "n.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text":"a"}\r\n{"text":"b"}\r\n')
    assert [note.text for note in read(path)] == ["a", "b"]


@pytest.mark.parametrize("tail", [b"{", b'{"text":"cut', b'{"text":"whole"}', b"\xf0\x9f", b"x" * 200_000])
def test_an_unfinished_last_line_is_ignored_and_then_cut_off(tmp_path, tail):
    path = tmp_path / "n.jsonl"
    path.write_bytes(b'{"text":"a"}\n' + tail)
    assert read(path, allow_cut=True) == [Note(text="a")]
    with JsonlAppender(path) as appender:
        appender.append(Note(text="b"))
    assert read(path) == [Note(text="a"), Note(text="b")]


def test_a_file_without_any_whole_line_becomes_empty(tmp_path):
    path = tmp_path / "n.jsonl"
    path.write_bytes(b"x" * 70_000)
    JsonlAppender(path).close()
    assert path.read_bytes() == b""


def test_every_append_is_on_disk_at_once(tmp_path):
    path = tmp_path / "deep" / "n.jsonl"
    appender = JsonlAppender(path)
    appender.append({"free": "ä"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"free": "ä"}
    appender.close()
    appender.close()


def short_write(limit: int):
    """Return an ``os.write`` onto a disk that has room for ``limit`` more bytes."""
    room = [limit]
    real = os.write

    def write(fd: int, data: memoryview) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(fd, data[: min(room[0], 5)])
        room[0] -= written
        return written

    return write


def test_a_full_disk_takes_back_the_line_and_says_so(tmp_path, monkeypatch):
    path = tmp_path / "n.jsonl"
    with JsonlAppender(path) as appender:
        appender.append(Note(text="a"))
        whole = path.read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(records.os, "write", short_write(12))
            with pytest.raises(StorageError, match="the disk is full"):
                appender.append(Note(text="b" * 100))
        assert path.read_bytes() == whole
        appender.append(Note(text="c"))
    assert read(path) == [Note(text="a"), Note(text="c")]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(records.os, "write", short_write(10_000))
    with JsonlAppender(tmp_path / "n.jsonl") as appender:
        appender.append(Note(text="a long enough text"))
    assert read(tmp_path / "n.jsonl") == [Note(text="a long enough text")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_device_is_a_storage_error():
    with pytest.raises(StorageError) as caught, JsonlAppender(Path("/dev/full")) as appender:
        appender.append(Note(text="a"))
    assert "the disk is full" in str(caught.value)


def test_an_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "f.json"
    write_json(path, {"a": 1})
    with monkeypatch.context() as patched:

        def full(fd: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patched.setattr(records.os, "fsync", full)
        with pytest.raises(StorageError, match="the disk is full"):
            write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [child.name for child in tmp_path.iterdir()] == ["f.json"]


def test_an_atomic_write_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "f", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path, monkeypatch, code, message):
    def refused(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(records.os, "open", refused)
    for write in (lambda: write_atomic(tmp_path / "f", "x"), lambda: JsonlAppender(tmp_path / "f")):
        with pytest.raises(StorageError, match=message):
            write()


@NOT_ROOT
def test_a_read_only_folder_is_a_storage_error(tmp_path):
    tmp_path.chmod(0o500)
    for write in (lambda: write_atomic(tmp_path / "f", "x"), lambda: JsonlAppender(tmp_path / "f")):
        with pytest.raises(StorageError, match="no permission to write"):
            write()


def test_a_file_where_a_folder_is_needed_is_a_storage_error(tmp_path):
    (tmp_path / "f").write_text("x")
    for write in (lambda: write_atomic(tmp_path / "f" / "g", "x"), lambda: JsonlAppender(tmp_path / "f" / "g")):
        with pytest.raises(StorageError, match="a file is where a folder is needed"):
            write()


def test_a_fresh_folder_replaces_the_old_one_only_when_filled(tmp_path):
    folder = tmp_path / "checkpoint"
    for content in ("one", "two"):
        with fresh_folder(folder) as fresh:
            (fresh / content).write_text(content)
            assert not (folder / content).exists()
        assert [file.name for file in folder.iterdir()] == [content]
    with pytest.raises(RuntimeError), fresh_folder(folder):
        raise RuntimeError("a crash")
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]
    assert [file.name for file in folder.iterdir()] == ["two"]
    with fresh_folder(folder) as fresh:
        (fresh / "three").touch()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint"]
    assert [file.name for file in folder.iterdir()] == ["three"]


def test_what_a_killed_writer_left_is_cleared(tmp_path):
    (tmp_path / ".checkpoint.old").mkdir()
    (tmp_path / ".checkpoint.old/one").touch()
    (tmp_path / ".checkpoint.new").mkdir()
    (tmp_path / ".summary.json.abc.tmp").write_text("{")
    clear_leftovers(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["checkpoint", "checkpoint/one"]
    (tmp_path / ".checkpoint.old").mkdir()
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_killed_writers_file_goes_with_the_next_attempt(tmp_path):
    ours, alive = tmp_path / ".f.abc.tmp", tmp_path / ".f.def.tmp"
    ours.touch()
    with alive.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_atomic(tmp_path / "f", "x")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".f.def.tmp", "f"]


def test_digests_depend_on_values_only():
    assert digest({"a": 1, "b": (2,)}) == digest({"b": [2], "a": 1})
    assert len(digest({})) == 16
    assert canonical_json({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'


def test_a_record_without_schema_has_none_on_its_line():
    assert dump_line(Scenario(id="x")).startswith('{"id":"x",')


class Measured(Record):
    value: float | None = None
    shares: dict[str, float] | None = None
    pairs: tuple[tuple[float, ...], ...] = ()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["value", "shares", "pairs"])
def test_a_record_never_holds_a_number_that_is_not_finite(bad, where):
    with pytest.raises(ValidationError, match="finite"):
        Measured(**{where: {"value": bad, "shares": {"a": bad}, "pairs": ((0.0, bad),)}[where]})


@pytest.mark.parametrize("constant", ["NaN", "-Infinity", "1e999"])
def test_a_line_with_a_number_that_is_not_finite_is_refused(constant):
    with pytest.raises(DataError, match=r"f\.jsonl: record 2, line 3"):
        parse_line(Measured, f'{{"value": {constant}}}', path="f.jsonl", line=3)


def test_a_number_smuggled_past_validation_is_not_written(tmp_path):
    smuggled = Measured(value=0.5).model_copy(update={"value": math.nan})
    with pytest.raises(NotFiniteError, match="a number of Measured is not finite"):
        dump_line(smuggled)
    assert "NaN" in dump_line(Note(text="NaN, Infinity"))
    with pytest.raises(NotFiniteError):
        write_json(tmp_path / "f.json", {"deep": [{"x": math.inf}]})
    with JsonlAppender(tmp_path / "f.jsonl") as lines, pytest.raises(NotFiniteError):
        lines.append({"x": math.nan})
    assert (tmp_path / "f.jsonl").read_bytes() == b""
    assert not (tmp_path / "f.json").exists()


def test_half_a_surrogate_pair_in_a_line_becomes_a_mark() -> None:
    class Said(Record):
        text: str

    record = parse_line(Said, '{"text": "a \\ud83d b \\uD83D\\uDE00"}')
    assert record.text == "a \ufffd b \U0001f600"
    assert dump_line(record)
