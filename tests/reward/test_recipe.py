"""The recipe of train-reward."""

import pytest

from esckit.config.load import load_recipe, shipped_recipes
from esckit.config.training import GoalLabel, QuantileLabel, ThresholdLabel
from esckit.errors import ConfigError
from esckit.reward.recipe import RewardOptim, TrainRewardRecipe, plan_steps

OURS = [recipe.name for recipe in shipped_recipes() if recipe.command == "train-reward"]


def test_the_papers_values():
    recipe = load_recipe("rlff/train_reward", TrainRewardRecipe).recipe
    optim = recipe.optim
    assert (optim.lr, optim.epochs, optim.batch_size, optim.accumulate) == (1e-4, 2, 1, 8)
    assert (recipe.model.backbone, recipe.model.trainable, recipe.model.max_length) == ("llama-3.2-1b", "full", 2048)
    assert recipe.label == ThresholdLabel(rule="threshold", delta="0.5")
    assert recipe.inputs == ("runs/simulate-rlff",)
    assert (recipe.dev.share, recipe.dev.select_by) == (0.1, "log_loss")


def test_recipes_chain_on_the_folders_of_their_inputs():
    folders = {str(load_any.default_out()) for load_any in map(_loaded, _simulations())}
    for name in OURS:
        assert set(load_recipe(name, TrainRewardRecipe).recipe.inputs) <= folders, name


def _simulations():
    return [recipe.name for recipe in shipped_recipes() if recipe.command == "simulate"]


def _loaded(name):
    from esckit.config.load import load_any_recipe

    return load_any_recipe(name)


def test_every_ablation_ships():
    assert {
        f"rlff/train_reward{what}"
        for what in ("", "_extes", "_goal", "_quantile", "_low_lr", "_head", "_lora", "_pairwise", "_rrhf")
    } <= set(OURS)


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("{rule: goal}", GoalLabel),
        ("{rule: threshold, delta: 0.5}", ThresholdLabel),
        ("{rule: quantile, q: 0.7}", QuantileLabel),
    ],
)
def test_labels_are_told_apart_by_their_rule(label, kind):
    assert isinstance(
        load_recipe("rlff/train_reward", TrainRewardRecipe, overrides=[f"label={label}"]).recipe.label, kind
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("label={rule: quantile, q: 1.5}", "between 0 and 1"),
        ("label={delta: 0.5}", "rule"),
        ("label={rule: goal, delta: 0.5}", "delta"),
        ("optim.accumulate=0", "optim.accumulate"),
        ("objective={kind: pairwise, class_weight: balanced}", "class_weight"),
        ("inputs=[]", "inputs"),
    ],
)
def test_what_is_wrong_is_named(change, words):
    with pytest.raises(ConfigError, match=words):
        load_recipe("rlff/train_reward", TrainRewardRecipe, overrides=[change])


def test_the_effective_batch_is_the_same_on_any_process_count() -> None:
    one, two = (plan_steps(RewardOptim(), n_items=100, n_processes=n) for n in (1, 2))
    assert (one.accumulate, one.per_epoch, one.steps) == (8, 13, 26)
    assert (two.accumulate, two.steps) == (4, 26)


def test_processes_that_cannot_share_a_step_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"8 examples .* over 3 processes.*divides them: 1, 2, 4, 8"):
        plan_steps(RewardOptim(), n_items=100, n_processes=3)
