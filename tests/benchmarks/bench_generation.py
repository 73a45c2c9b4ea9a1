"""Local generation and critic read-outs against the plain way: transformers' ``generate``, one request after the other.

Run: ``python -m tests.benchmarks.bench_generation [--backbone NAME] [--dtypes float32 bfloat16] [--threads 1]``.
Prints a table, then one line of JSON.

Both sides use the same weights, dtype, threads, prompts and numbers of new tokens, and a key/value cache. The plain
side reads every prompt from its first token. ``cpu`` counts all threads of this process, the fairer figure where other
programs run beside. What bounds the ratio: in bfloat16 a step for 16 rows must read all weights from memory just
as one for a single row does; in float32 a step for 16 rows is bound by arithmetic already, so batching pays less.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from esckit.models.backbones import fetch_backbone
from esckit.models.chat import ChatFormat
from esckit.models.local import LocalModel
from esckit.types import Message, Sampling

LEVELS = ("Much worse", "Worse", "Slightly worse", "No change", "Slightly better", "Better", "Much better")
ONE_BY_ONE, TOGETHER = "prompts, one by one", "prompts, together"
EACH_READS, SHARED = "critic: ten samples that each read the prompt", "critic: ten samples that share it"
EXPECTED = "critic: expected"
WARM_UP = (Message("user", "Hello"),)
N_SAMPLES = 10
CRITIC_TOKENS = 8
TOPICS = (
    *("work", "school", "family", "friends", "money", "sleep", "health", "moving"),
    *("love", "exams", "noise", "travel", "illness", "age", "loss", "anger"),
)
TALK = (
    "Seeker: I keep thinking that I should have seen it coming.",
    "Supporter: That sounds exhausting. What has this week been like for you?",
    "Seeker: I slept badly, and I snapped at people who only meant well.",
    "Supporter: It makes sense that your patience is thin after so many hard days.",
)


@dataclass(frozen=True)
class Timing:
    """Seconds of one way to do the work; ``texts`` is what came out, for comparison."""

    wall_s: float
    cpu_s: float
    texts: tuple[str, ...] = ()


class Plain:
    """The weights behind ``generate``, asked one by one."""

    def __init__(self, folder: Any, dtype: torch.dtype) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.chat = ChatFormat.of(AutoTokenizer.from_pretrained(folder))

    @torch.inference_mode()
    def complete(self, messages: Sequence[Message], max_tokens: int, *, do_sample: bool = False) -> str:
        ids = torch.tensor([self.chat.encode(messages)])
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=do_sample,
            top_k=0 if do_sample else None,
            eos_token_id=sorted(self.chat.stop_ids),
            use_cache=True,
        )
        return self.chat.decode(output[0, ids.shape[1] :].tolist())


def talk_of(chat: ChatFormat, n_tokens: int) -> str:
    """A made-up transcript of about so many tokens."""
    lines: list[str] = []
    for line in cycle(TALK):
        if len(chat.tokens("\n".join([*lines, line]))) > n_tokens:
            return "\n".join(lines)
        lines.append(line)
    raise AssertionError


def timed(work: Callable[[], Sequence[str]]) -> Timing:
    wall, cpu = time.perf_counter(), time.process_time()
    texts = tuple(work())
    return Timing(time.perf_counter() - wall, time.process_time() - cpu, texts)


def together(calls: Callable[[], Sequence[Awaitable[Any]]]) -> list[Any]:
    async def gather() -> list[Any]:
        return await asyncio.gather(*calls())

    return asyncio.run(gather())


def questions(chat: ChatFormat, options: argparse.Namespace) -> tuple[list[list[Message]], list[Message]]:
    """Prompts that share a transcript, and a critic's prompt about it."""
    shared = talk_of(chat, options.prefix_tokens)
    asked = [
        [Message("system", shared), Message("user", f"Lately it is about {topic}. What can I do?")]
        for topic in TOPICS[: options.prompts]
    ]
    critic = [
        Message("system", f"You judge conversations. Answer with one of: {', '.join(LEVELS)}."),
        Message("user", f"{shared}\nDoes the seeker feel better now?"),
    ]
    return asked, critic


def measure_plain(options: argparse.Namespace, dtype: str) -> dict[str, Timing]:
    plain = Plain(fetch_backbone(options.backbone), getattr(torch, dtype))
    asked, critic = questions(plain.chat, options)
    plain.complete(WARM_UP, 4)
    return {
        ONE_BY_ONE: timed(lambda: [plain.complete(messages, options.new_tokens) for messages in asked]),
        EACH_READS: timed(lambda: [plain.complete(critic, CRITIC_TOKENS, do_sample=True) for _ in range(N_SAMPLES)]),
    }


def measure_ours(options: argparse.Namespace, dtype: str) -> dict[str, Timing]:
    """Time the local model; every part starts with an empty prefix store."""
    folder = fetch_backbone(options.backbone)
    weights = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked, critic = questions(ChatFormat.of(tokenizer), options)
    greedy, sampled = Sampling(temperature=0, max_tokens=options.new_tokens), Sampling(max_tokens=CRITIC_TOKENS)

    def fresh() -> LocalModel:
        model = LocalModel(weights, tokenizer, name=options.backbone)
        together(lambda: [model.complete(WARM_UP, Sampling(max_tokens=4), seed=0)])
        return model

    writer, sampler, reader = fresh(), fresh(), fresh()
    found = {
        TOGETHER: timed(
            lambda: [r.text for r in together(lambda: [writer.complete(m, greedy, seed=0) for m in asked])]
        ),
        SHARED: timed(
            lambda: [
                reply.text
                for reply in together(lambda: [sampler.complete(critic, sampled, seed=i) for i in range(N_SAMPLES)])
            ]
        ),
        EXPECTED: timed(lambda: [str(scores) for scores in together(lambda: [reader.score(critic, LEVELS)])]),
    }
    for model in (writer, sampler, reader):
        asyncio.run(model.aclose())
    return found


def report(dtype: str, found: dict[str, Timing]) -> dict[str, Any]:
    """Print the table of one dtype and return its figures."""
    one, ours = found[ONE_BY_ONE], found[TOGETHER]
    n_equal = sum(a == b for a, b in zip(one.texts, ours.texts, strict=True))
    print(f"\n{dtype:<46} wall s   cpu s   x wall    x cpu")
    for name, timing in found.items():
        reference = one if name in (ONE_BY_ONE, TOGETHER) else found[EACH_READS]
        times = f"{reference.wall_s / timing.wall_s:8.1f} {reference.cpu_s / timing.cpu_s:8.1f}"
        print(f"  {name:<44} {timing.wall_s:6.2f}  {timing.cpu_s:6.2f} {times}")
    print(f"  equal greedy texts: {n_equal} of {len(one.texts)}")
    figures = {name: {k: v for k, v in asdict(timing).items() if k != "texts"} for name, timing in found.items()}
    return {"dtype": dtype, "equal_texts": n_equal, "timings": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="smollm2-135m-instruct")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--prompts", type=int, default=16, help=f"at most {len(TOPICS)}")
    parser.add_argument("--prefix-tokens", type=int, default=400)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures = [report(dtype, measure_plain(options, dtype) | measure_ours(options, dtype)) for dtype in options.dtypes]
    print(json.dumps({"bench": "generation", **vars(options), "results": figures}))


if __name__ == "__main__":
    main()
