"""What the recipe of train-flow refuses."""

from typing import Any

import pytest
from pydantic import ValidationError

from esckit.flow.recipe import TrainFlowRecipe

GOLD = {"dataset": "esconv", "path": "sample:esconv", "scheme": "files"}


def recipe(**sections: Any) -> TrainFlowRecipe:
    base = {"command": "train-flow", "seed": 1, "data": {"trees": ["runs/a"]}, "model": {"backbone": "tiny-random"}}
    return TrainFlowRecipe.model_validate({**base, **sections})


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"data": {}}, "either trees or gold"),
        ({"data": {"trees": ["a"], "gold": GOLD}}, "either trees or gold"),
        ({"data": {"gold": GOLD}}, "objective.name: bc"),
        ({"data": {"trees": ["a"], "valid_split": "train"}}, "differ"),
        ({"data": {"trees": ["a"], "valid_split": None}}, "best_valid"),
        ({"data": {"gold": {**GOLD, "ratios": (0.5, 0.1, 0.1)}}, "objective": {"name": "bc"}}, "sum to 1, not 0.7"),
        ({"response_weight": 0.1}, "strategy_tags"),
        ({"encoding": {"mode": "path", "attention": "tree"}}, "mode: tree"),
        ({"model": {"backbone": "tiny-random", "frozen_layers": 1}}, "trainable: full"),
        ({"objective": {"subtb_lambda": 0.0}}, "greater than 0"),
        ({"objective": {"name": "ppo"}}, "subtb"),
        ({"objective": {"class_weight": "sqrt"}}, "class_weight needs objective.name: bc"),
        ({"objective": {"name": "bc", "logit_adjust": [0.0, 1.0]}}, "logit_adjust needs data.gold"),
    ],
)
def test_what_cannot_be_trained_is_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        recipe(**sections)


def test_a_lone_run_is_a_list_of_one() -> None:
    assert recipe(data={"trees": "runs/a"}).data.trees == ("runs/a",)


def test_how_often_states_are_written_may_change_on_resume() -> None:
    assert {"checkpoints", "executor", "trackers"} <= set(TrainFlowRecipe.OPERATIONAL)
