"""What `make demo` plays: both methods where the truth is known, then one conversation by a real model, then a report.

Every stage is a command that a user could type; it is printed before it runs. A stage that is finished is not played
again, and one that was stopped goes on, since that is what the commands themselves do.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

RUNS = Path("runs")
PAGE = RUNS / "demo.html"

INTRODUCTION = """\
First, the practice world: a made-up seeker whose best treatment can be computed, so that learning can be checked.
It is not a model of people, and no number from it says how a supporter helps a person (docs/practice.md)."""

BEFORE, AFTER = "evaluate-practice-before", "evaluate-practice-aflow"
SUPPORTER = "evaluate-practice-supporter"

OTHERS = (("reply_length", "by length"), ("majority", "by the majority"))


class Stage(NamedTuple):
    """A command, what it does in a sentence, and what of its run is told afterwards."""

    about: str
    words: tuple[str, ...]
    result: Callable[[Path], str]

    @property
    def out(self) -> Path:
        """Its run folder."""
        return Path(self.words[self.words.index("--out") + 1])


def read(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def summary(out: Path) -> Any:
    """Return the summary of a run."""
    return read(out / "summary.json")


def success_row(out: Path, policy: str | None = None) -> dict[str, Any]:
    """Return the share of seekers that a system helped, or a policy that was played beside it."""
    group = None if policy is None else {"policy": policy}
    rows = read(out / "metrics.json")["metrics"]
    found: dict[str, Any] = next(row for row in rows if row["name"] == "practice.success" and row["group"] == group)
    return found


def percent(row: dict[str, Any]) -> str:
    """Return a share with its interval."""
    ends = row["interval"]
    return f"{100 * row['value']:.0f} % [{100 * ends['low']:.0f}, {100 * ends['high']:.0f}]"


def helped(out: Path) -> str:
    """Return what an evaluation found, in a sentence."""
    row = success_row(out)
    return f"it helps {percent(row)} of {row['n']} seekers that nothing was trained on"


def dev(out: Path, name: str) -> str:
    """Return a value on held-out dialogues before and after a training."""
    found = summary(out)["dev"]
    return f"{found['before training'][name]:.2f} before, {found['after training'][name]:.2f} after"


def reward(out: Path) -> str:
    """Return how well a reward model tells good futures from others, beside length and majority."""
    found = summary(out)
    others = ", ".join(f"{found[name]['auc']:.2f} {told}" for name, told in OTHERS)
    return f"AUC {found['dev']['auc']:.2f} on held-out dialogues ({others})"


def command(line: str, out: str) -> tuple[str, ...]:
    """Return the words of a command with its run folder."""
    return (*shlex.split(line), "--out", str(RUNS / out))


AFLOW = (
    Stage(
        "AFlow, search: try strategies at many points of many conversations and see what they lead to",
        command("search practice/search", "search-practice"),
        lambda out: f"{summary(out)['trees']} trees",
    ),
    Stage(
        "AFlow, training: a language model learns to choose as often as a strategy pays",
        command("train-flow practice/train_flow", "train-flow-practice"),
        lambda out: f"{summary(out)['updates']} updates",
    ),
    Stage(
        "Before: the strategies that the search began with, at random",
        command("evaluate practice/evaluate_flow --set 'models.strategist={world: default, policy: random}'", BEFORE),
        helped,
    ),
    Stage(
        "After: the trained strategist, with the same seekers",
        command(f"evaluate practice/evaluate_flow --against {RUNS / BEFORE}", AFTER),
        helped,
    ),
)

RLFF = (
    Stage(
        "RLFF-ESC, futures: simulate how conversations go on after different replies, and score them",
        command("simulate practice/simulate", "simulate-practice"),
        lambda out: f"{summary(out)['futures']:,} futures, {100 * summary(out)['goal_share']:.0f} % reach the goal",
    ),
    Stage(
        "RLFF-ESC, reward model: a language model learns which conversations have good futures",
        command("train-reward practice/train_reward --set optim.epochs=2", "train-reward-practice"),
        reward,
    ),
    Stage(
        "A supporter: a language model learns from good conversations to speak, and when to do what",
        command("train-sft practice/train_sft", "train-sft-practice"),
        lambda out: f"share of tokens foreseen in held-out conversations: {dev(out, 'dev/token_accuracy')}",
    ),
    Stage(
        "How many seekers it helps, all by itself",
        command("evaluate practice/evaluate_rl --set models.supporter.checkpoint=runs/train-sft-practice", SUPPORTER),
        helped,
    ),
)

REAL = Stage(
    "A real model of 135 million weights plays supporter, seeker and critic for one conversation",
    command(
        "simulate smoke/simulate --set data.limit=1 --set 'simulation={candidates: 1, horizon: 2}' "
        "--set critic.by=letters",
        "simulate-conversation",
    ),
    lambda out: "\n\n" + "\n".join(conversation(out)),
)


def conversation(out: Path) -> Iterator[str]:
    """Yield what was said, and what the critic made of it."""
    (line,) = (out / "futures.jsonl").read_text(encoding="utf-8").splitlines()
    (context,) = (out / "contexts.jsonl").read_text(encoding="utf-8").splitlines()
    for turn in json.loads(context)["turns"]:
        yield f"      {turn['speaker']:<10} {turn['text']}"
    yield "      ---------- from here on the model speaks"
    for exchange in json.loads(line)["exchanges"]:
        yield f"      supporter  {exchange['supporter']['response']}"
        if exchange["seeker"] is not None:
            yield f"      seeker     {exchange['seeker']}"
        if exchange["reading"] is not None:
            yield f"      critic     {float(exchange['reading']['value']):+.2f} of −1 to 1"


def play(stage: Stage, number: int, n_stages: int) -> None:
    """Play a stage; what it prints goes to a file, what it says while it runs is shown.

    Raises:
        SystemExit: If it fails, with its exit code.
    """
    print(f"\n{number}/{n_stages}  {stage.about}\n      $ esckit {shlex.join(stage.words)}", flush=True)
    began = time.monotonic()
    log = RUNS / "demo" / f"{number:02}-{stage.out.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as printed:
        done = subprocess.run([sys.executable, "-m", "esckit", *stage.words], stdout=printed, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    print(f"      {time.monotonic() - began:.0f} s: {stage.result(stage.out)}", flush=True)


def main() -> None:
    """Play all stages, write the report, and say what came out.

    Raises:
        SystemExit: If a command fails, with its exit code; what is finished is kept.
    """
    began = time.monotonic()
    stages = (*AFLOW, *RLFF, REAL)
    print(INTRODUCTION)
    for number, stage in enumerate(stages, start=1):
        play(stage, number, len(stages))
    shown = [str(RUNS / name) for name in (BEFORE, AFTER, SUPPORTER)]
    rest = [str(stage.out) for stage in (AFLOW[0], AFLOW[1], RLFF[0], RLFF[1], RLFF[2], REAL)]
    words = [sys.executable, "-m", "esckit", "report", *shown, *rest, "--out", str(PAGE)]
    done = subprocess.run(words, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)

    print(f"\nDone in {(time.monotonic() - began) / 60:.1f} minutes. Seekers of the practice world that were helped:\n")
    rows = (
        ("random strategies", success_row(RUNS / BEFORE)),
        ("after AFlow", success_row(RUNS / AFTER)),
        ("after train-sft", success_row(RUNS / SUPPORTER)),
        ("the optimum", success_row(RUNS / AFTER, "optimum")),
    )
    for name, row in rows:
        print(f"  {name:<18} {percent(row)}")
    print("\nThe optimum sees the hidden state. What GRPO against a reward model learns here: docs/benchmarks.md.")
    print(f"\nThe comparison, trees, futures and conversations: {PAGE.resolve()}")
    print(f"The runs, one folder for each command above:       {RUNS.resolve()}")


if __name__ == "__main__":
    main()
