"""What `evaluate` prints: a table on a terminal, one plain line for each metric where its output is piped."""

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from esckit.cli.evaluated import echo_evaluation
from tests.evaluate.evalruns import result


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def found(tmp_path: Path) -> SimpleNamespace:
    result(tmp_path, "response", name="other")
    metrics = result(tmp_path, "response", compare_to=str(tmp_path / "other"))
    return SimpleNamespace(metrics=metrics, out=tmp_path / "run", report=tmp_path / "run/report.html")


def test_a_terminal_shows_tables(found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", shown := Terminal())
    echo_evaluation(found)
    assert not re.search(r"\x1b\[[\d;]*3\d", shown.getvalue())  # no colour
    lines = re.sub(r"\x1b\[[\d;]*m", "", shown.getvalue()).splitlines()
    assert all(len(line) <= 100 for line in lines[:-2])  # but for the paths at the end
    assert lines[1].split()[0] == "metric"
    assert any(line.split()[:1] == ["against"] for line in lines)
    assert [line.split()[0] for line in lines[-2:]] == ["out", "report"]


def test_a_narrow_terminal_shows_lines(found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stdout", shown := Terminal())
    echo_evaluation(found)
    assert shown.getvalue().startswith(found.metrics.metrics[0].name)


def test_a_pipe_gets_a_line_for_each_metric(found, capsys: pytest.CaptureFixture[str]) -> None:
    echo_evaluation(found)
    lines = capsys.readouterr().out.splitlines()
    rows = [row for row in found.metrics.metrics if row.group is None]
    assert [line.split()[0] for line in lines[: len(rows)]] == [row.name for row in rows]
    assert all(line.split()[1:2] == ["against"] for line in lines[len(rows) : -2])
