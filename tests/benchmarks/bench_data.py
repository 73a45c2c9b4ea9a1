"""How long all of ESConv takes to load, beside only parsing its JSON.

Run: ``python -m tests.benchmarks.bench_data [--path ../shared/data/esconv]``. Only prints. Loading normalises every
text, computes ids, and checks every field of the format; parsing does none of it and is the floor.
"""

import argparse
import json
import os
import resource
import statistics
import time
from pathlib import Path

from esckit.data.corpus import read_corpus
from esckit.data.layouts import IssueList


def parse(folder: Path) -> int:
    return sum(
        1
        for split in ("train", "valid", "test")
        for line in (folder / f"{split}.txt").open(encoding="utf-8")
        if json.loads(line)
    )


def load(folder: Path) -> int:
    return len(read_corpus(folder, sink=IssueList()).dialogues)


def timed(work: object, folder: Path) -> float:
    began = time.perf_counter()
    work(folder)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    named = os.environ.get("ESCKIT_DATA", "../shared/data")
    parser.add_argument("--path", type=Path, default=Path(named) / "esconv")
    folder = parser.parse_args().path
    pairs = [(timed(load, folder), timed(parse, folder)) for _ in range(5)]
    ours, floor = (statistics.median(column) for column in zip(*pairs, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{load(folder)} dialogues: {ours:.2f} s, JSON alone {floor:.2f} s (x {ours / floor:.1f}), peak {peak:.0f} MB"
    )


if __name__ == "__main__":
    main()
