"""Size, build time and opening time of the report of a search: 8 trees of 60 simulations.

Run: ``python -m tests.benchmarks.bench_report [--trees 8] [--simulations 60]``. Only prints. Opening needs Chromium.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from esckit.report.run import write_report
from tests.report.browser import Browser, find_chromium
from tests.report.run_folders import search_run

REPLY = "It makes sense that this keeps you awake, and it took courage to say so. What would help you tonight? " * 2


def opening_seconds(page: Path, profile: Path) -> list[float]:
    """Return seconds from navigation to the finished page, explorer included, of several openings."""
    executable = find_chromium()
    if executable is None:
        return []
    with Browser(executable, profile) as browser:
        browser.resize(1280, 900)
        return [browser.open(page) for _ in range(5)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trees", type=int, default=8)
    parser.add_argument("--simulations", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = search_run(Path(folder) / "run", n_trees=options.trees, n_simulations=options.simulations, text=REPLY)
        began = time.perf_counter()
        page = write_report([run]).page
        built = time.perf_counter() - began
        opened = opening_seconds(page, Path(folder) / "profile")
        print("| trees | simulations each | page, MB | built in, s | opens in, s (first, median of 5) |")
        print("|---|---|---|---|---|")
        seconds = f"{opened[0]:.2f}, {statistics.median(opened):.2f}" if opened else "no Chromium"
        size = page.stat().st_size / 1e6
        print(f"| {options.trees} | {options.simulations} | {size:.2f} | {built:.2f} | {seconds} |")


if __name__ == "__main__":
    main()
