"""How far a run is, on stderr: a bar on a terminal, a line now and then elsewhere.

Implements :class:`esckit.protocols.Progress`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from esckit.play.runner import NoProgress
from esckit.protocols import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID


EVERY_S = 15.0


class Rate:
    """Speed of a run, counted from its start and without what was done before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self.total = 0
        self.done = 0
        self._done_before = 0

    def start(self, total: int, done: int) -> None:
        """Begin to count."""
        self._began_s = self._clock()
        self.total, self.done, self._done_before = total, done, done

    def text(self) -> str:
        """Return ``12/64 (19 %), 3.1 a minute, about 17 min left``."""
        share = 100 * self.done // self.total if self.total else 100
        text = f"{self.done}/{self.total} ({share} %)"
        minutes = (self._clock() - self._began_s) / 60
        finished = self.done - self._done_before
        if finished and minutes > 0:
            speed = finished / minutes
            text += f", {speed:.1f} a minute"
            if self.done < self.total:
                text += f", about {(self.total - self.done) / speed:.0f} min left"
        return text


class PlainProgress:
    """One line at the start, at the end, and every so often in between.

    Args:
        what: Plural noun of the units.
        stream: Where to write.
        every_s: Shortest time between two lines, seconds.
        clock: Seconds on a clock that never goes back.
    """

    def __init__(
        self,
        what: str,
        stream: TextIO,
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._stream = stream
        self._every_s = every_s
        self._clock = clock
        self._rate = Rate(clock)
        self._counts: dict[str, int] = {}
        self._last_s = clock()
        self._unsaid = False

    def start(self, total: int, done: int = 0) -> None:
        """Begin a run of ``total`` units, of which ``done`` are there already."""
        self._rate.start(total, done)
        self._say()

    def advance(self, n: int = 1, **counts: int) -> None:
        """Count finished units; ``counts`` are running totals to show beside them."""
        self._rate.done += n
        self._counts |= counts
        self._unsaid = True
        if self._clock() - self._last_s >= self._every_s:
            self._say()

    def close(self) -> None:
        """Say how far the run came, unless that was the last line."""
        if self._unsaid:
            self._say()

    def _say(self) -> None:
        self._last_s = self._clock()
        self._unsaid = False
        counts = "".join(f", {name} {count}" for name, count in self._counts.items())
        self._stream.write(f"{self._what}: {self._rate.text()}{counts}\n")
        self._stream.flush()


class BarProgress:
    """A rich progress bar on stderr; log lines pass above it.

    Args:
        what: Plural noun of the units.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._rate = Rate()
        self._bar: RichBar | None = None
        self._task: TaskID | None = None

    def start(self, total: int, done: int = 0) -> None:
        """Draw the bar of a run of ``total`` units, of which ``done`` are there already."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichBar

        self.close()
        self._rate.start(total, done)
        self._bar = RichBar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[beside]}", style="dim", markup=False),
            console=Console(stderr=True),
            redirect_stdout=False,
        )
        self._task = self._bar.add_task(self._what, total=total, completed=done, beside="")
        self._bar.start()

    def advance(self, n: int = 1, **counts: int) -> None:
        """Count finished units; ``counts`` are running totals to show beside them."""
        if self._bar is None or self._task is None:
            return
        self._rate.done += n
        speed = self._rate.text().partition(", ")[2]
        beside = ", ".join([*([speed] if speed else []), *(f"{name} {count}" for name, count in counts.items())])
        self._bar.update(self._task, advance=n, beside=beside)

    def close(self) -> None:
        """Leave the bar as it is; calling it twice is harmless."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextmanager
def shown_progress(what: str, *, quiet: bool) -> Iterator[Progress]:
    """Yield the progress that suits where stderr goes; the display ends whatever happens.

    Args:
        what: Plural noun of the units.
        quiet: Show nothing.
    """
    progress: Progress
    if quiet:
        progress = NoProgress()
    elif sys.stderr.isatty():
        progress = BarProgress(what)
    else:
        progress = PlainProgress(what, sys.stderr)
    try:
        yield progress
    finally:
        progress.close()
