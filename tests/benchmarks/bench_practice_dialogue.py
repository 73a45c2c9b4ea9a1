"""Does GRPO on whole dialogues help more seekers of the practice world than GRPO on single replies does?

Run: ``python -m tests.benchmarks.bench_practice_dialogue FOLDER [--seeds 3] [--cases 3000] [--start RUN]``. Only
prints; every stage is a command of esckit in FOLDER, and a stage that is complete is not made again. Each seed has one
start and, from it, dialogues, the same with shuffled rewards, and single replies with the perfect reward of
:mod:`tests.benchmarks.bench_practice_rlff` until it has written as many tokens as the dialogues took. All are played
with the same held-out seekers; gains are paired, with the intervals of ``esckit evaluate`` (95 %, over seekers).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from esckit.metrics.rows import Interval, MetricsFile
from tests.benchmarks.bench_practice_rlff import BLANK_REPLIES, MODULE, PROFILE, esckit, show

KINDS = ("dialogues", "shuffled", "replies")


def rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a training's steps."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if "rl/loss" in row]


class Seed:
    """The runs of one seed."""

    def __init__(self, folder: Path, seed: int, cases: int, start: Path | None) -> None:
        self.folder, self.seed, self.cases, self.given = folder / f"seed{seed}", seed, cases, start

    @property
    def start(self) -> Path:
        return self.given or esckit(self.folder / "sft", "train-sft", "practice/train_sft", f"seed={self.seed}")

    def policy(self, kind: str) -> Path:
        """Return what a training made of the start."""
        common = (f"seed={self.seed}", f"models.policy.checkpoint={self.start}", "monitor.log_every=1")
        if kind == "replies":
            limits = ("models.reward=null", f"reward.kind={MODULE}:fit", f"optim.max_steps={self.steps_of_replies()}")
            return esckit(self.folder / kind, "train-rl", "practice/train_rl", *common, *limits)
        control = (f"reward.shuffled={str(kind == 'shuffled').lower()}",)
        return esckit(self.folder / kind, "train-rl", "practice/train_rl_dialogue", *common, *control)

    def tokens(self) -> float:
        """Return the tokens that the policy wrote in dialogues."""
        run = self.policy("dialogues")
        grpo = json.loads((run / "manifest.json").read_text())["recipe"]["grpo"]
        n_dialogues = grpo["prompts_per_step"] * grpo["n_generations"]
        return sum(row["rl/episode/tokens"] * n_dialogues for row in rows(run))

    def steps_of_replies(self, outputs_per_step: int = 32) -> int:
        """Return the steps in which single replies have as many tokens, by the length of the replies in dialogues."""
        lengths = [row["rl/completion_tokens/mean"] for row in rows(self.policy("dialogues"))]
        return round(self.tokens() / (outputs_per_step * sum(lengths) / len(lengths)))

    def played(self, kind: str) -> MetricsFile:
        """Return what an evaluation found; of a trained policy, beside the start with the same seekers."""
        model = self.start if kind == "start" else self.policy(kind)
        sets = [f"models.supporter.checkpoint={model}", f"data.path=world:{PROFILE}/{self.cases}", f"seed={self.seed}"]
        sets.append(BLANK_REPLIES)
        if kind != "start":
            self.played("start")
            sets.append(f"compare_to={self.folder / 'play-start'}")
        out = esckit(self.folder / f"play-{kind}", "evaluate", "practice/evaluate_rl", *sets)
        body = json.loads((out / "metrics.json").read_text())
        return MetricsFile.model_validate({name: value for name, value in body.items() if name != "schema"})


def within(interval: Interval | None) -> str:
    return "" if interval is None else f" [{interval.low:.3f}, {interval.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", type=int, default=3000, help="length of the corpus of which a tenth is played")
    parser.add_argument("--start", type=Path, help="a run of train-sft to begin with, in place of one for each seed")
    args = parser.parse_args()
    table = []
    for seed in range(1, args.seeds + 1):
        runs = Seed(args.folder, seed, args.cases, args.start)
        for kind in ("start", *KINDS):
            found = runs.played(kind)
            row = found.row("practice.success")
            assert row is not None
            gains = [each for each in found.comparisons if each.name == "practice.success"]
            gain = f"{gains[0].difference:+.3f}{within(gains[0].interval)}" if gains else "–"
            table.append([str(seed), kind, f"{row.value:.3f}{within(row.interval)}", str(row.n), gain])
    show("Self-play with held-out seekers", ["seed", "policy", "success", "n", "gain over the start"], table)


if __name__ == "__main__":
    main()
