"""AFlow in the practice world: search, flow training, held-out seekers, ablations, controls and another profile.

Run: ``python -m tests.benchmarks.bench_practice_flow [--seeds 5] [--backbone practice-tiny] [--only TABLE]
[--folder FOLDER]``. Only prints; the tables are markdown. Every stage is a command of esckit in a folder of its own,
and a stage that is finished is not repeated, so a stopped run goes on with the same ``--folder``. Seed s is the seed of
search and training; the held-out seekers are the same for all.

Tables: ``rounds`` (success, turns and regret of prior, rounds 0 and 1 and the baselines), ``need`` (regret by need),
``leaves`` (probabilities against leaf values), ``sampling`` (search against sampling at equal calls), ``ablations``,
``controls`` (shuffled values, values of noise) and ``transfer`` (the profile ``guarded``). Over several seeds intervals
are 95 % t intervals of the seeds' means; of one seed, those of the evaluation over its seekers.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import t as student_t
from scipy.stats import wilcoxon

from esckit.flow.policy import CheckpointPolicy
from esckit.ledger import derive_seed
from esckit.practice.players import Game
from esckit.practice.world import HORIZON, NEEDS, solution
from esckit.records import read_records, write_records
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import SearchTree, TreeNode, Turn

TAXONOMY = load_taxonomy("aflow")
POLICIES = ("random", "fixed", "rule", "optimum")
METRICS = ("practice.success", "practice.turns", "practice.regret")
WORLD = ("seeker", "supporter", "critic")

PUBLISHED = ("objective.state_value=taken", "objective.measure=counting", "objective.weighting=paths",
             "objective.flow_eps=0.001", "rank.negatives=visited_then_low_prior", "rank.min_gap=0",
             "rank.weight=1")  # fmt: skip
ABLATIONS: dict[str, tuple[str, ...]] = {
    "no_flow (DPO)": ("objective.name=dpo", "kl.weight=0"),
    "no_process (no ranking)": ("rank.weight=0",),
    "tb": ("objective.name=tb",),
    "db": ("objective.name=db",),
    "lambda 0.9": ("objective.subtb_lambda=0.9",),
    "no_boundary": ("objective.terminal_boundary=false", "data.min_actions=2"),
    "counting measure": ("objective.measure=counting",),
    "all as published": PUBLISHED,
}
"""What is changed of ``practice/train_flow``; ``no_search`` has other trees."""

DEEP = ("search.root_turns_to=null", "mcts.n_simulations=60", "mcts.max_depth=8", "mcts.rollout_turns=3",
        "mcts.uniform_kappa=0.1", "mcts.selection_temperature=0.1", "data.path=world:default/100")  # fmt: skip
"""The paper's search; sampling draws from its prior, which is uniform, at every node."""

SAMPLING = ("mcts.exploration=0", "mcts.selection_temperature=10", "mcts.uniform_kappa=10")


class Found(NamedTuple):
    """A value with the half-width, or the ends, of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Bench:
    """The stages of one benchmark, all in one folder."""

    folder: Path
    seeds: tuple[int, ...]
    backbone: str
    n_seekers: int

    def stage(self, command: str, recipe: str, out: str, *sets: str) -> Path:
        """Run a command unless its folder is finished; print how long it took."""
        path = self.folder / out
        manifest = path / "manifest.json"
        if not manifest.is_file() or json.loads(manifest.read_text())["status"] != "complete":
            began = time.perf_counter()
            words = [sys.executable, "-m", "esckit", "--quiet", command, f"practice/{recipe}", "--out", str(path)]
            subprocess.run([*words, *(w for s in sets for w in ("--set", s))], check=True, stdout=subprocess.DEVNULL)
            print(f"{out}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        return path

    def search(self, seed: int, name: str = "search", *sets: str) -> Path:
        return self.stage("search", "search", f"{seed}/{name}", f"seed={seed}", *sets)

    def train(self, seed: int, name: str, trees: Path, *sets: str) -> Path:
        changed = (f"seed={seed}", f"data.trees=[{trees}]", f"model.backbone={self.backbone}", *sets)
        return self.stage("train-flow", "train_flow", f"{seed}/{name}", *changed)

    def round0(self, seed: int) -> Path:
        return self.train(seed, "flow", self.search(seed))

    def round1(self, seed: int) -> Path:
        """Search under the policy of round 0 and train it further."""
        policy = f"models.strategist.checkpoint={self.round0(seed)}"
        trees = self.stage("search", "search_round1", f"{seed}/search1", f"seed={seed + 1000}", policy)
        sets = (f"seed={seed}", f"data.trees=[{trees}]", f"model.init={self.round0(seed)}")
        return self.stage("train-flow", "train_flow_round1", f"{seed}/flow1", *sets, f"model.backbone={self.backbone}")

    def untrained(self, seed: int) -> Path:
        """A policy after updates that change nothing."""
        trees = self.search(seed, "few-trees", "data.path=world:default/40")
        return self.train(seed, "untrained", trees, "optim.lr=1e-12", "optim.epochs=1", "optim.select=last")

    def evaluate(self, policy: Path, profile: str = "default") -> dict[str, Found]:
        """Return the metrics of a policy and of the baselines beside it, by name and group."""
        sets = [f"models.strategist.checkpoint={policy}", f"data.path=world:{profile}/{10 * self.n_seekers}"]
        sets += [f"models.{role}.world={profile}" for role in WORLD]
        name = f"{policy.parent.name}/evaluate-{policy.name}-{profile}"
        out = self.stage("evaluate", "evaluate_flow", name, *sets)
        found = {}
        for row in json.loads((out / "metrics.json").read_text())["metrics"]:
            group = "/".join(map(str, (row["group"] or {}).values()))
            if row["name"] in METRICS and row["value"] is not None:
                ends = row["interval"] or {"low": row["value"], "high": row["value"]}
                found[f"{row['name']}/{group}"] = Found(row["value"], ends["low"], ends["high"])
        return found


def over_seeds(found: Sequence[Found]) -> Found:
    """Return the mean over seeds with its t interval; of one seed, what the evaluation says."""
    if len(found) == 1:
        return found[0]
    mean = statistics.fmean(one.value for one in found)
    error = statistics.stdev([one.value for one in found]) / len(found) ** 0.5
    half = float(student_t.ppf(0.975, len(found) - 1)) * error
    return Found(mean, mean - half, mean + half)


def row(name: str, runs: Sequence[Mapping[str, Any]], group: str = "", metrics: Sequence[str] = METRICS) -> None:
    cells = [str(over_seeds([run[f"{metric}/{group}"] for run in runs])) for metric in metrics]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def header(*columns: str) -> None:
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")


def rounds(bench: Bench, profile: str = "default") -> None:
    header(f"{profile}: policy", "success", "turns", "regret")
    kinds: dict[str, Callable[[int], Path]] = {
        "untrained model": bench.untrained,
        "round 0": bench.round0,
        "round 1": bench.round1,
    }
    for name, make in kinds.items():
        runs = [bench.evaluate(make(seed), profile) for seed in bench.seeds]
        row(name, runs)
    for policy in POLICIES:
        row("prior (random)" if policy == "random" else policy, runs[:1], policy)


def need(bench: Bench) -> None:
    header("regret a turn", *NEEDS)
    for name, make in (("untrained model", bench.untrained), ("round 0", bench.round0), ("round 1", bench.round1)):
        runs = [bench.evaluate(make(seed)) for seed in bench.seeds]
        by_need = {
            one: [run[f"practice.regret/{one}"] for run in runs if f"practice.regret/{one}" in run] for one in NEEDS
        }
        cells = [str(over_seeds(found)) if found else "never met" for found in by_need.values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def prefixes(tree: SearchTree) -> dict[str, tuple[Turn, ...]]:
    found: dict[str, tuple[Turn, ...]] = {}
    for node in tree.nodes:
        found[node.id] = (*(found[node.parent] if node.parent else ()), *node.turns)
    return found


def children(tree: SearchTree) -> dict[str, list[TreeNode]]:
    found: dict[str, list[TreeNode]] = {}
    for node in tree.nodes:
        if node.parent is not None:
            found.setdefault(node.parent, []).append(node)
    return found


def variation(policy: Path, trees: Path) -> tuple[float, float]:
    """Return how far π over tried strategies is from their values' shares, on valid trees; and the same of uniform."""
    player = CheckpointPolicy.load(policy, abbreviations=dict(zip(TAXONOMY.names, TAXONOMY.abbrs, strict=True)))
    ours, uniform = [], []
    for tree in read_records(SearchTree, trees / "trees.jsonl"):
        said = prefixes(tree)
        for state, tried in children(tree).items() if tree.split == "valid" else ():
            values = [node.value or 0.0 for node in tried]
            if len(tried) < 3 or not sum(values):
                continue
            pi = player.read(tree.scenario, said[state]).probabilities
            mine = [pi[TAXONOMY.names.index(str(node.strategy))] for node in tried]
            shares = [value / sum(values) for value in values]
            ours.append(sum(abs(p / sum(mine) - q) for p, q in zip(mine, shares, strict=True)) / 2)
            uniform.append(sum(abs(1 / len(tried) - q) for q in shares) / 2)
    return statistics.fmean(ours), statistics.fmean(uniform)


def leaves(bench: Bench) -> None:
    header("total variation from leaf values", "untrained model", "round 0", "uniform")
    for seed in bench.seeds:
        trees = bench.search(seed)
        trained, uniform = variation(bench.round0(seed), trees)
        print(f"| seed {seed} | {variation(bench.untrained(seed), trees)[0]:.3f} | {trained:.3f} | {uniform:.3f} |")


def visited_regret(folder: Path) -> dict[str, tuple[float, float]]:
    """Return by tree the regret of its decisions, each weighted by its visits, and the return at the root."""
    game, best, found = Game.of("default", TAXONOMY), solution("default"), {}
    for tree in read_records(SearchTree, folder / "trees.jsonl"):
        said, lost, visits = prefixes(tree), 0.0, 0
        depth = {node.id: node.depth for node in tree.nodes}
        for state, tried in children(tree).items():
            before = game.state(tree.scenario, said[state])
            for node in tried:
                regret = best.regret(before, game.expected(str(node.strategy)), max(1, HORIZON - depth[state]))
                lost, visits = lost + node.visits * regret, visits + node.visits
        found[tree.id] = (lost / visits, tree.nodes[0].value or 0.0)
    return found


def sampling(bench: Bench) -> None:
    header("60 simulations a tree", "trees", "search", "sampling", "p (Wilcoxon, paired)")
    pairs: dict[str, list[tuple[float, float]]] = {"regret of a simulated decision": [], "mean return": []}
    for seed in bench.seeds:
        ours = visited_regret(bench.search(seed, "deep", *DEEP))
        theirs = visited_regret(bench.search(seed, "sampled", *DEEP, *SAMPLING))
        for at, found in enumerate(pairs.values()):
            found += [(ours[tree][at], theirs[tree][at]) for tree in ours]
    for name, found in pairs.items():
        mean = [statistics.fmean(side) for side in zip(*found, strict=True)]
        p = wilcoxon([a - b for a, b in found]).pvalue
        print(f"| {name} | {len(found)} | {mean[0]:.4f} | {mean[1]:.4f} | {p:.1e} |", flush=True)


def ablations(bench: Bench) -> None:
    header("practice/train_flow", "success", "turns", "regret")
    row("as shipped", [bench.evaluate(bench.round0(seed)) for seed in bench.seeds])
    for name, sets in ABLATIONS.items():
        folder = "ablation-" + name.split(" (")[0].replace(" ", "-")
        row(name, [bench.evaluate(bench.train(seed, folder, bench.search(seed), *sets)) for seed in bench.seeds])
    linear = ("search.mode=linear", "search.root_turns_to=null", "mcts.max_depth=8")
    made = [bench.train(seed, "ablation-no_search", bench.search(seed, "linear", *linear)) for seed in bench.seeds]
    row("no_search (corpus dialogues)", [bench.evaluate(policy) for policy in made])


def without_truth(source: Path, out: Path, *, seed: int, noise: bool) -> Path:
    """Write trees whose values below the root are dealt out anew, or are noise; visits and texts stay."""
    draw = random.Random(derive_seed(seed, "values"))
    trees = [*read_records(SearchTree, source / "trees.jsonl")]
    values = [node.value for tree in trees for node in tree.nodes[1:]]
    draw.shuffle(values)
    dealt = iter(values)

    def changed(node: TreeNode) -> TreeNode:
        return node.model_copy(update={"value": draw.uniform(0.2, 1.0) if noise else next(dealt)})

    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "manifest.json", out)  # it says which dialogues were used
    path = out / "trees.jsonl"
    if not path.is_file():
        kept = [tree.model_copy(update={"nodes": (tree.nodes[0], *map(changed, tree.nodes[1:]))}) for tree in trees]
        write_records(path, kept)
    return out


def controls(bench: Bench) -> None:
    header("values of the trees", "success", "turns", "regret")
    row("untrained model", [bench.evaluate(bench.untrained(seed)) for seed in bench.seeds])
    row("as searched", [bench.evaluate(bench.round0(seed)) for seed in bench.seeds])
    for name, noise in (("shuffled", False), ("noise", True)):
        runs = []
        for seed in bench.seeds:
            trees = without_truth(bench.search(seed), bench.folder / f"{seed}/trees-{name}", seed=seed, noise=noise)
            runs.append(bench.evaluate(bench.train(seed, f"control-{name}", trees)))
        row(name, runs)


def transfer(bench: Bench) -> None:
    rounds(bench, "guarded")


TABLES: dict[str, Callable[[Bench], None]] = {
    "rounds": rounds, "need": need, "leaves": leaves, "transfer": transfer, "controls": controls,
    "ablations": ablations, "sampling": sampling,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--backbone", default="practice-tiny")
    parser.add_argument("--seekers", type=int, default=200, help="about so many held-out seekers")
    parser.add_argument("--only", choices=TABLES, action="append")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="practice-flow-"))
    print(
        f"{options.backbone}, seeds 1 to {options.seeds}, about {options.seekers} held-out seekers; stages in {folder}"
    )
    bench = Bench(folder, tuple(range(1, options.seeds + 1)), options.backbone, options.seekers)
    for name in options.only or TABLES:
        TABLES[name](bench)


if __name__ == "__main__":
    main()
