"""Reasoning that records keep is visible in the report."""

from dataclasses import replace
from pathlib import Path

from esckit.records import write_json, write_records
from esckit.report.about import thoughts
from esckit.report.blocks import Note, Table
from esckit.report.source import open_run
from esckit.types import Future, Outcome, Thought
from tests.report.run_folders import manifest


def run_with(folder: Path, n: int) -> Path:
    write_json(folder / "manifest.json", manifest("simulate"))
    said = tuple(Thought(role=f"critic.{index}", place="0/1", text="Is it better?") for index in range(n))
    ids = {"context_id": "c", "dialogue_id": "d", "candidate": 0, "run_seed": 7, "k": 0}
    future = Future(id="c:c0", outcome=Outcome.FAILED, reasoning=said, **ids)
    write_records(folder / "futures.jsonl", [future])
    return folder


def test_reasoning_is_counted_and_shown(tmp_path: Path) -> None:
    run = open_run(run_with(tmp_path, 70))
    ((note, table),) = (section.blocks for section in thoughts(run))
    assert isinstance(note, Note)
    assert isinstance(table, Table)
    assert note.text.startswith("70 replies hold reasoning.")
    assert table.rows[0] == ("c:c0", "0/1", "critic.0", "Is it better?")
    assert (len(table.rows), table.note) == (60, "The first 60 of 70.")


def test_without_leave_to_quote_only_its_length_is_shown(tmp_path: Path) -> None:
    run = replace(open_run(run_with(tmp_path, 1)), quotes=False)
    ((_, table),) = (section.blocks for section in thoughts(run))
    assert isinstance(table, Table)
    assert table.rows == (("c:c0", "0/1", "critic.0", "3 words"),)


def test_a_run_without_reasoning_has_no_such_section(tmp_path: Path) -> None:
    run = open_run(run_with(tmp_path, 0))
    assert thoughts(run) == []
    assert "reasoning" not in (tmp_path / "futures.jsonl").read_text()
