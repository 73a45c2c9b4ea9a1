"""Futures per minute of the smoke recipe, many at once beside one at a time.

Run: ``python -m tests.benchmarks.bench_simulate [--limit 4]``. Only prints. Both go through the whole command with the
embedded model and the sample corpus; the baseline differs in ``concurrency.futures`` alone, so the ratio is what
batching concurrent requests gives.
"""

import argparse
import tempfile
import time
from pathlib import Path

from esckit.config.load import load_recipe
from esckit.simulate.run import SimulateRecipe, run


def per_minute(n_futures: int, limit: int) -> tuple[float, int]:
    overrides = [f"data.limit={limit}", f"concurrency.futures={n_futures}"]
    recipe = load_recipe("smoke/simulate", SimulateRecipe, overrides=overrides).recipe
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        result = run(recipe, out=Path(folder) / "run")
        minutes = (time.perf_counter() - began) / 60
    n = result.summary["futures"]
    return n / minutes, n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=4)
    limit = parser.parse_args().limit
    per_minute(1, 1)
    together, n = per_minute(64, limit)
    alone, _ = per_minute(1, limit)
    print(f"{n} futures: {together:.1f} a minute together, {alone:.1f} one at a time (x {together / alone:.1f})")


if __name__ == "__main__":
    main()
