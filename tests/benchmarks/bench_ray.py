"""Runs on a Ray cluster: units a second for 1, 2 and 4 workers, what a unit costs, and the memory of the command.

Run: ``python -m tests.benchmarks.bench_ray [--units 2000] [--empty 100000]``. Only prints. A unit of the first table is
one call to a fake server that answers after 50 ms, with 16 units in flight for each worker; the ideal is 320 units a
second and worker. An empty unit does nothing: what it takes is the way to a worker and back. The cluster is started on
this machine; on few processors the workers and the server share them.
"""

import argparse
import asyncio
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esckit.config.load import load_recipe
from esckit.ledger import Ledger
from esckit.play.executor import UnitPlayers
from esckit.play.places import executing
from esckit.roles.asking import Voice
from esckit.roles.pool import ModelPool
from esckit.simulate.run import SimulateRecipe
from esckit.types import Message, Turn
from tests.benchmarks.slow_server import running

PER_WORKER = 16
LATENCY_MS = 50
MESSAGES = [Message("user", "I lost my job in spring, and since then I have not told anybody.")]


async def asking(pool: ModelPool, recipe: SimulateRecipe) -> UnitPlayers:
    """Return what asks the server once for each unit."""
    binding = recipe.models.supporter
    await pool.prepare({"supporter": binding})
    voice: Voice = pool.voice(binding, "supporter", max_attempts=1)

    async def ask(number: int) -> Turn:
        scope = Ledger(recipe.seed, str(number)).at(0)
        reply = await voice.model.complete(MESSAGES, binding.sampling, seed=scope.seed("supporter"))
        return Turn(speaker="supporter", text=reply.text)

    return UnitPlayers({"units": ask})


async def idling(pool: ModelPool, recipe: SimulateRecipe) -> UnitPlayers:
    """Return what does nothing."""

    async def idle(number: int) -> Turn:
        return Turn(speaker="supporter", text=f"unit {number} of a run that only counts what a unit costs")

    return UnitPlayers({"units": idle})


def recipe(n_workers: int, address: str | None = None) -> SimulateRecipe:
    """Return a recipe for so many workers, or for this process if there are none."""
    changes = []
    if n_workers:
        changes += ["executor.kind=ray", "executor.address=local", f"executor.workers={n_workers}"]
    if address is not None:
        endpoint = f"{{endpoint: {{base_url: '{address}'}}, model: supporter, concurrency: {PER_WORKER}}}"
        changes += [f"models.supporter={endpoint}"]
    return load_recipe("smoke/simulate_scripted", SimulateRecipe, overrides=changes).recipe


async def rate(asked: SimulateRecipe, cast: Any, n_units: int, limit: int) -> tuple[float, list[int]]:
    """Return units a second once the first worker is ready, and the memory of this process in MiB on the way."""
    memory: list[int] = []
    n_taken = 0

    def take(_: object) -> None:
        nonlocal n_taken
        n_taken += 1
        if n_taken % max(1, n_units // 10) == 0:
            memory.append(rss_mib())

    def units() -> Iterator[int]:
        yield from range(n_units)

    async with executing(asked, limit, cast) as executor:
        await executor.run("units", range(4 * limit), lambda _: None)
        began = time.perf_counter()
        await executor.run("units", units(), take)
        return n_units / (time.perf_counter() - began), memory


def rss_mib() -> int:
    """Return the memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=2000)
    parser.add_argument("--empty", type=int, default=100_000)
    given = parser.parse_args()
    ideal = 1000 / LATENCY_MS * PER_WORKER
    with running("--latency-ms", str(LATENCY_MS)) as address:
        for n_workers in (0, 1, 2, 4):
            limit = PER_WORKER * max(1, n_workers)
            found, _ = asyncio.run(rate(recipe(n_workers, address), asking, given.units, limit))
            name = f"{n_workers} workers" if n_workers else "this process"
            print(f"{name:<13}{found:8.0f} units a second, {found / ideal / max(1, n_workers):5.0%} of the ideal")
    for n_workers in (1, 2):
        found, memory = asyncio.run(rate(recipe(n_workers), idling, given.empty, 64))
        print(
            f"{n_workers} workers, {given.empty:,} empty units: {1000 / found:.2f} ms a unit; "
            f"MiB after each tenth: {' '.join(map(str, memory))}"
        )


if __name__ == "__main__":
    main()
