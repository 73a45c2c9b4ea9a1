"""Named points at which a test lets a process die, so that it can show what a kill at the worst moment leaves behind.

``ESCKIT_FAULT=renamed:3`` has the process send itself SIGKILL when it comes to the point ``renamed`` for the third
time. The points stand in the few functions through which everything is written; without the variable they do nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from esckit.errors import ConfigError

VARIABLE = "ESCKIT_FAULT"

POINTS = {
    "written": "a file is written beside the one that it replaces, and not yet flushed",
    "flushed": "it is flushed, and not yet renamed",
    "renamed": "it is renamed",
    "filled": "a new folder is whole, and the old one still in its place",
    "moved-away": "the old folder is moved away, and the new one not yet in its place",
    "moved-in": "the new folder is in its place, and the old one not yet deleted",
    "half-line": "half of a line is appended",
    "line": "a line is appended",
    "asked": "a server has answered, and the answer is not yet in the cache",
    "kept": "the answer is in the cache, and not yet used",
    "state": "a training has saved a state",
    "ended": "all is done, and the manifest does not say so yet",
}
"""What has just happened at each point."""


@dataclass(slots=True)
class _Fuse:
    """Where this process is to die, and how often it still passes there."""

    point: str
    n_left: int


@cache
def _fuse() -> _Fuse | None:
    asked = os.environ.get(VARIABLE)
    if not asked:
        return None
    point, _, count = asked.partition(":")
    if point not in POINTS or not count.isdecimal() or int(count) < 1:
        raise ConfigError(
            f"{VARIABLE}={asked}",
            expected=f"POINT:N with N from 1 and one of {', '.join(POINTS)}",
            hint=f"Only tests need it: unset {VARIABLE}",
        )
    return _Fuse(point, int(count))


def reached(point: str, last_act: Callable[[], object] | None = None) -> None:
    """Pass a point, or die there if the environment says so.

    Args:
        point: One of :data:`POINTS`.
        last_act: What is done before dying.

    Raises:
        ConfigError: If the environment names no such point.
    """
    fuse = _fuse()
    if fuse is None or fuse.point != point:
        return
    fuse.n_left -= 1
    if fuse.n_left == 0:
        if last_act is not None:
            last_act()
        os.kill(os.getpid(), signal.SIGKILL)
