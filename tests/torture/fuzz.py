"""Feeds the readers of :mod:`tests.torture.readers` with very many inputs: ``make fuzz N=1000000``.

With atheris in the environment, inputs are found by coverage of esckit; without it they are those of ``test_fuzz.py``,
only more of them. Each reader has a process of its own, since atheris ends the process when it is done. An input that
gives anything but a value or an error of ours, takes longer than 20 s or more than 2 GB ends its reader with the
traceback, and atheris writes it to a file in the working directory.
"""

import argparse
import contextlib
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LONGEST_S, MOST_MB, LARGEST = 20, 2048, 4096


def by_coverage(name: str, n: int, seed: int) -> None:
    """Run atheris on one reader; it does not return."""
    import atheris

    with atheris.instrument_imports(include=["esckit"]):
        from tests.torture.readers import READERS, TOKENS
    reader = READERS[name]
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    seeds = folder / "seeds"
    seeds.mkdir()
    for number, content in enumerate(reader.seeds):
        (seeds / str(number)).write_bytes(content)
    escaped = ("".join(f"\\x{byte:02x}" for byte in token) for token in TOKENS if len(token) < 64)
    (folder / "tokens").write_text("".join(f'"{token}"\n' for token in escaped))
    limits = [f"-timeout={LONGEST_S}", f"-rss_limit_mb={MOST_MB}", f"-max_len={LARGEST}", f"-artifact_prefix=./{name}-"]
    what = [f"-runs={n}", f"-seed={seed}", f"-dict={folder / 'tokens'}", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *limits, *what, str(seeds)], reader.read)
    atheris.Fuzz()


def by_chance(name: str, n: int, seed: int) -> None:
    """Feed one reader with good content that is changed by chance."""
    from tests.torture.readers import READERS
    from tests.torture.test_fuzz import changed

    for number in range(n):
        content = changed(seed * 1_000_000_007 + number, READERS[name])
        try:
            READERS[name].read(content)
        except Exception:
            Path(f"{name}-crash").write_bytes(content)
            raise


def main() -> int:
    """Run readers one after the other; return 1 if one found something."""
    parser = argparse.ArgumentParser(description="feed readers with very many inputs")
    parser.add_argument("readers", nargs="*", help="names in tests.torture.readers; all of them without any")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="inputs of all readers together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    is_guided = importlib.util.find_spec("atheris") is not None
    if asked.in_this_process:
        (by_coverage if is_guided else by_chance)(asked.readers[0], asked.inputs, asked.seed)
        return 0
    names = (
        asked.readers
        or subprocess.run(
            [sys.executable, "-c", "from tests.torture.readers import READERS; print(*READERS)"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    )
    n_bad, n_each = 0, asked.inputs // len(names)
    for name in names:
        began = time.monotonic()
        own = [sys.executable, "-m", "tests.torture.fuzz", name, f"--inputs={n_each}", f"--seed={asked.seed}"]
        with contextlib.suppress(KeyboardInterrupt):
            done = subprocess.run([*own, "--in-this-process"], capture_output=True, text=True, check=False)
        n_bad += done.returncode != 0
        how = "by coverage" if is_guided else "by chance"
        found = "nothing found" if done.returncode == 0 else f"FOUND\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        sys.stdout.write(f"{name}: {n_each:,} inputs {how}, {time.monotonic() - began:.0f} s: {found}\n")
        sys.stdout.flush()
    return int(n_bad > 0)


if __name__ == "__main__":
    sys.exit(main())
