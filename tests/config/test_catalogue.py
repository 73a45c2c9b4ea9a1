from functools import cache

import pytest

from esckit.config.load import RECIPES, find_recipe, load_any_recipe, load_recipe, shipped_recipes
from esckit.errors import ConfigError
from esckit.simulate.run import SimulateRecipe

NAMES = [recipe.name for recipe in shipped_recipes()]
loaded = cache(load_any_recipe)


def test_the_smoke_and_the_papers_recipes_ship():
    assert {"smoke/simulate", "smoke/simulate_scripted", "rlff/simulate", "rlff/simulate_expected"} <= set(NAMES)
    assert not any(name.startswith("scripted/") for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_loads_and_says_what_it_is(name):
    recipe = loaded(name).recipe
    shipped = next(each for each in shipped_recipes() if each.name == name)
    assert recipe.command == shipped.command
    assert shipped.title.endswith(".")


def test_the_papers_recipe_states_the_papers_values():
    recipe = load_recipe("rlff/simulate", SimulateRecipe).recipe
    assert (recipe.simulation.candidates, recipe.simulation.horizon) == (4, 8)
    assert (recipe.critic.readout, recipe.critic.samples, recipe.critic.threshold) == ("sampled", 10, "0.5")
    assert recipe.models.supporter.model_dump()["backbone"] == "qwen2.5-7b-instruct-1m"
    assert recipe.data.path == "data/esconv"
    assert recipe.data.split == ("train",)


def test_a_recipe_is_found_by_name_by_file_name_and_by_path():
    by_name = find_recipe("smoke/simulate")
    assert find_recipe("smoke/simulate.yaml").path == by_name.path
    assert find_recipe(str(by_name.path)).name == "smoke/simulate"


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'smoke/simulate'"):
        find_recipe("smoke/simulat")


def test_run_folders_of_shipped_recipes_are_distinct():
    folders = [str(loaded(name).default_out()) for name in NAMES]
    assert len(set(folders)) == len(folders)
    assert "runs/simulate-smoke" in folders


@pytest.mark.parametrize("command", RECIPES.names())
def test_every_recipe_class_has_a_schema(command):
    schema = RECIPES.resolve(command).model_json_schema()
    assert schema["additionalProperties"] is False


def runs_named(part):
    """Return every run folder that a recipe's values name."""
    if isinstance(part, dict):
        return {folder for value in part.values() for folder in runs_named(value)}
    if isinstance(part, list | tuple):
        return {folder for value in part for folder in runs_named(value)}
    return {"/".join(part.split("/")[:2])} if isinstance(part, str) and part.startswith("runs/") else set()


@pytest.mark.parametrize("name", NAMES)
def test_recipes_read_runs_of_shipped_recipes_on_the_same_corpus(name):
    recipes = [loaded(each) for each in NAMES]
    corpora = {
        str(each.default_out()): section.get("dataset")
        for each in recipes
        if isinstance(section := each.recipe.model_dump().get("data") or {}, dict)
    }
    data = loaded(name).recipe.model_dump()
    # An evaluation reads held-out runs of the same recipes; base systems are the reader's own.
    named = {folder.removesuffix("-test") for folder in runs_named(data)} - {"runs/evaluate-base"}
    assert named <= set(corpora)
    ours = (data.get("data") or {}).get("dataset")
    assert {corpora[folder] for folder in named if corpora[folder] and ours} <= {ours}
