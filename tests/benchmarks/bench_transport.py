"""What one call to a server costs the client: processor time and calls a second, beside the openai SDK.

Run: ``python -m tests.benchmarks.bench_transport [--calls 2000]``. Only prints. All ways ask the same fake server, in a
process of its own, for the same answers, 64 at once. "a whole critic" is a rated supporter turn from prompt to record.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable

import openai

from esckit.config import sections
from esckit.config.sections import RoleOptions
from esckit.ledger import Ledger
from esckit.models.endpoint import EndpointModel
from esckit.models.transport import Timeouts
from esckit.prompts.prompt import load_prompt
from esckit.roles.asking import Voice
from esckit.roles.rubric import RubricCritic
from esckit.types import Message, Sampling, Scenario, Turn
from tests.benchmarks.slow_server import running

AT_ONCE = 64
SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_tokens=256)
SITUATION = "I lost my job in spring, and since then I have not told anybody how bad it really is. " * 4
MESSAGES = [
    Message("system", "You are a supporter in a conversation with a person who seeks emotional support. " * 8),
    *(Message("user" if turn % 2 == 0 else "assistant", f"{turn}: {SITUATION}") for turn in range(9)),
]
TURNS = [Turn(speaker="seeker" if turn % 2 == 0 else "supporter", text=f"{turn}: {SITUATION}") for turn in range(10)]

Ask = Callable[[int], Awaitable[object]]


async def spent(ask: Ask, n_calls: int) -> tuple[float, float]:
    """Return the milliseconds of processor time per call, and calls a second."""
    numbers = iter(range(n_calls))

    async def worker() -> None:
        for number in numbers:
            await ask(number)

    await asyncio.gather(*(ask(number) for number in range(AT_ONCE)))
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return 1000 * cpu / n_calls, n_calls / wall


async def measure(url: str, n_calls: int) -> None:
    client = openai.AsyncOpenAI(base_url=url, api_key="no-key", max_retries=0, timeout=180.0)
    plain = [{"role": message.role, "content": message.content} for message in MESSAGES]
    extra = {"top_k": 0, "repetition_penalty": 1.0}
    model = EndpointModel(url, "m", api_key_env="ESC_BENCH_KEY", timeouts=Timeouts(concurrency=AT_ONCE))
    rater = EndpointModel(url, "critic", timeouts=Timeouts(concurrency=AT_ONCE))
    critic = RubricCritic(
        Voice(rater, RoleOptions(sampling=SAMPLING)), load_prompt("critic_aflow"), sections.RubricCritic()
    )
    scenario = Scenario(id="s", situation=SITUATION)

    async def sdk(number: int) -> object:
        return await client.chat.completions.create(
            model="m", messages=plain, temperature=0.7, top_p=0.9, max_tokens=256, seed=number, extra_body=extra
        )

    async def ours(number: int) -> object:
        return await model.complete(MESSAGES, SAMPLING, seed=number)

    async def whole(number: int) -> object:
        ledger = Ledger(0, str(number))
        return (await critic.score(scenario, TURNS, ledger.at(number))).model_dump_json()

    print("| way | CPU ms per call | calls/s |")
    print("|---|---:|---:|")
    for name, ask in (("openai SDK", sdk), ("EndpointModel", ours), ("a whole critic", whole), ("openai SDK", sdk)):
        cpu_ms, rate = await spent(ask, n_calls)
        print(f"| {name} | {cpu_ms:.2f} | {rate:.0f} |", flush=True)
    await client.close()
    await model.aclose()
    await rater.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    os.environ["ESC_BENCH_KEY"] = "sk-bench-0123456789abcdef0123456789abcdef"
    with running() as url:
        asyncio.run(measure(url, parser.parse_args().calls))


if __name__ == "__main__":
    main()
