"""What the recipe of train-flow refuses."""

from typing import Any

import pytest
from pydantic import ValidationError

from esckit.flow.recipe import TrainFlowRecipe

GOLD = {"dataset": "esconv", "path": "sample:esconv", "scheme": "files"}

TB_OF_STATES = {"name": "tb", "weighting": "unique", "state_value": "policy_mean", "terminal_boundary": False}


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
        (
            {"data": {"trees": ["a"], "min_actions": 1}, "objective": {"terminal_boundary": False}},
            "data.min_actions to 2",
        ),
        ({"objective": TB_OF_STATES}, "other paths share.*weighting: paths"),
        ({"optim": {"select": "last", "patience": 2}}, "patience needs optim.select: best_valid"),
        ({"objective": {"class_weight": "sqrt"}}, "class_weight needs objective.name: bc"),
        ({"objective": {"name": "subtp"}}, "must be one of subtb, tb, db, dpo, bc, or module:attr"),
        ({"objective": {"name": "mine:own", "weighting": "unique"}}, "needs an objective that ships"),
        ({"objective": {"name": "bc", "logit_adjust": [0.0, 1.0]}}, "logit_adjust needs data.gold"),
    ],
)
def test_what_cannot_be_trained_is_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        recipe(**sections)


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"trees": ["a"], "min_actions": 1}},
        {"data": {"trees": ["a"], "min_actions": 1}, "objective": {"name": "dpo", "terminal_boundary": False}},
        *({"objective": {**TB_OF_STATES, **change}} for change in ({"terminal_boundary": True}, {"name": "subtb"})),
        *({"objective": {**TB_OF_STATES, **change}} for change in ({"weighting": "paths"}, {"state_value": "taken"})),
    ],
)
def test_what_the_refusals_advise_is_accepted(sections: dict[str, Any]) -> None:
    recipe(**sections)


def test_a_lone_run_is_a_list_of_one() -> None:
    assert recipe(data={"trees": "runs/a"}).data.trees == ("runs/a",)


def test_how_often_states_are_written_may_change_on_resume() -> None:
    assert {"checkpoints", "executor.threads", "trackers"} <= set(TrainFlowRecipe.OPERATIONAL)
