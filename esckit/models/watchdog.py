"""A small program that runs a command and ends it, with all that it started, once esckit is gone.

``python -I -S watchdog.py PID COMMAND…`` leaves with the command's exit code. It ends the command when the process PID
is not its parent any more (so also after ``kill -9``, which no handler of esckit's sees), or when it gets SIGTERM.
Nothing here imports more than the standard library: :mod:`esckit.models.server` starts one for every server.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

GRACE_S = 10.0
"""How long a command may take to end by itself after SIGTERM; then it is killed."""

_LOOK_EVERY_S = 0.1

_NOT_STARTED = 127

_SET_CHILD_SUBREAPER = 36


class Watchdog:
    """Watches one command in a process group of its own.

    Args:
        command: Program and arguments.

    Raises:
        OSError: If it cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._asked_to_stop = False
        for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(ending, self._stop)
        _adopt_orphans()
        self._pid = os.posix_spawnp(
            command[0],
            list(command),
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            setpgroup=0,
            setsigdef=[signal.SIGPIPE],  # Python ignores it, and so would the command
        )
        self._code: int | None = None

    def watch(self, parent: int) -> int:
        """Wait until the command has ended, or ``parent`` is gone; end all that it started; return its exit code."""
        self._reap()
        while self._code is None and os.getppid() == parent and not self._asked_to_stop:
            time.sleep(_LOOK_EVERY_S)
            self._reap()
        for ending, wait_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
            until = time.monotonic() + wait_s
            while self._is_left() and time.monotonic() < until:
                self._send(ending)
                time.sleep(_LOOK_EVERY_S / 2)
        return 0 if self._code is None else self._code

    def _stop(self, *signalled: object) -> None:
        self._asked_to_stop = True

    def _reap(self) -> bool:
        """Take the exit codes of children that have ended; return whether children are left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == self._pid:
                code = os.waitstatus_to_exitcode(status)
                self._code = code if code >= 0 else 128 - code
            elif pid == 0:
                return True

    def _is_left(self) -> bool:
        if self._reap():
            return True
        try:
            os.killpg(self._pid, 0)
        except OSError:
            return False
        return True

    def _send(self, ending: signal.Signals) -> None:
        """Signal the command's group, and what left the group and lost its parent."""
        with suppress(OSError):
            os.killpg(self._pid, ending)
        with suppress(OSError):
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                os.kill(int(child), ending)


def _adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs, where the system (Linux) can do it."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def main(arguments: Sequence[str]) -> int:
    """Run ``PID COMMAND…``."""
    parent, *command = arguments
    try:
        watchdog = Watchdog(command)
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        return _NOT_STARTED
    return watchdog.watch(int(parent))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
