"""metrics.json: what is written is read back, recomputing gives the same rows, and NaN never gets in."""

import json
from pathlib import Path

import pytest

from esckit.errors import DataError, NotFiniteError
from esckit.evaluate.suites.critics import CriticScale, Episode
from esckit.evaluate.suites.dialogue import dialogue_rows
from esckit.evaluate.suites.response import ResponseCase, response_rows
from esckit.metrics.rows import MetricRow, MetricsFile, write_metrics
from esckit.records import parse_line, read_records, write_records
from tests.evaluate.casefakes import episode, measurement, quarters, response_case

EPISODES = [episode(f"d{index}", {"rlff7": quarters(*([30] if index < 54 else [0] * 8))}) for index in range(130)]


def rows(episodes: list[Episode]) -> list[MetricRow]:
    return dialogue_rows(episodes, [CriticScale("rlff7")], measurement("dialogue", [case.id for case in episodes]))


def test_a_file_is_read_back(tmp_path: Path) -> None:
    written = MetricsFile(run="r", suites=("dialogue",), metrics=tuple(rows(EPISODES)), references=("rlff.table1",))
    write_metrics(tmp_path / "metrics.json", written)
    text = (tmp_path / "metrics.json").read_text()
    assert parse_line(MetricsFile, text, path="metrics.json") == written
    body = json.loads(text)
    assert body["schema"] == "esckit.metrics/1"
    found = body["metrics"][0]
    assert found["name"] == "dialogue.rlff7.sr_strict"
    assert (found["value"], found["n"], found["coverage"], found["group"]) == (54 / 130, 130, 1.0, None)
    assert found["counts"] == {"success": 54, "cases": 130}
    assert (found["interval"]["method"], found["interval"]["low"]) == ("wilson", pytest.approx(0.3342922, abs=5e-7))
    assert found["interval"]["high"] == pytest.approx(0.5013341, abs=5e-7)
    assert list(found) == [
        "name", "value", "unit", "range", "higher_is_better", "n", "n_unscored", "unscored", "coverage", "counts",
        "interval", "reason", "flags", "group", "tokenizer",
    ]  # fmt: skip


def test_metrics_recomputed_from_written_cases_are_equal(tmp_path: Path) -> None:
    write_records(tmp_path / "episodes.jsonl", EPISODES)
    assert rows(list(read_records(Episode, tmp_path / "episodes.jsonl"))) == rows(EPISODES)
    replies = [response_case(index, f"I hear you {index % 7}.", "I can hear you.") for index in range(9)]
    write_records(tmp_path / "response.jsonl", [*replies, response_case(9, None)])
    again = list(read_records(ResponseCase, tmp_path / "response.jsonl"))
    plan = measurement("response", [case.dialogue_id for case in again])
    assert response_rows(again, plan) == response_rows([*replies, response_case(9, None)], plan)


def test_a_row_is_found_by_name_and_group() -> None:
    found = MetricsFile(run="r", suites=("dialogue",), metrics=tuple(rows(EPISODES)))
    assert found.row("dialogue.rlff7.sr_by_turn", turn=1) is not None
    assert found.row("dialogue.rlff7.sr_by_turn") is None


def test_nan_is_refused(tmp_path: Path) -> None:
    row = rows(EPISODES)[0].model_copy(update={"value": float("nan")})
    with pytest.raises(NotFiniteError, match="nan"):
        write_metrics(tmp_path / "m.json", MetricsFile(run="r", suites=(), metrics=(row,)))


def test_two_cases_of_one_id_are_refused() -> None:
    with pytest.raises(DataError, match="twice"):
        rows([EPISODES[0], EPISODES[0]])
