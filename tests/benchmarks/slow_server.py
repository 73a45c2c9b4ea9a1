"""An OpenAI-compatible server that answers after a fixed time, in a process of its own, for the benchmarks.

Run: ``python -m tests.benchmarks.slow_server [--latency-ms 50] [--refused 0.1]``; it prints its address. What it says
depends on the model that a request names: one model per role, each answering in that role's form.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from esckit.strategies.taxonomy import load_taxonomy

ANSWERS = {
    "seeker": "I keep thinking that I should have seen it coming, you know.",
    "supporter": "That sounds exhausting, and it makes sense that you feel this way after such a week.",
    "supporter_rlff": "<think>They feel alone with it.</think> <response>That sounds exhausting.</response>",
    "strategist": json.dumps(dict.fromkeys(load_taxonomy("aflow").abbrs, 0.125)),
    "critic": "1: 4\n2: 3\n3: 5\n4: 4",
    "resolution": "Same",
}


def answer(body: bytes) -> bytes:
    """Return the completion that a request asks for."""
    asked = json.loads(body)
    text = ANSWERS.get(asked["model"], "hello")
    choices = [
        {"index": at, "message": {"role": "assistant", "content": text + "." * at}, "finish_reason": "stop"}
        for at in range(asked.get("n", 1))
    ]
    usage = {"prompt_tokens": 400, "completion_tokens": 20 * len(choices), "total_tokens": 400 + 20 * len(choices)}
    completion = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked["model"]}
    return json.dumps({**completion, "choices": choices, "usage": usage}).encode()


def response(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def serve(latency_s: float, refused: float, retry_after_s: float) -> None:
    draw = random.Random(0)
    models = json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in (*ANSWERS, "m")]})
    refusal = json.dumps({"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit"}})

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
                )
                body = await reader.readexactly(length)
                if head.startswith(b"GET"):
                    writer.write(response("200 OK", models.encode()))
                    continue
                await asyncio.sleep(latency_s)
                if draw.random() < refused:
                    busy = ("429 Too Many Requests", refusal.encode(), f"retry-after: {retry_after_s:g}")
                    writer.write(response(*busy))
                else:
                    writer.write(response("200 OK", answer(body)))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


@contextmanager
def running(*options: str) -> Iterator[str]:
    """Start the server and yield its address."""
    command = [sys.executable, "-m", "tests.benchmarks.slow_server", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--refused", type=float, default=0.0, help="share of requests that are answered with 429")
    parser.add_argument("--retry-after", type=float, default=1.0, help="seconds that a refusal asks to wait")
    options = parser.parse_args()
    asyncio.run(serve(options.latency_ms / 1000, options.refused, options.retry_after))


if __name__ == "__main__":
    main()
