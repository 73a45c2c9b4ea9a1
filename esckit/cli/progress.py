"""How far a run is, on stderr: a bar on a terminal, a line now and then elsewhere.

Implements :class:`esckit.protocols.Progress`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from esckit.play.runner import NoProgress
from esckit.protocols import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID


EVERY_S = 15.0


def spent_text(spent: Mapping[str, Any]) -> str:
    """Return what a run has spent, in all and by role, as one line; see ``Budget.spent``."""
    roles = spent.get("roles") or {}
    parts = [_amounts(spent), *(f"{role} {_amounts(amounts)}" for role, amounts in roles.items())]
    return "; ".join(parts)


def _amounts(spent: Mapping[str, Any]) -> str:
    """Return ``1,234 calls (200 more from the cache), 1.2M+0.1M tokens, 3.4 s a call, cost 0.56``; no cost if free."""
    calls, kept, cost = spent["calls"], spent.get("from_cache"), spent.get("cost")
    text = f"{calls:,} calls" + (f" ({kept:,} more from the cache)" if kept else "")
    read, written = spent.get("prompt_tokens"), spent.get("completion_tokens")
    text += ", tokens unknown" if read is None or written is None else f", {_short(read)}+{_short(written)} tokens"
    if calls and (seconds := spent.get("seconds")):
        text += f", {seconds / calls:.2g} s a call"
    return text + (", cost unknown" if cost is None else f", cost {cost:.4g}" if cost else "")


def _short(n: int) -> str:
    """Return a number of tokens in three digits: 950, 12.3k, 1.24M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return str(n)


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
        self._what, self._stream, self._every_s, self._clock = what, stream, every_s, clock
        self._began_s = self._last_s = clock()
        self._total = self._done = self._done_before = 0
        self._counts: dict[str, int] = {}
        self._spent: Mapping[str, Any] | None = None
        self._is_new = False

    def start(self, total: int, done: int = 0) -> None:
        """Begin a run of ``total`` units, of which ``done`` are there already."""
        self._began_s = self._clock()
        self._total, self._done, self._done_before = total, done, done
        self._write()

    def advance(self, n: int = 1, *, spent: Mapping[str, Any] | None = None, **counts: int) -> None:
        """Count finished units; see :class:`esckit.protocols.Progress`."""
        self._done += n
        self._counts |= counts
        self._spent = spent
        self._is_new = True
        if self._clock() - self._last_s >= self._every_s:
            self._write()

    def close(self) -> None:
        """Write how far the run came, unless that was the last line."""
        if self._is_new:
            self._write()

    def _write(self) -> None:
        """Write ``futures: 12/64 (19 %), 3.1 a minute, about 17 min left``, and what was spent in a line below it.

        What was done before has no speed.
        """
        self._last_s = self._clock()
        self._is_new = False
        share = 100 * self._done // self._total if self._total else 100
        text = f"{self._what}: {self._done}/{self._total} ({share} %)"
        minutes = (self._last_s - self._began_s) / 60
        if self._done > self._done_before and minutes > 0:
            speed = (self._done - self._done_before) / minutes
            text += f", {speed:.1f} a minute"
            if self._done < self._total:
                text += f", about {(self._total - self._done) / speed:.0f} min left"
        self._stream.write(text + "".join(f", {name} {count}" for name, count in self._counts.items()) + "\n")
        if self._spent is not None:
            self._stream.write(f"  spent: {spent_text(self._spent)}\n")
        self._stream.flush()


class BarProgress:
    """A rich progress bar on stderr; log lines pass above it.

    Args:
        what: Plural noun of the units.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: RichBar | None = None
        self._task: TaskID | None = None

    def start(self, total: int, done: int = 0) -> None:
        """Draw the bar of a run of ``total`` units, of which ``done`` are there already."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichBar

        self.close()
        self._bar = RichBar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[beside]}", style="dim", markup=False),
            console=Console(stderr=True),
            speed_estimate_period=3600,
            redirect_stdout=False,
        )
        self._task = self._bar.add_task(self._what, total=total, completed=done, beside="")
        self._bar.start()

    def advance(self, n: int = 1, *, spent: Mapping[str, Any] | None = None, **counts: int) -> None:
        """Count finished units; see :class:`esckit.protocols.Progress`."""
        if self._bar is not None and self._task is not None:
            beside = ", ".join(f"{name} {count}" for name, count in counts.items())
            beside += f"; {spent_text(spent)}" if spent is not None else ""
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
