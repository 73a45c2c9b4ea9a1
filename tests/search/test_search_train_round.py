"""One round of search and training in a scripted world: the policy chooses better than the prior it started from."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from esckit.flow.policy import CheckpointPolicy
from esckit.flow.run import run as train_flow
from esckit.flow.text import policy_id
from esckit.records import read_records, write_records
from esckit.search.recipe import SearchRecipe
from esckit.search.run import run as search
from esckit.types import Dialogue, Scenario, SearchTree, Turn
from tests.flow.flow_runs import AFLOW, recipe
from tests.simulate.world import BEST, SAYINGS, need_of

N_SEEDS = 16


def seed_dialogues(folder: Path) -> Path:
    dialogues = [
        Dialogue(
            scenario=Scenario(id=f"scene-{index}", situation=f"It is week {index}."),
            turns=(Turn(speaker="seeker", text=SAYINGS[index % 3]), Turn(speaker="supporter", text="Tell me.")),
        )
        for index in range(N_SEEDS)
    ]
    write_records(folder / "seeds.jsonl", dialogues)
    return folder / "seeds.jsonl"


def searching(corpus: Path, **changes: Any) -> SearchRecipe:
    base: dict[str, Any] = {
        "command": "search",
        "seed": 5,
        "data": {
            "dataset": "jsonl",
            "path": str(corpus),
            "scheme": "ratio",
            "ratios": [0.5, 0.25, 0.25],
            "split": ["train", "valid"],
        },
        "models": {
            role: {"scripted": f"tests.simulate.world:{role}"}
            for role in ("seeker", "supporter", "critic", "strategist")
        },
        "mcts": {"n_simulations": 30, "max_depth": 4, "rollout_turns": 0},
    }
    for name, section in changes.items():
        base[name] = {**base.get(name, {}), **section}
    return SearchRecipe.model_validate(base)


def interval(values: Sequence[float], *, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean."""
    random_ = random.Random(0)
    means = sorted(sum(random_.choices(values, k=len(values))) / len(values) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws)]


def fresh_states(n: int) -> list[tuple[Scenario, tuple[Turn, ...]]]:
    random_ = random.Random(11)
    states = []
    for index in range(n):
        turns = [Turn(speaker="seeker", text=random_.choice(SAYINGS))]
        for _ in range(random_.randint(0, 2)):
            turns += [
                Turn(speaker="supporter", text="I am with you."),
                Turn(speaker="seeker", text=random_.choice(SAYINGS)),
            ]
        states.append((Scenario(id=f"new-{index}", situation=f"It is week {50 + index}."), tuple(turns)))
    return states


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_round_improves_the_policy_and_serves_the_next_search(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    corpus = seed_dialogues(tmp_path)
    search(searching(corpus), out=tmp_path / "search0")
    settings = recipe(
        tmp_path / "search0",
        model={"trainable": "full"},
        optim={"lr": 3.0e-3, "epochs": 10, "paths_per_update": 24},
    )
    summary = train_flow(settings, out=tmp_path / "flow0").summary
    policy = CheckpointPolicy.load(
        tmp_path / "flow0", abbreviations=dict(zip(AFLOW.names, AFLOW.abbrs, strict=True)), dtype="float32"
    )
    gains = []
    for scenario, turns in fresh_states(60):
        best = BEST[need_of(turns[-1].text)]
        # The prior knows nothing: it is right one time in eight.
        gains.append((policy.read(scenario, turns).strategy == best) - 1 / 8)
    low, high = interval(gains)
    record_property("gain over the prior, 95 % interval", [round(low, 3), round(high, 3)])
    assert low > 0, f"gain over the prior {sum(gains) / len(gains):.2f}, 95 % interval [{low:.2f}, {high:.2f}]"
    assert summary["valid"]["best_action"] > 1 / 8

    second = searching(
        corpus,
        models={"strategist": {"checkpoint": str(tmp_path / "flow0"), "dtype": "float32"}},
        mcts={"prior_smoothing": 0.1, "n_simulations": 4},
        search={"round": 1},
    )
    search(second, out=tmp_path / "search1")
    trees = list(read_records(SearchTree, tmp_path / "search1/trees.jsonl"))
    assert {tree.prior_source for tree in trees} == {policy_id(tmp_path / "flow0")}
    assert {tree.round for tree in trees} == {1}
    tree = trees[0]
    pi = policy.read(tree.scenario, tree.nodes[0].turns).probabilities
    assert tree.nodes[0].prior == pytest.approx([0.9 * p + 0.1 / 8 for p in pi], abs=1e-6)
