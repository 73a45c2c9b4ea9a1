"""The recipe of `search`: defaults, ranges, and what does not fit together."""

import pytest
from pydantic import ValidationError

from esckit.config.load import load_recipe
from esckit.search.recipe import SearchRecipe

RIGHT = {
    "command": "search",
    "seed": 7,
    "data": {"dataset": "esconv", "path": "somewhere"},
    "models": {role: {"scripted": role} for role in ("seeker", "supporter", "critic", "strategist")},
}


def recipe(**sections: object) -> SearchRecipe:
    return SearchRecipe.model_validate({**RIGHT, **sections})


def test_the_defaults() -> None:
    found = recipe()
    knobs = found.mcts
    assert (knobs.n_simulations, knobs.max_depth, knobs.rollout_turns, knobs.trees_per_scenario) == (60, 10, 3, 1)
    assert (knobs.exploration, knobs.uniform_kappa, knobs.selection_temperature) == (1.0, 0.1, 0.1)
    assert (knobs.prior_smoothing, knobs.leaf_parallelism, knobs.virtual_value) == (0.01, 1, 0.0)
    assert (found.concurrency.trees, found.max_failure_rate, found.search.max_attempts) == (8, 0.05, 3)
    roles = found.models
    assert [role.max_words for role in (roles.seeker, roles.supporter)] == [60, 75]
    assert [role.sampling.max_tokens for role in (roles.seeker, roles.strategist)] == [128, 256]
    assert (roles.critic.sampling.temperature, roles.critic.sampling.top_p) == (0.7, 0.9)


@pytest.mark.parametrize(("n_simulations", "allowed"), [(10, 3), (60, 6), (150, 15)])
def test_a_tenth_of_the_simulations_may_fail(n_simulations: int, allowed: int) -> None:
    assert recipe(mcts={"n_simulations": n_simulations}).mcts.allowed_failures == allowed
    assert recipe(mcts={"max_failed_simulations": 0}).mcts.allowed_failures == 0


@pytest.mark.parametrize(
    "sections",
    [
        {"mcts": {"n_simulations": 0}},
        {"mcts": {"selection_temperature": 0.0}},
        {"mcts": {"prior_smoothing": 0.0}},
        {"mcts": {"leaf_parallelism": 65}},
        {"mcts": {"n_simulations": 5, "max_failed_simulations": 6}},
        {"search": {"root_turns": 6}},
        {"search": {"root_turns": 3, "root_turns_to": 2}},
        {"search": {"max_attempts": 11}},
        {"concurrency": {"trees": 1025}},
        {"critic": {"weights": {"empathy": -1.0}}},
        {"mcts": {"exploration_form": "puct"}},
        {"models": {"critic": {"scripted": "critic"}, "strategist": {"scripted": "strategist"}}},
    ],
)
def test_what_is_out_of_range_is_refused(sections: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        recipe(**sections)


@pytest.mark.parametrize(
    "name", ["aflow/search", "aflow/search_round1", "aflow/ablation_linear", "smoke/search", "smoke/search_scripted"]
)
def test_shipped_recipes_load(name: str) -> None:
    assert load_recipe(name, SearchRecipe).recipe.command == "search"


def test_the_smoke_recipe_sets_no_limit_of_words() -> None:
    assert load_recipe("smoke/search", SearchRecipe).recipe.models.seeker.max_words is None
