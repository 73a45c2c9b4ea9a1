"""How long help takes, as a whole process, beside ``python -c "import typer"``.

Run: ``python -m tests.benchmarks.bench_startup [--runs 7]``. Only prints. The baseline and every command run in turn,
so that a machine whose speed drifts slows both.
"""

import argparse
import statistics
import subprocess
import sys
import time

from esckit.cli.app import COMMANDS

BASELINE = ("-c", "import typer")


def commands() -> list[str]:
    """The visible commands, and the program itself first."""
    return ["", *COMMANDS]


def seconds(*args: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *args], capture_output=True, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    n_runs = parser.parse_args().runs
    print("| command | s (median) | x import typer (median of pairs) |")
    print("|---|---|---|")
    for command in commands():
        pairs = [
            (seconds("-m", "esckit", *filter(None, [command]), "--help"), seconds(*BASELINE)) for _ in range(n_runs)
        ]
        ours = statistics.median(pair[0] for pair in pairs)
        ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
        print(f"| `esckit {command} --help`".replace("  ", " ") + f" | {ours:.2f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
