import pytest

from esckit.config.load import known_fields, load_recipe
from esckit.errors import ConfigError
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.simulate.run import SimulateRecipe
from tests.config.configfakes import write_recipe


def test_a_key_that_was_pasted_into_a_recipe_is_never_quoted(tmp_path):
    secret = "sk-verysecret"
    for change in (
        f"{{base_url: 'https://user:{secret}@x/v1'}}",
        f"{{base_url: 'https://x/v1', api_key_env: {secret}}}",
        f"{{base_url: 'https://x/v1', api_key: {secret}}}",
    ):
        with pytest.raises(ConfigError) as caught:
            load_recipe(
                write_recipe(tmp_path),
                SimulateRecipe,
                overrides=[f"models.critic={{endpoint: {change}, model: m}}"],
            )
        assert secret not in str(caught.value)
        assert "models.critic.endpoint." in str(caught.value)


def test_known_fields_are_found_through_unions_and_tags():
    assert "backbone" in known_fields(SimulateRecipe, ("models", "critic", "<backbone>"))
    assert "api_key_env" in known_fields(SimulateRecipe, ("models", "critic", "<endpoint>", "endpoint", "<address>"))
    assert "top_k" in known_fields(SimulateRecipe, ("models", "critic", "<scripted>", "sampling"))
    assert "horizon" in known_fields(SimulateRecipe, ("simulation",))


def test_an_empty_list_is_told_as_one():
    with pytest.raises(ConfigError, match=r"suites \(--set\): must not be empty"):
        load_recipe("smoke/evaluate_scripted", EvaluateRecipe, overrides=["suites=[]"])


def test_a_list_with_a_wrong_item_is_not_called_empty():
    with pytest.raises(ConfigError) as caught:
        load_recipe("smoke/evaluate_scripted", EvaluateRecipe, overrides=["suites=[safty]"])
    assert "did you mean 'safety'" in str(caught.value)
    assert "must not be empty" not in str(caught.value)


@pytest.mark.parametrize("written", ["test", "[train, valid]"])
def test_the_schema_allows_what_recipes_write(written: str, tmp_path) -> None:
    split = EvaluateRecipe.model_json_schema()["$defs"]["EvaluateData"]["properties"]["split"]["anyOf"]
    loaded = load_recipe("smoke/evaluate_scripted", EvaluateRecipe, overrides=[f"data.split={written}"])
    assert loaded.recipe.data.split == tuple(written.strip("[]").split(", "))
    assert {one["type"] for one in split} == {"string", "array", "null"}
