import io
import sys

import pytest

from esckit.cli.progress import BarProgress, PlainProgress, shown_progress
from esckit.play.runner import NoProgress


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_plain_lines_come_first_from_time_to_time_and_last():
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress("futures", stream, every_s=15.0, clock=clock)
    progress.start(64, 4)
    for second in range(20):
        clock.now_s += 1.0
        progress.advance(failed=second // 10)
    progress.close()
    progress.close()
    assert stream.getvalue().splitlines() == [
        "futures: 4/64 (6 %)",
        "futures: 19/64 (29 %), 60.0 a minute, about 1 min left, failed 1",
        "futures: 24/64 (37 %), 60.0 a minute, about 1 min left, failed 1",
    ]


def test_a_run_without_work_is_complete():
    stream = io.StringIO()
    PlainProgress("futures", stream).start(0)
    assert stream.getvalue() == "futures: 0/0 (100 %)\n"


def test_the_bar_counts_on_stderr_and_closes_twice(capsys):
    bar = BarProgress("futures")
    bar.advance()
    bar.start(3, 1)
    bar.advance(2, failed=1)
    bar.close()
    bar.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err


def test_the_kind_follows_stderr(monkeypatch):
    with shown_progress("futures", quiet=True) as progress:
        assert isinstance(progress, NoProgress)
    with shown_progress("futures", quiet=False) as progress:
        assert isinstance(progress, PlainProgress)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with shown_progress("futures", quiet=False) as progress:
        assert isinstance(progress, BarProgress)


def test_the_display_ends_when_the_run_fails(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)

    def run() -> None:
        with shown_progress("futures", quiet=False) as progress:
            progress.start(2)
            progress.advance()
            raise KeyError

    with pytest.raises(KeyError):
        run()
    assert stream.getvalue().splitlines()[-1].startswith("futures: 1/2 (50 %)")
