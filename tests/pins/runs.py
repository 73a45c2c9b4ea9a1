"""The scripted runs whose files are pinned: one chain of commands in one folder, each as a user would type it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.pins.pinned import environment
from tests.shell import esckit

WORLD = Path(__file__).resolve().parent / "world"

SIMULATE = ("simulate", "smoke/simulate_scripted")
SEARCH = ("search", "smoke/search_scripted")
PREDICT = ("predict", "smoke/predict_scripted")
EVALUATE = ("evaluate", "smoke/evaluate_scripted", "models.scorer=null", "models.reward=null")
FIVE = "suites=[strategy, response, dialogue, pairwise, safety]"


class Run(NamedTuple):
    """One command: its name among the pins, its words, and the exit code that it has."""

    name: str
    words: tuple[str, ...]
    code: int = 0


class Said(NamedTuple):
    """What a command printed."""

    name: str
    words: tuple[str, ...]
    code: int
    stdout: str
    stderr: str


def made(name: str, words: Sequence[str], *changes: str, code: int = 0, extra: Sequence[str] = ()) -> Run:
    """Return a run into ``runs/<name>``; words with ``=`` set a field of the recipe."""
    sets = [word for field in (*words[2:], *changes) for word in ("--set", field)]
    return Run(name, (*words[:2], *sets, *extra, "--out", f"runs/{name}"), code)


def scripted(**roles: str) -> tuple[str, ...]:
    """Return the changes that let functions of ``world/speakers.py`` speak."""
    return tuple(f"models.{role}={{scripted: 'speakers:{name}'}}" for role, name in roles.items())


SIMULATIONS = (
    made("simulate", SIMULATE),
    made("simulate-test", SIMULATE, "data.split=test"),
    made(
        "simulate-expected", SIMULATE, "seed=3", "critic.readout=expected", "critic.expected_score=length_normalised",
        "contexts={situation_first: true, supporter_opening: keep, per_dialogue: 3}",
        "simulation.score_first_exchange=true",
    ),
    made(
        "simulate-ppdpp", SIMULATE, *scripted(critic="four_critic"), "max_failure_rate=1.0",
        "critic={preset: ppdpp4, readout: sampled, samples: 4, threshold: 0.1, ppdpp_compat: true}",
    ),
    made(
        "simulate-guided", SIMULATE, "data.mapping=esconv_to_aflow", "models.strategist={scripted: strategist}",
        "strategist.readout=choices", "simulation={strategy: predicted, horizon: 2, candidates: 2}",
    ),
    made(
        "simulate-extes", SIMULATE, "contexts.per_dialogue=1",
        "data={dataset: extes, path: 'sample:extes', scheme: ratio, ratios: [0.5, 0.25, 0.25], split: [valid, test]}",
    ),
    made(
        "simulate-failing", SIMULATE, *scripted(supporter="blank_supporter", seeker="seeker", critic="critic"),
        "contexts.per_dialogue=null", "max_failure_rate=1.0",
    ),
    made(
        "simulate-stopped", SIMULATE, *scripted(supporter="blank_supporter"), "concurrency.futures=1",
        "max_failure_rate=0.1", code=3,
    ),
)  # fmt: skip
SEARCHES = (
    made("search", SEARCH),
    made(
        "search-expected", SEARCH, "critic={readout: expected, show_strategy: false}", "strategist.readout=choices",
        "mcts={n_simulations: 10, max_depth: 3, rollout_turns: 2, leaf_parallelism: 3, trees_per_scenario: 2, "
        "keep_rollouts: true, virtual_value: 0.1, selection_temperature: 0.5}",
        "search={root_turns: 2, round: 1}", "seed=4", "data.limit=4",
    ),
    made("search-linear", SEARCH, "search.mode=linear", "data.mapping=esconv_to_aflow"),
    made(
        "search-failing", SEARCH, "max_failure_rate=1.0", "mcts.max_failed_simulations=3",
        *scripted(
            supporter="plain_supporter", seeker="leaving_seeker", critic="rating_critic", strategist="strategist"
        ),
    ),
)  # fmt: skip
PREDICTIONS = (
    made("predict", PREDICT),
    made("predict-end", PREDICT, "predict={at: end, strategy: none}", "models.strategist=null", "seed=2",
         "data={dataset: esconv, path: own.json}"),
    made(
        "predict-gold", PREDICT, "predict.strategy=gold", "data.mapping=esconv_to_aflow", "data.split=valid",
        "prompts.supporter=supporter_aflow", "models.supporter={scripted: supporter_aflow}",
    ),
    made(
        "predict-failing", PREDICT, "max_failure_rate=1.0",
        *scripted(strategist="strategist", supporter="blank_supporter"),
    ),
)  # fmt: skip
OPPONENT = "settings.pairwise.opponent=runs/predict"
EVALUATIONS = (
    made("evaluate", EVALUATE, FIVE, OPPONENT),
    made(
        "evaluate-predictions", EVALUATE, "suites=[strategy, response, pairwise]", OPPONENT,
        "settings.pairwise.swap=false", "predictions=runs/predict-failing/predictions.jsonl",
        "models={judge: {scripted: judge}}", "max_failure_rate=1.0",
    ),
    made(
        "evaluate-utterances", EVALUATE, "suites=[strategy, dialogue]", "taxonomy=esconv", "data.mapping=null",
        "seed=9",
        "settings.strategy={unit: utterance, include_openings: true, exclude: [Others]}", "strategist.readout=choices",
        "settings.dialogue={critics: [ppdpp4], max_turns: 3, strategy: none, readout: expected}",
        "models.strategist={scripted: names.yaml}",
    ),
    made("evaluate-trees", EVALUATE, "suites=[strategy]", "data=null",
         "settings.strategy={source: expanded, trees: [runs/search, runs/search-failing]}"),
    made(
        "evaluate-failing", EVALUATE, FIVE, OPPONENT, "max_failure_rate=1.0",
        *scripted(
            strategist="strategist", supporter="blank_supporter", seeker="seeker", critic="critic", judge="judge",
            turn_judge="rating_critic",
        ),
        "settings.dialogue={critics: [rlff7], max_turns: 4, strategy: predicted}",
    ),
    made(
        "evaluate-against", EVALUATE, FIVE, OPPONENT, "models.supporter={scripted: supporter}", code=1,
        extra=(
            "--against", "runs/evaluate", "--fail-under", "response.bleu_2=99", "--fail-over", "safety.harm_count=99",
        ),
    ),
    made("evaluate-labels", EVALUATE, FIVE, OPPONENT, "reliability.labels=labels.jsonl"),
)  # fmt: skip
REPORTS = (
    *(
        Run(f"report-{each.name}", ("report", f"runs/{each.name}"))
        for each in (*SIMULATIONS[:1], *SIMULATIONS[4:5], *SIMULATIONS[6:7], *SEARCHES, *PREDICTIONS[:1])
    ),
    Run("pages", ("report", "runs/simulate", "runs/simulate-failing", "--out", "pages/simulations.html")),
    Run("plots", ("report", "runs/evaluate", "runs/search", "--out", "pages/two.html", "--plots", "pages/plots")),
    Run("against", ("report", "runs/evaluate-against", "--against", "runs/evaluate", "--out", "pages/against.html")),
)  # fmt: skip
CORPORA = (
    Run("inspect", ("data", "inspect", "sample:esconv")),
    Run("inspect-json", ("data", "inspect", "sample:extes", "--json")),
)
DRY = tuple(
    Run(f"dry-{each.name}", (*each.words[:-2], "--dry-run", "--json"))
    for each in (*SIMULATIONS[:1], *SIMULATIONS[4:5], *SEARCHES[:2], *PREDICTIONS[:1], *EVALUATIONS[:2])
)


def play(folder: Path, hash_seed: str | None = None) -> list[Said]:
    """Run everything in a new folder, two commands at a time, and return what was printed."""
    shutil.copytree(WORLD, folder)
    with ThreadPoolExecutor(2) as pool:

        def together(runs: Sequence[Run]) -> list[Said]:
            return list(pool.map(lambda run: shell(folder, run, hash_seed), runs))

        said = together((*SIMULATIONS, *SEARCHES, *PREDICTIONS)) + together(EVALUATIONS[:1])
        _label(folder)
        return said + together(EVALUATIONS[1:]) + together((*REPORTS, *CORPORA, *DRY))


def shell(folder: Path, run: Run, hash_seed: str | None = None) -> Said:
    """Run one command in a process of its own; with a seed of hashes in one that is not forked.

    Raises:
        AssertionError: If it leaves with another exit code than it should.
    """
    words = ("-q", *run.words)
    if hash_seed is None:
        done = esckit(*words, cwd=folder, env=environment())
    else:
        command, variables = [sys.executable, "-m", "esckit", *words], environment(PYTHONHASHSEED=hash_seed)
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == run.code, f"{run.name} left with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return Said(run.name, run.words, done.returncode, done.stdout, done.stderr)


def _label(folder: Path) -> None:
    """Write labels of two raters beside what the critic, the judge of pairs and the judge of turns said."""
    out = folder / "runs/evaluate"
    episodes, pairs = _rows(out / "episodes.jsonl"), _rows(out / "examples/pairwise.jsonl")
    turns = [f"{episode['id']}@{turn['t']}" for episode in episodes for turn in episode["turns"] if turn.get("ratings")]
    kinds: tuple[tuple[str, list[str], Callable[[int], object]], ...] = (
        ("rlff7", [each["id"] for each in episodes], lambda n: ("Same", "Slightly Better")[n % 2]),
        ("comfort", [each["id"] for each in pairs], lambda n: ("win", "tie", "lose")[n % 3]),
        ("empathy", turns, lambda n: 2 + n % 3),
    )
    rows = [
        {"case_id": name, "rater": rater, "dimension": dimension, "label": label(n if rater == "a" else n + n // 3)}
        for dimension, names, label in kinds
        for n, name in enumerate(names)
        for rater in ("a", "b")
    ]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
