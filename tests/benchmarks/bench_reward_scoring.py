"""Scoring 192 dialogues with a reward model: one by one, in arrival-order batches, and as esckit does it.

    python tests/benchmarks/bench_reward_scoring.py [BACKBONE] [--dialogues 192]

The dialogues are what a policy's training asks for: twelve conversations, four contexts of each, four candidate replies
to each context, 40 to 800 tokens, in random order. All three ways use the same weights (a fresh head: what is timed
does not depend on it), float32 on a processor and bfloat16 on a GPU; scores must be equal.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch

from esckit.reward.model import RewardModel, RewardNet, build_net, collate, probability
from esckit.reward.recipe import RewardNetwork
from esckit.reward.text import RewardInput, RewardText, reward_template
from esckit.types import Turn

WORDS = (  # noqa: SIM905 - a list of them is no easier to read
    "I feel so tired of all this and nobody at work seems to notice that it keeps me awake what would help you most "
    "right now it sounds like a lot to carry maybe we can look at one small step together since last week my sister"
).split()
ARRIVAL_BATCH = 16


def sentence(draw: random.Random, n_words: int) -> str:
    return " ".join(draw.choices(WORDS, k=n_words)) + "."


def dialogues(n: int) -> list[tuple[tuple[Turn, ...], str]]:
    """Return (conversation, reply): contexts of one conversation begin alike, candidates of one context more so."""
    draw = random.Random(7)
    found = []
    for _ in range(-(-n // 16)):
        turns = tuple(
            Turn(speaker="supporter" if i % 2 else "seeker", text=sentence(draw, draw.randint(12, 40)))
            for i in range(24)
        )
        for cut in (1, 8, 16, 24):
            found += [(turns[:cut], sentence(draw, draw.randint(8, 60))) for _ in range(4)]
    draw.shuffle(found)
    return found[:n]


def one_by_one(net: RewardNet, inputs: list[RewardInput]) -> list[float]:
    return [score for each in inputs for score in forward(net, [each])]


def arrival_batches(net: RewardNet, inputs: list[RewardInput]) -> list[float]:
    starts = range(0, len(inputs), ARRIVAL_BATCH)
    return [score for at in starts for score in forward(net, inputs[at : at + ARRIVAL_BATCH])]


@torch.inference_mode()
def forward(net: RewardNet, inputs: list[RewardInput]) -> list[float]:
    device = next(net.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in collate(inputs).items()}
    return probability(net.kind, net(**batch)).tolist()


def timed(work: Callable[[], list[float]]) -> tuple[float, list[float]]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    scores = work()
    return time.perf_counter() - began, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--dialogues", type=int, default=192)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(7)
    net, tokenizer = build_net(RewardNetwork(backbone=options.backbone, trainable="head"), "classifier")
    net.eval().to(device)
    if device.type == "cuda":
        net.backbone.to(torch.bfloat16)
    text = RewardText(tokenizer, reward_template("reward_model"), max_length=2048)
    asked = dialogues(options.dialogues)
    inputs = [found for turns, reply in asked if (found := text.encode(turns, reply)) is not None]
    lengths = sorted(len(each.ids) for each in inputs)
    print(f"{options.backbone} on {device}, {torch.get_num_threads()} threads, {len(inputs)} dialogues")
    print(f"tokens {lengths[0]}-{lengths[-1]}, median {statistics.median(lengths):g}, {sum(lengths)} in all")
    forward(net, inputs[:2])  # warm-up
    results = {
        "one by one": timed(lambda: one_by_one(net, inputs)),
        f"arrival-order batches of {ARRIVAL_BATCH}": timed(lambda: arrival_batches(net, inputs)),
    }
    model = RewardModel(net, text)
    results["esckit"] = timed(lambda: model.score([turns for turns, _ in asked], [reply for _, reply in asked]))
    ours, scores = results["esckit"]
    for name, (seconds, found) in results.items():
        gap = max(abs(a - b) for a, b in zip(found, scores, strict=True))
        print(f"{name:<34} {seconds:8.2f} s  {seconds / ours:6.2f}x of ours  largest difference {gap:.1e}")
    print(f"esckit read {model.states.n_read} tokens ({sum(lengths) / model.states.n_read:.2f}x fewer)")


if __name__ == "__main__":
    main()
