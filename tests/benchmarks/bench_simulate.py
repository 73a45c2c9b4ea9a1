"""Futures per minute of the smoke recipe, many at once beside one at a time.

Run: ``python -m tests.benchmarks.bench_simulate [--limit 4] [--invariant]``. Only prints. Both go through the whole
command with the embedded model and the sample corpus; the baseline differs in ``concurrency.futures`` alone, so the
ratio is what batching concurrent requests gives. With ``--invariant`` it differs in ``executor.batching`` alone, so the
ratio is what equal bytes at any concurrency cost. Processor seconds are those of this process; use them on a busy
machine. The model is loaded before.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from esckit.config.load import load_recipe
from esckit.simulate.run import SimulateRecipe, run


class Measured(NamedTuple):
    n: int
    seconds: float
    cpu_seconds: float

    def __str__(self) -> str:
        per_minute = 60 * self.n / self.seconds
        return f"{per_minute:.1f} futures a minute, {self.seconds:.1f} s, {self.cpu_seconds:.1f} CPU s"


def measured(limit: int, *overrides: str) -> Measured:
    recipe = load_recipe("smoke/simulate", SimulateRecipe, overrides=[f"data.limit={limit}", *overrides]).recipe
    with tempfile.TemporaryDirectory() as folder:
        began, cpu_began = time.perf_counter(), time.process_time()
        result = run(recipe, out=Path(folder) / "run")
        return Measured(result.summary["futures"], time.perf_counter() - began, time.process_time() - cpu_began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=4, help="dialogues")
    parser.add_argument("--invariant", action="store_true", help="beside executor.batching: invariant instead")
    asked = parser.parse_args()
    other = "executor.batching=invariant" if asked.invariant else "concurrency.futures=1"
    for way in ("concurrency.futures=64", other):
        measured(1, "simulation.horizon=1", "simulation.candidates=1", way)
    together, beside = (measured(asked.limit, way) for way in ("concurrency.futures=64", other))
    print(f"{together.n} futures\ntogether: {together}\n{other}: {beside}")
    ratios = beside.seconds / together.seconds, beside.cpu_seconds / together.cpu_seconds
    print(f"x {ratios[0]:.1f} seconds, x {ratios[1]:.1f} CPU seconds")


if __name__ == "__main__":
    main()
