"""A strategist at every decision of growing dialogues: prefixes read whole, only what is new, many dialogues together.

Run: ``python -m tests.benchmarks.bench_policy [--backbone NAME] [--dialogues 6] [--together 32] [--turns 24]``.
Only prints. The dialogues are made up, of turns of 12 to 40 words; the heads are fresh (what is timed does not depend
on them), and all ways use the same weights.
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


def prefixes(text: FlowText, n_dialogues: int, n_turns: int) -> list[Ids]:
    """Return what a strategist is asked, in the order of the dialogues."""
    draw = random.Random(7)
    found = []
    for number in range(n_dialogues):
        scenario = Scenario(id=f"d{number}", situation=sentence(draw, 30), problem_type="job crisis")
        turns = [
            Turn(speaker="supporter" if at % 2 else "seeker", text=sentence(draw, draw.randint(12, 40)))
            for at in range(n_turns)
        ]
        found += [text.ids(scenario, turns[:end]) for end in range(1, n_turns, 2)]
    return found


def timed(read: Callable[[Ids], torch.Tensor], asked: list[Ids]) -> tuple[float, torch.Tensor]:
    began = time.perf_counter()
    states = torch.cat([read(ids) for ids in asked])
    return time.perf_counter() - began, states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="smollm2-135m-instruct")
    parser.add_argument("--dialogues", type=int, default=6)
    parser.add_argument("--together", type=int, default=32)
    parser.add_argument("--turns", type=int, default=24)
    options = parser.parse_args()
    causal, tokenizer = load_causal(resolve_backbone(options.backbone), dtype=torch.float32)
    model = FlowModel(causal.get_decoder(), ("a", "b"), attention="sdpa").eval()
    text = FlowText(tokenizer, situation=True)
    asked = prefixes(text, options.dialogues, options.turns)
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
    in_flight(model, prefixes(text, options.together, options.turns), options.together)


def in_flight(model: FlowModel, asked: list[Ids], n: int) -> None:
    """Print decisions a second of dialogues that are in flight together, one after the other and in one batch."""
    rounds = [asked[start :: len(asked) // n] for start in range(len(asked) // n)]
    one_by_one, together = PrefixReader(model), PrefixReader(model)
    began = time.perf_counter()
    singly = [torch.cat([one_by_one.read(ids) for ids in each]) for each in rounds]
    middle = time.perf_counter()
    batched = [together.read_all(each) for each in rounds]
    ended = time.perf_counter()
    gap = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(singly, batched, strict=True))
    alone_s, together_s = middle - began, ended - middle
    print(f"{n} dialogues in flight: {len(asked)} decisions")
    print(f"one after the other {alone_s:6.2f} s  {len(asked) / alone_s:6.1f} a second")
    gain = alone_s / together_s
    print(f"read together       {together_s:6.2f} s  {len(asked) / together_s:6.1f} a second  x {gain:.1f}")
    print(f"largest difference of a state, relative: {gap:.1e}")


if __name__ == "__main__":
    main()
