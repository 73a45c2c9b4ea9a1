"""What `make demo` plays: the pipeline `practice`, and a few sentences about what came out.

A stage that is finished is not played again, and one that was stopped goes on, since that is what `esckit run` does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RUNS = Path("runs/practice")

INTRODUCTION = """\
First, the practice world: a made-up seeker whose best treatment can be computed, so that learning can be checked.
It is not a model of people, and no number from it says how a supporter helps a person (docs/practice.md)."""


def read(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def helped(out: Path, policy: str | None = None) -> str:
    """Return the share of seekers that a system helped, or a policy that was played beside it, with its interval."""
    group = None if policy is None else {"policy": policy}
    rows = read(out / "metrics.json")["metrics"]
    row = next(row for row in rows if row["name"] == "practice.success" and row["group"] == group)
    ends = row["interval"]
    return f"{100 * row['value']:.0f} % [{100 * ends['low']:.0f}, {100 * ends['high']:.0f}]"


def gained(out: Path) -> str:
    """Return how many more seekers a system helped than the one that it was compared with, with the interval."""
    row = next(row for row in read(out / "metrics.json")["comparisons"] if row["name"] == "practice.success")
    ends = row["interval"]
    return f"{100 * row['difference']:+.0f} points [{100 * ends['low']:+.0f}, {100 * ends['high']:+.0f}]"


def conversation(out: Path) -> Iterator[str]:
    """Yield what was said, and what the critic made of it."""
    (line,) = (out / "futures.jsonl").read_text(encoding="utf-8").splitlines()
    (context,) = (out / "contexts.jsonl").read_text(encoding="utf-8").splitlines()
    for turn in json.loads(context)["turns"]:
        yield f"  {turn['speaker']:<10} {turn['text']}"
    yield "  ---------- from here on the model speaks"
    for exchange in json.loads(line)["exchanges"]:
        yield f"  supporter  {exchange['supporter']['response']}"
        if exchange["seeker"] is not None:
            yield f"  seeker     {exchange['seeker']}"
        if exchange["reading"] is not None:
            yield f"  critic     {float(exchange['reading']['value']):+.2f} of −1 to 1"


def main() -> None:
    """Play the pipeline and say what came out.

    Raises:
        SystemExit: If a stage fails, with its exit code; what is finished is kept.
    """
    began = time.monotonic()
    print(INTRODUCTION, flush=True)
    done = subprocess.run([sys.executable, "-m", "esckit", "run", "practice"], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)

    print("\nThe conversation of the real model:\n")
    print("\n".join(conversation(RUNS / "conversation")))
    print(f"\nDone in {(time.monotonic() - began) / 60:.1f} minutes. Seekers of the practice world that were helped:\n")
    rows = (
        ("random strategies", helped(RUNS / "before")),
        ("after AFlow", f"{helped(RUNS / 'aflow')}, {gained(RUNS / 'aflow')}"),
        ("a taught supporter", helped(RUNS / "taught")),
        ("after RLFF-ESC", f"{helped(RUNS / 'rlff')}, {gained(RUNS / 'rlff')}"),
        ("the optimum", helped(RUNS / "aflow", "optimum")),
    )
    for name, text in rows:
        print(f"  {name:<18} {text}")
    print("\nAFlow's strategies are worded by the world, RLFF-ESC's by a model. The optimum sees the hidden state.")
    print(f"\nThe comparison, trees, futures and conversations: {(RUNS / 'report.html').resolve()}")
    print(f"The runs, one folder for each stage:               {RUNS.resolve()}")


if __name__ == "__main__":
    main()
