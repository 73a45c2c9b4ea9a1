"""A trained reward model as the critic of a search: the two methods meet through a file."""

import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from esckit.errors import ConfigError
from esckit.records import read_records
from esckit.reward.run import run as train_reward
from esckit.runs import read_manifest
from esckit.search.recipe import SearchRecipe
from esckit.search.run import run
from esckit.types import SearchTree
from tests.reward.reward_runs import reward_recipe, simulated
from tests.search.test_run import recipe


def test_a_reward_model_rates_the_turns_of_a_search(tmp_path: Path) -> None:
    simulated(tmp_path / "futures")
    train_reward(reward_recipe(tmp_path / "futures"), out=tmp_path / "reward")
    guided = recipe(
        models={"critic": {"checkpoint": str(tmp_path / "reward")}},
        critic={"readout": "reward_model"},
        data={"limit": 2},
    )
    run(guided, out=tmp_path / "trees")
    trees = list(read_records(SearchTree, tmp_path / "trees/trees.jsonl"))
    assert {tree.readout for tree in trees} == {"reward_model"}
    nodes = [node for tree in trees for node in tree.nodes if node.parent is not None]
    assert nodes
    assert all(node.reward is not None and 0 < node.reward < 1 and node.ratings is None for node in nodes)
    manifest = read_manifest(tmp_path / "trees")
    assert "critic" not in manifest["prompts"]
    assert list(manifest["checkpoints"]) == [str(tmp_path / "reward")]
    shutil.rmtree(tmp_path / "reward")
    train_reward(reward_recipe(tmp_path / "futures", optim={"epochs": 1}), out=tmp_path / "reward")
    with pytest.raises(ConfigError, match="other inputs"):
        run(guided, out=tmp_path / "trees")


def test_a_reward_model_and_its_readout_belong_together() -> None:
    with pytest.raises(ValidationError, match="belong together"):
        recipe(critic={"readout": "reward_model"})
    with pytest.raises(ValidationError, match="belong together"):
        SearchRecipe.model_validate(
            recipe().model_dump(mode="json")
            | {"models": {**recipe().model_dump(mode="json")["models"], "critic": {"checkpoint": "runs/x"}}}
        )
