"""Search throughput against a model that answers after 50 ms, beside the ideal, and what the tree itself costs.

Run: ``python -m tests.benchmarks.bench_search [--latency-ms 50] [--simulations 10]``. Only prints.

The ideal is the time that a tree's longest chain of calls takes if nothing but the latency counts: every exchange is a
supporter call and then critic and seeker at once, every prior one call more. At 64 trees about 1,700 calls a second are
in flight in one Python process, and rendering prompts, parsing and scheduling them is what limits.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from esckit.config import sections
from esckit.config.sections import RoleOptions
from esckit.play.executor import spread
from esckit.prompts.prompt import load_prompt
from esckit.protocols import Decision, SeekerTurn
from esckit.roles.asking import Voice
from esckit.roles.players import AFlowSeeker, AFlowSupporter, PromptedStrategist
from esckit.roles.rubric import RubricCritic
from esckit.search.expansion import Players
from esckit.search.mcts import Grown, grow_tree
from esckit.types import Generation, Message, Reply, RubricReading, Sampling, Score, StopReason, Turn, Usage
from tests.fakes import FakeModel
from tests.search.fakes import AFLOW, provenance, settings, task

SAMPLING = Sampling(temperature=0.7, top_p=0.9)
PRIOR = json.dumps(dict.fromkeys(AFLOW.abbrs, 0.125))
MEMORY = tuple(
    Turn(speaker="seeker", text=f"In week {week} it was worse than before, and I slept badly.") for week in range(30)
)


@dataclass
class SlowModel(FakeModel):
    """Answers every role in its form after a fixed time."""

    text: str = ""
    latency_s: float = 0.05

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        await asyncio.sleep(self.latency_s)
        return Reply(self.text, StopReason.STOP, Usage(calls=1, prompt_tokens=400, completion_tokens=20))


def prompted_players(latency_s: float) -> Players:
    """The real roles, each on a model with a fixed latency."""

    def voice(text: str) -> Voice:
        return Voice(SlowModel(text=text, latency_s=latency_s), RoleOptions(sampling=SAMPLING))

    memories = {task(number).scenario.id: MEMORY for number in range(64)}
    return Players(
        AFlowSeeker(
            voice("I keep thinking that I should have seen it coming, you know."),
            load_prompt("seeker_aflow"),
            AFLOW,
            memories,
            memory_guard=True,
        ),
        AFlowSupporter(
            voice("That sounds exhausting, and it makes sense that you feel this way after such a week."),
            load_prompt("supporter_aflow"),
            AFLOW,
        ),
        RubricCritic(
            voice("1: 4\n2: 3\n3: 5\n4: 4"),
            load_prompt("critic_aflow"),
            sections.RubricCritic(),
        ),
        PromptedStrategist(voice(PRIOR), load_prompt("strategist"), AFLOW, "json"),
    )


class ConstantRoles:
    """Roles that answer at once and the same, so that only the search itself is measured."""

    strategies = AFLOW.names
    said = Generation(raw="So.", reasoning=None, response="So.", format_ok=True, parse_kind="untagged")
    scored = Score(values={}, reward=0.7, reading=RubricReading(readout="sampled", critic="c", ratings=None))

    async def decide(self, scenario, turns, scope):
        return Decision("", (0.2, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1))

    async def score(self, scenario, turns, scope):
        return self.scored


class ConstantSupporter(ConstantRoles):
    async def reply(self, turns, scope, *, strategy=None):
        return self.said


class ConstantSeeker(ConstantRoles):
    async def reply(self, scenario, turns, scope):
        return SeekerTurn("Yes.")


def run(players: Players, n_trees: int, n_simulations: int) -> tuple[list[Grown], float]:
    """Grow so many trees at once; return them and the seconds taken."""
    found: list[Grown] = []

    async def one(number: int) -> Grown:
        return await grow_tree(task(number), players, settings(n_simulations=n_simulations), provenance())

    start = time.perf_counter()
    asyncio.run(spread(range(n_trees), one, found.append, limit=n_trees))
    return found, time.perf_counter() - start


def longest_chain(grown: Grown) -> int:
    """Return how many calls of a tree had to wait for each other."""
    calls = {role: usage.calls for role, usage in grown.tree.usage.items()}
    return 2 * calls["supporter"] + calls["strategist"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--simulations", type=int, default=10)
    options = parser.parse_args()
    latency_s = options.latency_ms / 1000
    print("| trees in flight | simulations/s | ideal | share | calls/s | CPU ms per call |")
    print("|---|---|---|---|---|---|")
    for n_trees in (1, 8, 64):
        players = prompted_players(latency_s)
        cpu = time.process_time()
        found, seconds = run(players, n_trees, options.simulations)
        cpu = time.process_time() - cpu
        n_simulations = sum(one.tree.nodes[0].visits for one in found)
        n_calls = sum(usage.calls for one in found for usage in one.tree.usage.values())
        ideal_s = max(longest_chain(one) for one in found) * latency_s
        rate, ideal = n_simulations / seconds, n_simulations / ideal_s
        print(
            f"| {n_trees} | {rate:.2f} | {ideal:.2f} | {rate / ideal:.0%} | {n_calls / seconds:.0f} "
            f"| {1000 * cpu / n_calls:.2f} |"
        )
    constant = ConstantRoles()
    bare = Players(ConstantSeeker(), ConstantSupporter(), constant, constant)
    for name, players in (("constant roles", bare), ("real roles, no latency", prompted_players(0.0))):
        found, seconds = run(players, 20, 60)
        n_simulations = sum(one.tree.nodes[0].visits for one in found)
        print(f"{name}: {1e6 * seconds / n_simulations:.0f} µs per simulation ({n_simulations} simulations)")


if __name__ == "__main__":
    main()
