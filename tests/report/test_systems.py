"""Several evaluations on one page: systems that played the same cases stand in one comparison, which comes first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from esckit.records import write_json
from esckit.report.blocks import Intervals, Note, Table
from esckit.report.compared import BASELINES_DRAW
from esckit.report.run import build_report, write_report
from esckit.report.source import Run, open_run
from esckit.report.systems import systems
from tests.report.run_folders import evaluate_run, row


def evaluated(folder: Path, seed: int = 1, **suites: Any) -> Path:
    """Write an evaluation, with the conditions that it had by suite."""
    path = evaluate_run(folder, lift=0.01 * len(folder.name), checkpoint=folder.name)
    manifest = json.loads((path / "manifest.json").read_text())
    write_json(path / "manifest.json", manifest | {"conditions": suites or {"strategy": {"ids": "a"}}})
    return path


def opened(*folders: Path) -> list[Run]:
    return [open_run(folder) for folder in folders]


def test_systems_with_equal_cases_stand_in_one_table(tmp_path: Path) -> None:
    runs = opened(evaluated(tmp_path / "a"), evaluated(tmp_path / "bbb"))
    (part,) = systems(runs)
    table = next(block for block in part.sections[0].blocks if isinstance(block, Table))
    assert table.columns == ("system", "Accuracy ↑", "Macro-F1 ↑", "Preference bias B ↑", "n")
    assert table.rows == (
        ("a", "42.0 % [34.0, 50.0]", "38.0 % [30.0, 46.0]", "–", "300"),
        ("bbb", "44.0 % [36.0, 52.0] ★", "40.0 % [32.0, 48.0] ★", "–", "300"),
    )
    chart = next(block for block in part.sections[0].blocks if isinstance(block, Intervals))
    assert [name for name, *_ in chart.rows] == ["a", "bbb"]


def test_other_cases_are_not_put_beside_each_other(tmp_path: Path) -> None:
    other = {"strategy": {"ids": "b"}}
    a, b, c = evaluated(tmp_path / "a"), evaluated(tmp_path / "bb", **other), evaluated(tmp_path / "ccc", **other)
    assert systems(opened(a, b)) == []
    (part,) = systems(opened(a, b, c))
    assert [section.title for section in part.sections] == ["Strategy: bb, ccc"]


def test_baselines_of_the_practice_world_stand_below(tmp_path: Path) -> None:
    folders = [evaluated(tmp_path / name, dialogue={"seeker": "world"}) for name in ("before", "after")]
    for folder, value in zip(folders, (0.1, 0.6), strict=True):
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["metrics"] += [
            row("practice.success", value),
            row("practice.success", 0.87, group={"policy": "optimum"}),
            row("practice.regret", 0.1, group={"need": "act"}),
        ]
        write_json(folder / "metrics.json", metrics)
    (part,) = systems(opened(*folders))
    note, chart, table, remark = part.sections[0].blocks
    assert isinstance(note, Note)
    assert "not a model of people" in note.text
    assert isinstance(chart, Intervals)
    assert chart.rows[2] == ("(optimum)", 0.87, 0.79, 0.95, True)
    assert isinstance(table, Table)
    assert [line[0] for line in table.rows] == ["before", "after", "(optimum)"]
    assert isinstance(remark, Note)
    assert BASELINES_DRAW in remark.text


def test_the_comparison_is_the_first_part_of_the_page(tmp_path: Path) -> None:
    folders = [evaluated(tmp_path / "a"), evaluated(tmp_path / "bbb")]
    assert [part.title for part in build_report(opened(*folders)).parts] == ["All systems", "a", "bbb"]
    page = write_report(folders, out=tmp_path / "page.html").page.read_text()
    assert 'aria-label="Accuracy: all systems, with intervals"' in page
    assert len(build_report(opened(folders[0])).parts) == 1


def test_what_only_one_system_has_is_folded_below(tmp_path: Path) -> None:
    folders = [evaluated(tmp_path / "a"), evaluated(tmp_path / "bbb")]
    assert [part.folded for part in build_report(opened(*folders)).parts] == [False, True, True]
    page = write_report(folders, out=tmp_path / "page.html").page.read_text()
    assert page.count("sections about this run alone</summary>") == 2
    assert not any(part.folded for part in build_report(opened(folders[0])).parts)
