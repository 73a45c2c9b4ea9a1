"""AFlow in the practice world: what search and flow training change about a policy, held against the truth."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from esckit.flow.policy import CheckpointPolicy
from esckit.practice.corpus import dialogues, parse_path
from esckit.practice.players import Game
from esckit.practice.world import HORIZON, solution
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import Scenario, Turn
from tests.shell import esckit

AFLOW = load_taxonomy("aflow")


def ok(*words: str) -> None:
    done = esckit("--quiet", *words)
    assert done.returncode == 0, done.stderr


def trained(trees: Path, out: Path, *sets: str) -> CheckpointPolicy:
    words = [word for each in (f"data.trees=[{trees}]", "optim.epochs=1", *sets) for word in ("--set", each)]
    ok("train-flow", "practice/train_flow", *words, "--out", str(out))
    return CheckpointPolicy.load(out, abbreviations=dict(zip(AFLOW.names, AFLOW.abbrs, strict=True)))


def contexts() -> list[tuple[Scenario, tuple[Turn, ...]]]:
    """Decisions of seekers that no tree begins with: a search takes the first dialogues."""
    last = list(dialogues(parse_path("world:default/230")))[200:]
    return [(one.scenario, one.turns[:end]) for one in last for end in range(1, min(len(one.turns), 2 * HORIZON), 2)]


def regrets(policy: CheckpointPolicy) -> tuple[float, float]:
    """The mean regret of a strategy drawn from the policy's probabilities, and of one drawn from all alike."""
    game, best = Game.of("default", AFLOW), solution("default")
    drawn, alike = [], []
    for scenario, turns in contexts():
        state, left = game.state(scenario, turns), HORIZON - len(turns) // 2
        lost = [best.regret(state, game.expected(name), left) for name in AFLOW.names]
        probabilities = policy.read(scenario, turns).probabilities
        drawn.append(sum(p * each for p, each in zip(probabilities, lost, strict=True)))
        alike.append(fmean(lost))
    return fmean(drawn), fmean(alike)


def test_training_moves_probability_to_better_strategies(tmp_path: Path) -> None:
    trees = tmp_path / "search"
    ok("search", "practice/search", "--set", "data.path=world:default/90", "--out", str(trees))
    before, _ = regrets(trained(trees, tmp_path / "before", "optim.lr=1e-12", "optim.select=last"))
    after, alike = regrets(trained(trees, tmp_path / "after"))
    assert after < before
    assert after < alike - 0.001


@pytest.mark.parametrize(
    ("change", "said"),
    [("objective.measure=uniform", "objective.measure"), ("data.trees=[nowhere]", "esckit search")],
)
def test_a_training_that_cannot_be_is_refused(tmp_path: Path, change: str, said: str) -> None:
    done = esckit("train-flow", "practice/train_flow", "--set", change, "--out", str(tmp_path / "run"))
    assert done.returncode == 2, done.stdout
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()
