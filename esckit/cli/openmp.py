"""How the threads of the tensor library wait for each other, chosen before torch is loaded.

On a processor torch computes with OpenMP threads. Between two steps they wait in a loop (they *spin*), by default for
about a millisecond. On a machine that others use too, a thread that spins takes the processor from one that has work,
and a local model becomes several times slower. Nothing here changes a result: the number of threads stays as it is.

libgomp reads its variables when torch is loaded, so :func:`choose_waiting` comes before that. What a user sets stays.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

BUSY = {"OMP_WAIT_POLICY": "PASSIVE"}
"""On a machine that others use: sleep at once. On one that is ours libgomp's own choice is the fastest, and stays;
``tests/benchmarks/bench_threads.py`` measures both beside others."""

BUSY_SHARE = 0.25
"""From this share of the processors in use by others on, a machine counts as busy."""

USERS = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
"""Who sets one of these knows what they want."""

_LOOK_S = 0.05

_STAT = Path("/proc/stat")


def choose_waiting(threads: int | None) -> None:
    """Let OpenMP's threads sleep while they wait, if others use this machine.

    Nothing is set if the recipe names the threads, if the user has set one of :data:`USERS`, or if torch is loaded.

    Args:
        threads: ``executor.threads`` of the recipe.
    """
    if threads is not None or "torch" in sys.modules or any(name in os.environ for name in USERS):
        return
    share = used_by_others()
    if share < BUSY_SHARE:
        return
    os.environ.update(BUSY)
    shown = " ".join(f"{name}={value}" for name, value in BUSY.items())
    log.info("OpenMP: %s, since others use %.0f %% of the processors; set it yourself to change it", shown, 100 * share)


def used_by_others(stat: Path = _STAT, pause: Callable[[float], object] = time.sleep) -> float:
    """Return the share of the processors that others use, in [0, 1]: while this process sleeps for a moment.

    0 where the system does not tell, as on macOS, whose OpenMP reads other variables.
    """
    before = _ticks(stat)
    if before is None:
        return 0.0
    pause(_LOOK_S)
    after = _ticks(stat)
    if after is None or after[1] <= before[1]:
        return 0.0
    return 1 - (after[0] - before[0]) / (after[1] - before[1])


def _ticks(stat: Path) -> tuple[int, int] | None:
    """Return the ticks that all processors together were idle, and all their ticks, since the machine started."""
    try:
        first = stat.read_text(encoding="ascii").splitlines()[0].split()
        ticks = [int(word) for word in first[1:9]]  # what follows is counted in the first two already
        return ticks[3] + ticks[4], sum(ticks)  # idle, and idle while a disk is waited for
    except (OSError, ValueError, IndexError):
        return None
