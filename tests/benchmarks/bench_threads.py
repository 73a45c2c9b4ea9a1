"""The embedded model under several ways to wait for threads, on an idle machine and with one busy core.

Run: ``python -m tests.benchmarks.bench_threads [--repeat 5]``, on a quiet machine. Only prints.

Each measurement is a process of its own, which reads the weights, answers once, and then writes the same replies to
eight prompts at a time: seconds of these replies. The settings take turns, so that a slow phase of the machine hits all
of them; medians of seconds are printed, and what share of the idle and the busy time of libgomp's default they take.
``esckit`` sets nothing and lets esckit choose; the others are what a user can set. A good choice takes at most 1.10 of
the idle time and 0.50 of the busy time.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from esckit.cli.openmp import USERS, choose_waiting

DEFAULT = "spin 300000 (libgomp's default)"

SETTINGS: dict[str, tuple[dict[str, str], int | None]] = {
    DEFAULT: ({"GOMP_SPINCOUNT": "300000"}, None),
    "spin 10000": ({"GOMP_SPINCOUNT": "10000"}, None),
    "spin 3000": ({"GOMP_SPINCOUNT": "3000"}, None),
    "spin 1000": ({"GOMP_SPINCOUNT": "1000"}, None),
    "spin 300": ({"GOMP_SPINCOUNT": "300"}, None),
    "passive": ({"OMP_WAIT_POLICY": "PASSIVE"}, None),
    "one thread": ({}, 1),
    "esckit": ({}, None),
}
"""Variables, and threads where a setting names them."""

TALK = "Every week it got worse at work, and I saw it coming and told nobody. What would you do in my place?"

ROUNDS = 2


def seconds(name: str) -> float:
    """Return what the replies take in a process of its own."""
    variables, threads = SETTINGS[name]
    env = {key: value for key, value in os.environ.items() if key not in USERS} | variables
    words = [sys.executable, "-m", "tests.benchmarks.bench_threads", "--write", str(threads or "")]
    return float(subprocess.run(words, env=env, check=True, capture_output=True, text=True).stdout)


def write(threads: int | None) -> float:
    """Return the seconds that the replies take in this process."""
    choose_waiting(threads)
    import torch

    from esckit.models.local import LocalModel
    from esckit.types import Message, Sampling

    if threads is not None:
        torch.set_num_threads(threads)
    model = LocalModel.load("smollm2-135m-instruct")

    async def replies(n_tokens: int) -> None:
        asked = [
            model.complete((Message("user", f"{TALK} {n}"),), Sampling(max_tokens=n_tokens), seed=n) for n in range(8)
        ]
        await asyncio.gather(*asked)

    asyncio.run(replies(1))
    began = time.perf_counter()
    for _ in range(ROUNDS):
        asyncio.run(replies(24))
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


def measured(names: Sequence[str], repeat: int) -> dict[tuple[str, int], list[float]]:
    found: dict[tuple[str, int], list[float]] = {}
    for turn in range(repeat):
        for cores in (0, 1):
            for name in names:
                with busy(cores):
                    found.setdefault((name, cores), []).append(seconds(name))
        print(f"turn {turn + 1} of {repeat} done", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--write", default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.write is not None:
        print(write(int(asked.write) if asked.write else None))
        return
    names = [name for name in SETTINGS if name in {DEFAULT, *asked.only}]
    found = {key: statistics.median(values) for key, values in measured(names, asked.repeat).items()}
    print(f"{'setting':<34}{'idle s':>8}{'busy s':>8}{'idle':>7}{'busy':>7}")
    for name in names:
        idle, loaded = found[name, 0], found[name, 1]
        shares = f"{idle / found[DEFAULT, 0]:>7.2f}{loaded / found[DEFAULT, 1]:>7.2f}"
        print(f"{name:<34}{idle:>8.1f}{loaded:>8.1f}{shares}")


if __name__ == "__main__":
    main()
