"""Does RLFF-ESC learn in the practice world? Reward models, GRPO, controls and hacked rewards, by the world's truth.

Run: ``python -m tests.benchmarks.bench_practice_rlff FOLDER [--seeds 5] [--cases 1200] [--only TABLE]``. Only prints;
every stage is a command of esckit in FOLDER, and a stage that is complete is not made again. Tables: ``reward`` (reward
models against length and majority), ``success`` (self-play before and after, and controls), ``hacking`` (what outputs
are worth while training, by the reward and by the truth). Intervals are 95 % t intervals over seeds.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from esckit.data.contexts import build_contexts
from esckit.data.selection import select_dialogues
from esckit.metrics.calibration import pair_accuracy
from esckit.play.futures import read_inputs
from esckit.practice.language import function_of, shown_need, strategy_functions
from esckit.practice.players import Game, wellbeing
from esckit.practice.world import FIT, HORIZON, Need, load_profile, outcomes, solution
from esckit.roles.verdicts import future_reward
from esckit.strategies.taxonomy import load_taxonomy
from esckit.text import n_words
from esckit.types import Context, Turn

T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
PROFILE = "default"
MODULE = "tests.benchmarks.bench_practice_rlff"
WORTH = {"good": 1.0, "neutral": 0.4, "premature": 0.0}
EMPTY_WORTH = 0.2
TABLES = ("reward", "success", "hacking")

BLANK_REPLIES = "max_failure_rate=0.9"
"""A control may write replies with nothing to read; its dialogues are unscored then, and the evaluation goes on."""


# ---------------------------------------------------------------- rewards that a recipe can name


def length(conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> list[float]:
    """A reward that can be hacked: the number of words, up to 60."""
    return [min(n_words(response), 60) / 60 for response in responses]


def fit(conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> list[float]:
    """What a perfect reward model could read from the words: how a reply's function fits the need shown last."""
    values = []
    for turns, response in zip(conversations, responses, strict=True):
        needs = (shown_need(turn.text) for turn in reversed(turns) if turn.speaker == "seeker")
        need: Need = next((need for need in needs if need), "heard")
        done = function_of(response, turns)
        values.append(EMPTY_WORTH if done == "other" else WORTH[FIT[need][done]])
    return values


# ---------------------------------------------------------------- stages


def esckit(out: Path, *words: str) -> Path:
    """Run a command into a folder; what is complete there is not made again, and another recipe's is refused."""
    command, recipe, *sets = words
    options = [word for change in sets for word in ("--set", change)]
    subprocess.run(
        [sys.executable, "-m", "esckit", command, recipe, *options, "--quiet", "--out", str(out)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return out


def shuffled(futures: Path, out: Path, seed: int) -> Path:
    """Copy futures so that each has the outcome of another one."""
    if not (out / "manifest.json").is_file():
        rows = [json.loads(line) for line in (futures / "futures.jsonl").read_text().splitlines()]
        others = random.Random(seed).sample(rows, len(rows))
        names = ("outcome", "reward", "reward_num", "reward_den")
        mixed = [row | {name: other[name] for name in names} for row, other in zip(rows, others, strict=True)]
        out.mkdir(parents=True, exist_ok=True)
        (out / "futures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
        for name in ("contexts.jsonl", "manifest.json"):
            shutil.copy(futures / name, out / name)
    return out


class Runs:
    """The runs of one seed, each made when it is first asked for."""

    def __init__(self, folder: Path, seed: int, cases: int) -> None:
        self.folder, self.seed, self.cases = folder / f"seed{seed}", seed, cases

    def made(self, name: str, *words: str) -> Path:
        return esckit(self.folder / name, *words, f"seed={self.seed}")

    def futures(self, *, is_short: bool) -> Path:
        name = "futures-short" if is_short else "futures"
        return self.made(name, "simulate", "practice/simulate_short" if is_short else "practice/simulate")

    @property
    def start(self) -> Path:
        return self.made("sft", "train-sft", "practice/train_sft")

    def classifier(self) -> Path:
        return self.made(
            "classifier", "train-reward", "practice/train_reward", f"inputs=[{self.futures(is_short=False)}]"
        )

    def ranker(self, *, is_control: bool = False) -> Path:
        inputs = self.futures(is_short=True)
        inputs = shuffled(inputs, self.folder / "shuffled", self.seed) if is_control else inputs
        name = "ranker-shuffled" if is_control else "ranker"
        recipe = "practice/train_reward_pairwise"
        return self.made(name, "train-reward", recipe, f"inputs=[{inputs}]", f"model.start={self.start}")

    def policy(self, kind: str) -> Path:
        """Return what GRPO makes: with the reward model, a shuffled one, or a function of this module."""
        own = (
            ("models.reward=null", f"reward.kind={MODULE}:{kind}")
            if kind in ("length", "fit")
            else (f"models.reward.checkpoint={self.ranker(is_control=kind == 'shuffled')}",)
        )
        return self.made(f"rl-{kind}", "train-rl", "practice/train_rl", f"models.policy.checkpoint={self.start}", *own)

    def played(self, kind: str) -> dict[str, Any]:
        """Return metrics of self-play by name; ``start`` is the supporter before GRPO."""
        model = self.start if kind == "start" else self.policy(kind)
        path = f"data.path=world:{PROFILE}/{self.cases}"
        supporter = f"models.supporter.checkpoint={model}"
        out = self.made(f"play-{kind}", "evaluate", "practice/evaluate_rl", supporter, path, BLANK_REPLIES)
        rows = json.loads((out / "metrics.json").read_text())["metrics"]
        return {" of ".join([row["name"], *map(str, (row["group"] or {}).values())]): row["value"] for row in rows}


def contexts_of(run: Path) -> dict[str, Context]:
    """Return the contexts that a policy was trained on, with the strategies that the hidden state depends on."""
    from esckit.rl.recipe import TrainRlRecipe

    recipe = TrainRlRecipe.model_validate(json.loads((run / "manifest.json").read_text())["recipe"])
    assert recipe.data is not None
    dialogues = select_dialogues(recipe.data, taxonomy=None).dialogues
    found = build_contexts(dialogues, recipe.contexts, run_seed=recipe.seed)
    return {context.id: context for context in found}


def outputs(run: Path) -> Iterator[tuple[int, float, bool, bool, float]]:
    """Yield step, reward, form, whether the reply does anything, and regret by the truth, of the sampled outputs."""
    game, best, contexts = Game(load_profile(PROFILE)), solution(PROFILE), contexts_of(run)
    for line in (run / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["future"] is None:
            continue
        context = contexts[row["context_id"]]
        done = function_of(row["reply"], context.turns)
        left = max(1, HORIZON - sum(turn.speaker == "supporter" for turn in context.turns))
        regret = best.regret(game.state(context.scenario, context.turns), done, left)
        yield row["step"], row["future"], row["parse_kind"] == "ok", done != "other", regret


# ---------------------------------------------------------------- the order of candidates


def expected_reward(game: Game, context: Context, reply: str) -> float:
    """Return the mean reward of a reply's futures of ``practice/simulate_short``: one more turn, drawn at random."""
    functions = list(strategy_functions(load_taxonomy("aflow")).values())
    opening, state = game.opening(context.scenario), game.state(context.scenario, context.turns)
    return sum(
        p * q * float(future_reward(Fraction(wellbeing(opening, last)), k=1)) / len(functions)
        for p, after in outcomes(game.profile, state, function_of(reply, context.turns))
        for function in functions
        for q, last in outcomes(game.profile, after, function)
    )


def orders(ranker: Path, futures: Path) -> dict[str, float]:
    """Return which share of the pairs of held-out candidates is in order: of the ranker's scores and of the truth.

    ``ceiling`` is how often the truly better of two has the better sampled future, the most that a ranker can reach.
    """
    inputs, game = read_inputs([str(futures)]), Game(load_profile(PROFILE))
    known = {f"{future.run_seed}/{future.id}": future for future in inputs.futures}
    rows = [json.loads(line) for line in (ranker / "dev_predictions.jsonl").read_text().splitlines()]
    held_out = [known[row["id"]] for row in rows]
    groups = [future.context_id for future in held_out]
    replies = [future.exchanges[0].supporter.response for future in held_out]
    scores = [row["p"] for row in rows]
    truth = [
        round(expected_reward(game, inputs.contexts[group], reply), 9)
        for group, reply in zip(groups, replies, strict=True)
    ]
    sampled = [Fraction(row["reward_num"], row["reward_den"]) for row in rows]
    exact = [Fraction(value) for value in truth]
    compared = {"sampled": (scores, sampled), "ceiling": (truth, sampled), "true": (scores, exact)}
    return {name: pair_accuracy(p, rewards, groups).share or 0.0 for name, (p, rewards) in compared.items()}


# ---------------------------------------------------------------- tables


def interval(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {T_975[len(values)] * statistics.stdev(values) / len(values) ** 0.5:.3f}"


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(row)} |", flush=True)


def reward_table(seeds: Sequence[Runs]) -> None:
    made = {
        "classifier": [runs.classifier() for runs in seeds],
        "ranker": [runs.ranker() for runs in seeds],
        "ranker, shuffled": [runs.ranker(is_control=True) for runs in seeds],
    }
    rows = []
    for name, folders in made.items():
        found = [json.loads((folder / "summary.json").read_text()) for folder in folders]
        for part, kind in (("dev", name), ("reply_length", "its length"), ("majority", "its majority")):
            columns = ("auc", "accuracy", "pair_accuracy")
            rows.append([kind, *(interval([each[part][column] for each in found]) for column in columns)])
    show("Held-out futures", ["", "AUC", "accuracy", "order of candidates"], rows)
    rows = []
    for name, is_control in (("ranker", False), ("ranker, shuffled", True)):
        found_orders = [orders(runs.ranker(is_control=is_control), runs.futures(is_short=True)) for runs in seeds]
        rows.append([name, *(interval([each[column] for each in found_orders]) for column in ORDERS)])
    show(
        "Order of held-out candidates: of sampled futures, the most that is possible, and of true means",
        ["", *ORDERS],
        rows,
    )


ORDERS = ("sampled", "ceiling", "true")


def success_table(seeds: Sequence[Runs]) -> None:
    rows = []
    for kind in ("start", "trained", "shuffled", "fit", "length"):
        played = [runs.played(kind) for runs in seeds]
        rows.append([kind, *(interval([each[f"practice.{name}"] for each in played]) for name in METRICS)])
    start = [runs.played("start") for runs in seeds]
    for policy in ("random", "fixed", "rule", "optimum"):
        rows.append([policy, *(interval([each[f"practice.{name} of {policy}"] for each in start]) for name in METRICS)])
    show("Self-play on held-out seekers", ["", *METRICS], rows)


METRICS = ("success", "turns", "regret")


def hacking_table(seeds: Sequence[Runs], n_parts: int = 4) -> None:
    rows = []
    for kind in ("trained", "fit", "shuffled", "length"):
        every = [list(outputs(runs.policy(kind))) for runs in seeds]
        last = max(row[0] for run in every for row in run)
        for part in range(n_parts):
            own = [[row for row in run if part * last < row[0] * n_parts <= (part + 1) * last] for run in every]
            columns = [interval([statistics.mean(row[n] for row in run) for run in own]) for n in (1, 2, 3, 4)]
            rows.append([kind, f"{part * last // n_parts + 1}–{(part + 1) * last // n_parts}", *columns])
    show("Outputs while training", ["", "steps", "reward", "well-formed", "does something", "regret"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, choices=range(1, 6), default=5)
    parser.add_argument("--cases", type=int, default=1200, help="length of the corpus of which a tenth is played")
    parser.add_argument("--only", choices=TABLES, action="append")
    args = parser.parse_args()
    tables: dict[str, Callable[[Sequence[Runs]], None]] = dict(
        zip(TABLES, (reward_table, success_table, hacking_table), strict=True)
    )
    seeds = [Runs(args.folder, seed, args.cases) for seed in range(1, args.seeds + 1)]
    for name in args.only or TABLES:
        tables[name](seeds)


if __name__ == "__main__":
    main()
