"""Peak memory of small and large runs with scripted models, and how soon a large finished run is resumed.

Run: ``python -m tests.benchmarks.bench_memory [--contexts 10000] [--trees 1000] [--finished 100000] [--corpus 10000]
[--cases 1000]``; 0 leaves one out. Only prints. The whole takes about twenty minutes on a quiet machine. Memory is the
peak resident size of a process; aim: within 10 % from 100 to 10,000 contexts and from 10 to 1,000 trees. What ``data
inspect`` and the end of ``evaluate`` take grows with the dialogues (docs/scaling.md). Resuming is the time from the
call of the command's ``run`` until it plays units, imports not included, with all but one of the futures on disk; aim:
2 s. What the corpus and the finished futures take of it is shown apart.
"""

import argparse
import contextlib
import tempfile
import time
from pathlib import Path

from esckit.config.load import load_recipe
from esckit.errors import StorageError
from esckit.play.unit_file import UnitFile
from esckit.simulate.run import SimulateRecipe, _contexts, _may_fail, run
from esckit.types import Future
from tests.big_runs import N_CONTEXTS, inspect_mb, peak_mb, write_corpus, write_finished

SIMULATE = ("critic.samples=2", f"contexts.per_dialogue={N_CONTEXTS}", "simulation={candidates: 1, horizon: 1}")

SEARCH = ("mcts={n_simulations: 10, max_depth: 4, rollout_turns: 1}", "concurrency.trees=8")


EVALUATE = ("suites=[dialogue, response]", "models.scorer=null", "models.reward=null", "statistics.resamples=10000")


class Stopwatch:
    """A progress display that notes when the playing of units began."""

    def __init__(self) -> None:
        self.began, self.started = time.perf_counter(), 0.0

    def start(self, total: int, done: int = 0) -> None:
        self.started = time.perf_counter() - self.began

    def advance(self, n: int = 1, **counts: int) -> None:
        pass

    def close(self) -> None:
        pass


class StopsAtOnce(Stopwatch):
    """Ends a run after its first unit."""

    def advance(self, n: int = 1, **counts: int) -> None:
        raise StorageError("enough")


def memory(folder: Path, command: str, small: int, large: int, what: str, *changes: str) -> None:
    peaks = []
    for n in (small, large):
        n_dialogues = n // N_CONTEXTS if command == "simulate" else n  # a tree or self-played dialogue for each
        corpus = write_corpus(folder / f"{n}.jsonl", n_dialogues)
        peaks.append(peak_mb(command, corpus, *changes, out=folder / f"{command}-{n}"))
    ratio = peaks[1] / peaks[0]
    print(f"{command}: {peaks[0]:.1f} MB for {small:,} {what}, {peaks[1]:.1f} MB for {large:,} (x {ratio:.3f})")


def inspect(folder: Path, small: int, large: int) -> None:
    peaks = []
    for n in (small, large):
        write_corpus(folder / f"{n}.jsonl", n)
        peaks.append(inspect_mb(folder / f"{n}.jsonl"))
    print(f"data inspect: {peaks[0]:.1f} MB for {small:,} dialogues, {peaks[1]:.1f} MB for {large:,}")


def resume(folder: Path, n: int) -> None:
    candidates = 4
    corpus = write_corpus(folder / "resumed.jsonl", -(-n // (N_CONTEXTS * candidates)))
    changes = [corpus, f"contexts.per_dialogue={N_CONTEXTS}", f"simulation={{candidates: {candidates}}}"]
    recipe = load_recipe("smoke/simulate_scripted", SimulateRecipe, overrides=changes).recipe
    out = folder / "resumed"

    with contextlib.suppress(StorageError):
        run(recipe, out=out, progress=StopsAtOnce())
    _, contexts = _contexts(recipe)
    ids = [f"{name}:c{number}" for name in contexts.ids for number in range(candidates)]
    write_finished(out / "futures.jsonl", ids[:-1])
    size_mb = (out / "futures.jsonl").stat().st_size / 1e6

    began = time.perf_counter()
    _contexts(recipe)
    corpus_s = time.perf_counter() - began
    file = UnitFile("futures.jsonl", Future, ids, ids.__getitem__, is_failed=lambda future: False, may_fail=_may_fail)
    began, began_cpu = time.perf_counter(), time.process_time()
    file.read(out)
    read_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    watch = Stopwatch()
    run(recipe, out=out, progress=watch)
    print(
        f"resume with {len(ids) - 1:,} finished futures ({size_mb:.0f} MB): {watch.started:.2f} s until units are "
        f"played, of it corpus {corpus_s:.2f} s, futures {read_s:.2f} s ({cpu_s:.2f} s of the processor)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, default=10_000)
    parser.add_argument("--trees", type=int, default=1_000)
    parser.add_argument("--finished", type=int, default=100_000)
    parser.add_argument("--corpus", type=int, default=10_000)
    parser.add_argument("--cases", type=int, default=1_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.contexts:
            memory(folder, "simulate", asked.contexts // 100, asked.contexts, "contexts", *SIMULATE)
        if asked.trees:
            memory(folder, "search", asked.trees // 100, asked.trees, "trees", *SEARCH)
        if asked.corpus:
            inspect(folder, asked.corpus // 100, asked.corpus)
        if asked.cases:
            memory(folder, "evaluate", asked.cases // 10, asked.cases, "dialogues", *EVALUATE)
        if asked.finished:
            resume(folder, asked.finished)


if __name__ == "__main__":
    main()
