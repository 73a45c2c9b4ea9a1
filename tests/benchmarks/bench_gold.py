"""Gold next-strategy prediction under several seeds: each seed, mean and spread, and their ensemble.

Run: ``python -m tests.benchmarks.bench_gold FOLDER --data data/esconv [--seeds 3]``. Only prints; every stage is a
command of esckit in FOLDER, a stage that is complete is not made again, and a training that was stopped goes on. A seed
takes an hour or two on two cores. The ensemble decides by the mean of the seeds' probabilities, so nothing of it is
chosen on test. ``--recipe smoke/gold_bc --data sample:esconv`` tries the script itself.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from esckit.evaluate.suites.strategy import StrategyCase
from esckit.metrics.confusion import accuracy, macro_f1, weighted_f1
from esckit.records import read_records
from esckit.strategies.taxonomy import load_taxonomy
from tests.benchmarks.bench_practice_rlff import esckit, show

SCORES = {"accuracy": accuracy, "macro-F1": macro_f1, "weighted F1": weighted_f1}
PUBLISHED = ("EmoDynamiX, published (accuracy: a public re-run)", "33.61", "27.70", "32.71")
NAMES = load_taxonomy("esconv").names


def cases(folder: Path, seed: int, args: argparse.Namespace) -> list[StrategyCase]:
    """Return the test cases as the policy of a seed decided them."""
    policy = esckit(folder / f"seed{seed}", "train-flow", args.recipe, f"seed={seed}", f"data.gold.path={args.data}")
    sets = [f"models.strategist.checkpoint={policy}", f"data.path={args.data}"]
    if args.recipe.startswith("smoke/"):
        sets += ["data.scheme=ratio", "data.ratios=[0.6, 0.2, 0.2]"]
    out = esckit(folder / f"test{seed}", "evaluate", "evaluate/strategy_gold", *sets)
    return sorted(read_records(StrategyCase, out / "examples/strategy.jsonl"), key=lambda case: case.id)


def scores(gold: Sequence[str], chosen: Sequence[str]) -> list[float]:
    """Return the scores in per cent."""
    matrix = np.zeros((1, len(NAMES), len(NAMES)))
    for ours, theirs in zip(chosen, gold, strict=True):
        matrix[0, NAMES.index(ours), NAMES.index(theirs)] += 1
    return [100 * float(score(matrix)[0]) for score in SCORES.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default="data/esconv")
    parser.add_argument("--recipe", default="aflow/gold_bc")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    decided = [cases(args.folder, seed, args) for seed in range(1, args.seeds + 1)]
    gold = [case.gold for case in decided[0]]
    each = [scores(gold, [str(case.predicted) for case in of_seed]) for of_seed in decided]
    probabilities = np.mean([[case.probabilities for case in of_seed] for of_seed in decided], axis=0)
    ensemble = scores(gold, [NAMES[index] for index in probabilities.argmax(axis=1)])
    rows = [list(PUBLISHED)]
    rows += [[f"seed {at}", *(f"{value:.2f}" for value in values)] for at, values in enumerate(each, start=1)]
    if len(each) > 1:
        columns = list(zip(*each, strict=True))
        rows.append(["mean ± sd", *(f"{statistics.mean(c):.2f} ± {statistics.stdev(c):.2f}" for c in columns)])
        rows.append(["ensemble", *(f"{value:.2f}" for value in ensemble)])
    show(f"Next strategy, {len(gold):,} decisions, per cent", ["", *SCORES], rows)


if __name__ == "__main__":
    main()
