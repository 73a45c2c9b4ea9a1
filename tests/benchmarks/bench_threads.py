"""A small simulate with the embedded model under several ways to wait for threads, idle and with one busy core.

Run: ``python -m tests.benchmarks.bench_threads [--repeat 5] [--limit 6]``, on a quiet machine. Only prints.

The settings take turns, so that a slow phase of the machine hits all of them; medians of seconds are printed, and what
share of the idle and the busy time of libgomp's default they take. ``esckit`` sets nothing and lets esckit choose; the
others are what a user can set. A good choice takes at most 1.10 of the idle time and 0.50 of the busy time.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from esckit.cli.openmp import USERS

DEFAULT = "spin 300000 (libgomp's default)"

SETTINGS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    DEFAULT: ({"GOMP_SPINCOUNT": "300000"}, ()),
    "spin 10000": ({"GOMP_SPINCOUNT": "10000"}, ()),
    "spin 3000": ({"GOMP_SPINCOUNT": "3000"}, ()),
    "spin 1000": ({"GOMP_SPINCOUNT": "1000"}, ()),
    "spin 300": ({"GOMP_SPINCOUNT": "300"}, ()),
    "passive": ({"OMP_WAIT_POLICY": "PASSIVE"}, ()),
    "one thread": ({}, ("executor.threads=1",)),
    "esckit": ({}, ()),
}


def seconds(name: str, limit: int, threads: int | None) -> float:
    variables, changes = SETTINGS[name]
    env = {key: value for key, value in os.environ.items() if key not in USERS} | variables
    if threads is not None and variables:
        changes = (*changes, f"executor.threads={threads}")
    with tempfile.TemporaryDirectory() as folder:
        words = ["simulate", "smoke/simulate", "--out", str(Path(folder) / "run")]
        for change in (f"data.limit={limit}", *changes):
            words += ["--set", change]
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "esckit", *words], env=env, check=True, capture_output=True)
        return time.perf_counter() - began


@contextmanager
def busy(cores: int) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measured(names: Sequence[str], repeat: int, limit: int, threads: int | None) -> dict[tuple[str, int], list[float]]:
    found: dict[tuple[str, int], list[float]] = {}
    for turn in range(repeat):
        for cores in (0, 1):
            for name in names:
                with busy(cores):
                    found.setdefault((name, cores), []).append(seconds(name, limit, threads))
        print(f"turn {turn + 1} of {repeat} done", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--limit", type=int, default=6, help="dialogues")
    parser.add_argument("--threads", type=int, default=None, help="threads where spinning is set; else torch's choice")
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS), metavar="SETTING")
    asked = parser.parse_args()
    names = [name for name in SETTINGS if name in {DEFAULT, *asked.only}]
    found = {
        key: statistics.median(values)
        for key, values in measured(names, asked.repeat, asked.limit, asked.threads).items()
    }
    print(f"{'setting':<34}{'idle s':>8}{'busy s':>8}{'idle':>7}{'busy':>7}")
    for name in names:
        idle, loaded = found[name, 0], found[name, 1]
        shares = f"{idle / found[DEFAULT, 0]:>7.2f}{loaded / found[DEFAULT, 1]:>7.2f}"
        print(f"{name:<34}{idle:>8.1f}{loaded:>8.1f}{shares}")


if __name__ == "__main__":
    main()
