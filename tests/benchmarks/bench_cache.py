"""A run against a server of 50 ms, the same run again from the response cache, and what the cache costs by itself.

Run: ``python -m tests.benchmarks.bench_cache [--latency-ms 50] [--limit 4]``. Only prints. The server speaks HTTP on
loopback in a process of its own. Both runs go through the whole command on the sample corpus, with supporter, seeker
and critic on the server; the records of both are compared byte by byte.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

from esckit.config.load import load_recipe
from esckit.models.budget import Budget
from esckit.models.cache import CachedModel, ResponseCache, Row, Shelf
from esckit.simulate.run import SimulateRecipe, run
from esckit.types import FREE, Limits, Message, Sampling
from tests.fakes import FakeModel

N_LOOKUPS = 20_000
RECORDS = ("futures.jsonl", "contexts.jsonl", "failures.jsonl", "summary.json")


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, latency_s: float) -> None:
    """Answer the requests of one connection, one after the other."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        lines = head.decode().lower().split("\r\n")
        length = next((int(line.partition(":")[2]) for line in lines if line.startswith("content-length:")), 0)
        request = json.loads(await reader.readexactly(length)) if length else {}
        if "messages" in request:
            await asyncio.sleep(latency_s)
            is_critic = request["max_tokens"] <= 16
            text = "Same" if is_critic else f"<response>I hear you ({request['seed']}).</response>"
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            body = {"choices": [choice], "usage": {"prompt_tokens": 400, "completion_tokens": 20}}
        else:
            body = {"object": "list", "data": [{"id": "m", "object": "model"}]}
        data = json.dumps(body).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data
        )
        await writer.drain()


def serve(port: "multiprocessing.SimpleQueue[int]", latency_s: float) -> None:
    """Serve until the process is ended; its port goes into the queue."""

    async def forever() -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await _answer(reader, writer, latency_s)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


def timed_run(url: str, limit: int, folder: Path, name: str, cache: str = "answers.db") -> tuple[float, dict[str, int]]:
    """Return the seconds of a run, and what it spent."""
    binding = f"{{endpoint: {{base_url: '{url}'}}, model: m, concurrency: 256}}"
    roles = [f"models.{role}={binding}" for role in ("supporter", "seeker", "critic")]
    changes = [f"data.limit={limit}", f"cache={folder}/{cache}", "concurrency.futures=64", *roles]
    recipe = load_recipe("smoke/simulate_scripted", SimulateRecipe, overrides=changes).recipe
    began_s = time.perf_counter()
    run(recipe, out=folder / name)
    took_s = time.perf_counter() - began_s
    return took_s, json.loads((folder / name / "manifest.json").read_text())["spent"]


def microseconds(n: int, began_s: float) -> float:
    return (time.perf_counter() - began_s) / n * 1e6


async def costs(path: Path) -> dict[str, float]:
    """Return what one lookup, one kept answer and one cached call take, in microseconds."""
    cache = ResponseCache(path)
    rows = [
        Row(f"{number:064d}", "server/m", "complete", json.dumps({"text": "x" * 400})) for number in range(N_LOOKUPS)
    ]
    found = {}
    began_s = time.perf_counter()
    for start in range(0, N_LOOKUPS, 64):
        await asyncio.gather(*map(cache.keep, rows[start : start + 64]))
    found["keep an answer (64 at once)"] = microseconds(N_LOOKUPS, began_s)
    began_s = time.perf_counter()
    for row in rows[:500]:
        await cache.keep(row._replace(key=f"x{row.key}"))
    found["keep an answer (alone)"] = microseconds(500, began_s)
    began_s = time.perf_counter()
    for row in rows:
        cache.find(row.key)
    found["look up an answer"] = microseconds(N_LOOKUPS, began_s)
    inner, budget = FakeModel(), Budget(Limits())
    model = CachedModel(inner, Shelf(cache, "server/n", inner), budget, "critic", FREE)
    prompt = [Message("system", "x" * 1200), Message("user", "y" * 1500)]
    await model.complete(prompt, Sampling(), seed=1)
    began_s = time.perf_counter()
    for _ in range(N_LOOKUPS):
        await model.complete(prompt, Sampling(), seed=1)
    found["a call from the cache, prompt of 2,700 characters"] = microseconds(N_LOOKUPS, began_s)
    cache.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--limit", type=int, default=4, help="dialogues")
    options = parser.parse_args()
    port: multiprocessing.SimpleQueue[int] = multiprocessing.SimpleQueue()
    server = multiprocessing.Process(target=serve, args=(port, options.latency_ms / 1000), daemon=True)
    server.start()
    try:
        url = f"http://127.0.0.1:{port.get()}/v1"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            timed_run(url, 1, folder, "warm", "warm.db")
            first_s, paid = timed_run(url, options.limit, folder, "first")
            again = [timed_run(url, options.limit, folder, f"again-{number}") for number in range(3)]
            second_s, free = statistics.median(took_s for took_s, _ in again), again[0][1]
            equal = all(
                (folder / "first" / file).read_bytes() == (folder / "again-0" / file).read_bytes() for file in RECORDS
            )
            n_calls = paid["calls"] + paid["from_cache"]
            print(f"first run:  {first_s:.2f} s, {paid['calls']} calls, {paid['from_cache']} from the cache")
            print(f"second run: {second_s:.2f} s, {free['calls']} calls, {free['from_cache']} from the cache")
            print(f"{n_calls / second_s:,.0f} calls a second (x {first_s / second_s:.1f}); same bytes: {equal}")
            for what, taken in asyncio.run(costs(folder / "costs.db")).items():
                print(f"{what}: {taken:.0f} µs")
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
