"""Search and simulation over HTTP against a server that answers after 50 ms, beside the ideal; a server that refuses.

Run: ``python -m tests.benchmarks.bench_server_load [--units 1 8 64 256] [--simulations 5] [--horizon 3]
[--requests 10000]``. Only prints.

The ideal is the time that the longest chain of calls takes if nothing but the latency counts. The server is one process
and the client another; a row that stays below its ideal while "CPU" is near 1 is bound by the client's processor.

The second table is a run of single requests of which a tenth is refused with 429 and ``Retry-After: 1``. Its ideal is a
client that always has as many requests in flight as the recipe allows, waits included; the first row has no refusals.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from esckit.config import sections
from esckit.config.sections import RoleOptions
from esckit.models.endpoint import EndpointModel
from esckit.models.transport import Timeouts
from esckit.play.executor import spread
from esckit.play.rollout import Cast, Rules, play_future
from esckit.prompts.prompt import load_prompt
from esckit.roles.asking import Voice
from esckit.roles.critics import ResolutionCritic
from esckit.roles.players import AFlowSeeker, AFlowSupporter, PromptedSeeker, PromptedStrategist, PromptedSupporter
from esckit.roles.rubric import RubricCritic
from esckit.roles.verdicts import load_preset
from esckit.search.expansion import Players
from esckit.search.mcts import Grown, grow_tree
from esckit.types import Context, Future, Message, Sampling, Scenario, Turn, Usage
from tests.benchmarks.bench_search import MEMORY, longest_chain
from tests.benchmarks.slow_server import running
from tests.search.fakes import AFLOW, provenance, settings, task

LATENCY_S, RETRY_AFTER_S, REFUSED = 0.05, 1.0, 0.1
SAMPLING = Sampling(temperature=0.7, top_p=0.9)
IN_FLIGHT = 1024

T = TypeVar("T")


@dataclass
class Server:
    """Models of one server, each asked as one role."""

    url: str
    concurrency: int = IN_FLIGHT

    def __post_init__(self) -> None:
        self.models: dict[str, EndpointModel] = {}

    def voice(self, name: str) -> Voice:
        timeouts = Timeouts(concurrency=self.concurrency)
        self.models[name] = EndpointModel(self.url, name, timeouts=timeouts)
        return Voice(self.models[name], RoleOptions(sampling=SAMPLING))

    async def aclose(self) -> None:
        for model in self.models.values():
            await model.aclose()


def played(server: Server, n: int, one: Callable[[int], Awaitable[T]]) -> tuple[list[T], float, float]:
    """Play so many units at once; return them, the seconds taken, and the share of a processor that the client used."""
    found: list[T] = []

    async def go() -> None:
        await spread(range(n), one, found.append, limit=n)
        await server.aclose()

    wall, cpu = time.perf_counter(), time.process_time()
    asyncio.run(go())
    wall = time.perf_counter() - wall
    return found, wall, time.process_time() - cpu


def search(url: str, n: int, n_simulations: int) -> tuple[float, float, int, float]:
    server = Server(url)
    players = Players(
        AFlowSeeker(
            server.voice("seeker"),
            load_prompt("seeker_aflow"),
            AFLOW,
            {task(number).scenario.id: MEMORY for number in range(n)},
            memory_guard=True,
        ),
        AFlowSupporter(server.voice("supporter"), load_prompt("supporter_aflow"), AFLOW),
        RubricCritic(server.voice("critic"), load_prompt("critic_aflow"), sections.RubricCritic()),
        PromptedStrategist(server.voice("strategist"), load_prompt("strategist"), AFLOW, "json"),
    )

    async def one(number: int) -> Grown:
        return await grow_tree(task(number), players, settings(n_simulations=n_simulations), provenance())

    found, wall_s, cpu_s = played(server, n, one)
    n_calls = sum(usage.calls for grown in found for usage in grown.tree.usage.values())
    return wall_s, max(map(longest_chain, found)) * LATENCY_S, n_calls, cpu_s


def simulate(url: str, n: int, horizon: int, samples_as: str) -> tuple[float, float, int, float]:
    server = Server(url)
    critic = sections.ResolutionCritic.model_validate({"samples_as": samples_as})
    preset = load_preset("rlff7")
    cast = Cast(
        PromptedSupporter(server.voice("supporter_rlff"), load_prompt("supporter_rlff")),
        PromptedSeeker(server.voice("seeker"), load_prompt("seeker")),
        ResolutionCritic(server.voice("resolution"), load_prompt("critic_resolution"), preset, critic),
    )
    scenario = Scenario(id="s", situation="I lost my job.", emotion_type="fear")

    async def one(number: int) -> Future:
        turns = (Turn(speaker="seeker", text="Hello, I lost my job."),)
        context = Context(id=f"c{number}#m1", dialogue_id=f"c{number}", scenario=scenario, turns=turns)
        return await play_future(context, 0, cast=cast, rules=Rules(horizon=horizon), run_seed=7)

    found, wall_s, cpu_s = played(server, n, one)
    usages: list[Usage] = [usage for future in found for usage in future.usage.values()]
    chain = 3 * horizon + 2
    return wall_s, chain * LATENCY_S, sum(usage.calls for usage in usages), cpu_s


def refused(url: str, n_requests: int, concurrency: int, share: float) -> None:
    server = Server(url, concurrency)
    model = server.voice("m").model

    async def one(number: int) -> object:
        return await model.complete([Message("user", f"Hello {number}")], SAMPLING, seed=number)

    async def go() -> None:
        numbers = iter(range(n_requests))

        async def worker() -> None:
            for number in numbers:
                await one(number)

        await asyncio.gather(*(worker() for _ in range(2 * concurrency)))
        await server.aclose()

    wall = time.perf_counter()
    asyncio.run(go())
    wall = time.perf_counter() - wall
    # Of every answer so many requests were refused before it, and waited.
    n_refused = share / (1 - share)
    ideal = n_requests * (LATENCY_S + n_refused * (LATENCY_S + RETRY_AFTER_S)) / concurrency
    places = server.models["m"].in_flight
    print(f"| {share:.0%} | {concurrency} | {wall:.1f} | {ideal:.1f} | {ideal / wall:.0%} | {places} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--simulations", type=int, default=5)
    parser.add_argument("--horizon", type=int, default=3)
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    print("| what | units in flight | s | ideal s | share | calls/s | CPU ms per call | CPU |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    with running("--latency-ms", str(1000 * LATENCY_S)) as url:
        for n in options.units:
            for name, found in (
                ("search", search(url, n, options.simulations)),
                ("simulate", simulate(url, n, options.horizon, None)),
                ("simulate, choices", simulate(url, n, options.horizon, "choices")),
            ):
                wall_s, ideal_s, calls, cpu_s = found
                print(
                    f"| {name} | {n} | {wall_s:.2f} | {ideal_s:.2f} | {ideal_s / wall_s:.0%} | {calls / wall_s:.0f} "
                    f"| {1000 * cpu_s / calls:.2f} | {cpu_s / wall_s:.2f} |",
                    flush=True,
                )
    print("\n| refused | in flight | s | ideal s | share | places |")
    print("|---|---:|---:|---:|---:|---|")
    for share in (0.0, REFUSED):
        with running("--latency-ms", str(1000 * LATENCY_S), "--refused", str(share)) as url:
            refused(url, options.requests, 64, share)


if __name__ == "__main__":
    main()
