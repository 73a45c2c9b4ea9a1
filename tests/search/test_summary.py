"""The summary of a forest on a small known one."""

from math import log

import pytest

from esckit.search.summary import summarise
from esckit.types import Outcome
from tests.search.fakes import World, grown


def test_a_summary_counts_trees_shapes_and_failures() -> None:
    world = World(outcome=lambda s, seed: Outcome.RESOLVED, reward=lambda s, seed: 0.6)
    good = grown(world, 0, n_simulations=50).tree
    bad = grown(World(nonsense=lambda role, strategies: role == "critic"), 1).tree
    found = summarise([good, bad])
    n_edges = len(good.nodes) - 1
    assert (found["trees"], found["status"]) == (2, {"complete": 1, "failed": 1})
    assert (found["nodes"], found["leaves"], found["leaf_depth_max"]) == (n_edges + 1, n_edges, 1)
    assert found["outcomes"] == {"RESOLVED": 1.0}
    assert found["return_mean"] == pytest.approx(0.6)
    assert found["strategy_entropy"] == pytest.approx(log(n_edges))
    assert found["failures"] == {"critic/unparsed": 7}
    assert found["usage"]["critic"]["calls"] == n_edges + 7


def test_returns_stand_by_split_so_rounds_can_stop_on_valid() -> None:
    rewards, splits = (0.2, 0.6, 0.8, 0.5), ("train", "train", "valid", None)
    trees = [
        grown(World(outcome=lambda s, seed: Outcome.RESOLVED, reward=lambda s, seed, r=r: r), n).tree.model_copy(
            update={"split": split}
        )
        for n, (r, split) in enumerate(zip(rewards, splits, strict=True))
    ]
    failed = grown(World(nonsense=lambda role, strategies: role == "critic"), 9).tree
    found = summarise([*trees, failed.model_copy(update={"split": "valid"})])
    assert found["return_mean"] == pytest.approx(0.525)
    assert found["return_by_split"] == {
        "train": {"trees": 2, "mean": pytest.approx(0.4)},
        "valid": {"trees": 1, "mean": pytest.approx(0.8)},
    }
    assert summarise([failed])["return_by_split"] == {}


def test_a_summary_of_nothing_has_no_means() -> None:
    found = summarise([])
    assert (found["trees"], found["nodes"], found["return_mean"]) == (0, None, None)
