"""The local engine, vLLM's CPU build, llama.cpp and `transformers serve` on the same 16 prompts, in one run.

Run: ``python -m tests.benchmarks.bench_engines [--vllm PYTHON] [--llama PROGRAM] [--transformers PROGRAM]``.
Each option names the program of an environment in which that server is installed (docs/servers.md); an engine that is
not named is left out. Servers are started as a recipe would start them, ``endpoint: {serve: …}``. Prints a table, then
one line of JSON.

All engines write the same number of greedy tokens to the same 16 prompts, which share their beginning, all asked at
once. Each has answered 16 other, shorter prompts before: servers keep what they have read, so the same prompts would
cost them nothing to read. The local engine, vLLM and transformers compute in bfloat16 on equal weights;
llama.cpp reads the 4-bit file that these weights were made of, so it moves fewer bytes for the same model. vLLM runs
without compilation (``--enforce-eager``), which takes minutes at its start on a processor. Rounds alternate
between the engines, and the fastest round of each counts: other programs only ever make one slower. Processor seconds
are those of this process and of the server with its children; where other programs use the machine too, compare these.
"""

import argparse
import asyncio
import json
import os
import time
from dataclasses import dataclass

import psutil

from esckit.config.sections import BackboneBinding, Binding, EndpointBinding, Executor, ManagedServer
from esckit.models.backbones import fetch_backbone, load_backbones, shipped_gguf
from esckit.protocols import ChatModel
from esckit.roles.pool import ModelPool
from esckit.types import Limits, Message, Sampling

BACKBONE = "smollm2-135m-instruct"
TALK = (
    "Seeker: I keep thinking that I should have seen it coming.\n"
    "Supporter: That sounds exhausting. What has this week been like for you?\n"
    "Seeker: I slept badly, and I snapped at people who only meant well.\n"
    "Supporter: It makes sense that your patience is thin after so many hard days.\n"
)
WARM_UP_TOKENS = 8
TOPICS = (
    *("work", "school", "family", "friends", "money", "sleep", "health", "moving"),
    *("love", "exams", "noise", "travel", "illness", "age", "loss", "anger"),
)


@dataclass(frozen=True)
class Result:
    """How fast an engine was.

    Attributes:
        ready_s: Seconds from its start to its first answer.
        round_s: Seconds of the fastest round.
        cpu_s: Processor seconds of the round that took the fewest.
        n_tokens: Tokens that it wrote in a round.
    """

    engine: str
    ready_s: float
    round_s: float
    cpu_s: float
    n_tokens: int

    @property
    def tokens_per_s(self) -> float:
        return self.n_tokens / self.round_s


def processor_seconds() -> float:
    """Return what this process and all below it have taken of the processor so far."""
    here = psutil.Process()
    return sum(sum(each.cpu_times()[:2]) for each in (here, *here.children(recursive=True)))


def bindings(options: argparse.Namespace) -> dict[str, Binding]:
    folder = fetch_backbone(BACKBONE)
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    found: dict[str, Binding] = {"local engine": BackboneBinding(backbone=BACKBONE, dtype="bfloat16")}

    def add(name: str, serve: str, model: str, **environment: str) -> None:
        server = ManagedServer(serve=serve, environment=threads | environment)
        found[name] = EndpointBinding(endpoint=server, model=model, timeout_s=600.0)

    if options.vllm:
        add(
            "vLLM (CPU)",
            f"{options.vllm} -m vllm.entrypoints.openai.api_server --model {folder} --served-model-name smollm2 "
            "--dtype bfloat16 --max-model-len 2048 --max-num-batched-tokens 16384 --enforce-eager "
            "--host 127.0.0.1 --port {port}",
            "smollm2",
            VLLM_CPU_KVCACHE_SPACE="1",
            VLLM_CPU_OMP_THREADS_BIND="0" if options.threads == 1 else "auto",
            VLLM_NO_USAGE_STATS="1",
        )
    if options.llama:
        gguf = shipped_gguf(str(load_backbones()[BACKBONE].package))
        add(
            "llama.cpp (4 bits)",
            f"{options.llama} --model {gguf} --parallel {len(TOPICS)} --ctx-size {2048 * len(TOPICS)} "
            f"--threads {options.threads} --host 127.0.0.1 --port {{port}}",
            "smollm2",
        )
    if options.transformers:
        add(
            "transformers serve",
            f"{options.transformers} serve {folder} --device cpu --dtype bfloat16 --host 127.0.0.1 --port {{port}}",
            str(folder),
        )
    return found


async def ask(model: ChatModel, shared: str, n_tokens: int) -> tuple[float, float, int]:
    """Return the seconds, the processor seconds and the written tokens of all prompts at once."""
    prompts = [[Message("user", f"{shared}\nWrite a long letter to the seeker about {topic}.")] for topic in TOPICS]
    sampling = Sampling(temperature=0.0, max_tokens=n_tokens)
    began, cpu_s = time.perf_counter(), processor_seconds()
    replies = await asyncio.gather(*(model.complete(prompt, sampling, seed=0) for prompt in prompts))
    n_written = sum(reply.usage.completion_tokens for reply in replies)
    return time.perf_counter() - began, processor_seconds() - cpu_s, n_written


async def measure(engines: dict[str, Binding], options: argparse.Namespace) -> list[Result]:
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    tokens: dict[str, int] = {}
    ready: dict[str, float] = {}
    # One engine at a time is in memory: an idle server may still spin.
    for _ in range(options.rounds):
        for name, binding in engines.items():
            began = time.perf_counter()
            async with ModelPool(Executor(threads=options.threads), Limits()) as pool:
                await pool.prepare({"seeker": binding})
                ready.setdefault(name, time.perf_counter() - began)
                model = pool.model(binding, "seeker")
                await ask(model, "A conversation of last year:\n" + TALK, WARM_UP_TOKENS)
                *seconds, tokens[name] = await ask(model, TALK * options.repeats, options.tokens)
                rounds[name].append(tuple(seconds))
    return [Result(name, ready[name], *map(min, zip(*rounds[name], strict=True)), tokens[name]) for name in engines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", help="Python of an environment with vLLM.")
    parser.add_argument("--llama", help="Program `llama-server`, or one that takes its options.")
    parser.add_argument("--transformers", help="Program `transformers` of an environment with transformers[serving].")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=6, help="Lengthens the shared beginning, about 65 tokens each.")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    results = asyncio.run(measure(bindings(options), options))
    local = results[0]
    head = ("ready s", "round s", "CPU s", "tokens", "tok/s", "× local", "CPU × local")
    print(f"{'engine':<20} " + " ".join(f"{name:>11}" for name in head))
    for result in results:
        numbers = (f"{result.ready_s:.1f}", f"{result.round_s:.1f}", f"{result.cpu_s:.1f}", str(result.n_tokens))
        faster = (result.tokens_per_s, result.tokens_per_s / local.tokens_per_s, local.cpu_s / result.cpu_s)
        cells = (*numbers, *(f"{number:.2f}" for number in faster))
        print(f"{result.engine:<20} " + " ".join(f"{cell:>11}" for cell in cells), flush=True)
    print(json.dumps({result.engine: round(result.tokens_per_s, 1) for result in results}))


if __name__ == "__main__":
    main()
