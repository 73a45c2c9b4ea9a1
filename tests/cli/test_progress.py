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


def test_what_was_spent_stands_below_by_role():
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress("futures", stream, every_s=15.0, clock=clock)
    seeker = {"calls": 4, "from_cache": 2, "prompt_tokens": 1234, "completion_tokens": 20, "cost": 0.5, "seconds": 6.0}
    critic = {"calls": 0, "from_cache": 0, "prompt_tokens": None, "completion_tokens": None, "cost": None, "seconds": 0}
    whole = {"calls": 1004, "from_cache": 2, "prompt_tokens": 2_500_000, "completion_tokens": 0, "cost": 0.0}
    progress.start(2)
    clock.now_s += 60.0
    progress.advance(2, failed=0, spent={**whole, "hours": 1.0, "roles": {"critic": critic, "seeker": seeker}})
    assert stream.getvalue().splitlines()[-1] == (
        "  spent: 1,004 calls (2 more from the cache), 2.5M+0 tokens; critic 0 calls, tokens unknown, cost unknown; "
        "seeker 4 calls (2 more from the cache), 1.23k+20 tokens, 1.5 s a call, cost 0.5"
    )


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
