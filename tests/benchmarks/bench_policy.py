"""A strategist at every decision of growing dialogues: each prefix read whole, and as esckit does it, only what is new.

Run: ``python -m tests.benchmarks.bench_policy [--backbone NAME] [--dialogues 6]``. Only prints. The dialogues are made
up, 24 turns of 12 to 40 words; the heads are fresh (what is timed does not depend on them), and both ways use the same
weights.
"""

import argparse
import random
import time
from collections.abc import Callable

import torch

from esckit.flow.model import FlowModel
from esckit.flow.policy import PrefixReader
from esckit.flow.text import FlowText
from esckit.models.backbones import resolve_backbone
from esckit.models.loading import load_causal
from esckit.types import Scenario, Turn
from tests.benchmarks.bench_reward_scoring import sentence

Ids = tuple[int, ...]


def prefixes(text: FlowText, n_dialogues: int) -> list[Ids]:
    """Return what a strategist is asked, in the order of the dialogues."""
    draw = random.Random(7)
    found = []
    for number in range(n_dialogues):
        scenario = Scenario(id=f"d{number}", situation=sentence(draw, 30), problem_type="job crisis")
        turns = [
            Turn(speaker="supporter" if at % 2 else "seeker", text=sentence(draw, draw.randint(12, 40)))
            for at in range(24)
        ]
        found += [text.ids(scenario, turns[:end]) for end in range(1, 24, 2)]
    return found


def timed(read: Callable[[Ids], torch.Tensor], asked: list[Ids]) -> tuple[float, torch.Tensor]:
    began = time.perf_counter()
    states = torch.cat([read(ids) for ids in asked])
    return time.perf_counter() - began, states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="smollm2-135m-instruct")
    parser.add_argument("--dialogues", type=int, default=6)
    options = parser.parse_args()
    causal, tokenizer = load_causal(resolve_backbone(options.backbone), dtype=torch.float32)
    model = FlowModel(causal.get_decoder(), ("a", "b"), attention="sdpa").eval()
    asked = prefixes(FlowText(tokenizer, situation=True), options.dialogues)
    reader = PrefixReader(model)

    @torch.no_grad()
    def whole(ids: Ids) -> torch.Tensor:
        states: torch.Tensor = model.backbone(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[:, -1]
        return states

    whole(asked[0])  # warm-up
    alone, exact = timed(whole, asked)
    ours, states = timed(reader.read, asked)
    longest = max(map(len, asked))
    gap = float((states - exact).abs().max() / exact.abs().max())
    print(f"{options.backbone}, {torch.get_num_threads()} threads: {len(asked)} decisions, up to {longest} tokens")
    print(f"each prefix whole  {alone:7.2f} s  {len(asked) / alone:6.1f} a second")
    print(f"only what is new   {ours:7.2f} s  {len(asked) / ours:6.1f} a second  x {alone / ours:.1f}")
    print(f"largest difference of a state, relative: {gap:.1e}")


if __name__ == "__main__":
    main()
