import pytest

from esckit.config.load import load_any_recipe, load_recipe
from esckit.errors import ConfigError
from esckit.simulate.run import SimulateRecipe
from tests.config.configfakes import RIGHT, write_recipe


def refusal(ref: str, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_recipe(ref, SimulateRecipe, overrides=overrides)
    return caught.value


def test_a_right_recipe_loads_with_the_papers_defaults(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path), SimulateRecipe).recipe
    assert (recipe.seed, recipe.simulation.candidates, recipe.simulation.horizon) == (7, 4, 8)
    assert (recipe.critic.samples, recipe.critic.threshold) == (10, "0.5")
    supporter = recipe.models.supporter.sampling
    assert (supporter.temperature, supporter.top_k, supporter.top_p, supporter.max_tokens) == (1.1, 80, 1.0, 512)
    assert recipe.models.seeker.sampling.max_tokens == 64
    assert recipe.models.critic.sampling.temperature == 1.1
    assert recipe.data.merge is True


def test_a_partial_sampling_keeps_the_roles_other_defaults(tmp_path):
    loaded = load_recipe(write_recipe(tmp_path), SimulateRecipe, overrides=["models.seeker.sampling.max_tokens=9"])
    assert loaded.recipe.models.seeker.sampling.temperature == 0.7
    assert loaded.recipe.models.seeker.sampling.max_tokens == 9


def test_all_problems_are_named_with_line_path_and_suggestion(tmp_path):
    text = RIGHT.replace("path: somewhere", "pth: somewhere").replace("split: train", "split: trian")
    message = str(
        refusal(
            write_recipe(tmp_path, text + "critics: {samples: 3}\n"),
            "simulation.candidates=0",
            "data.limit='3'",
            "models.seeker.backbon=x",
            "models.supporter.sampling.max_token=3",
            "models.coach.scripted=x",
            "budget=3",
        )
    )
    for line in (
        "10 problems",
        "data.path (line 3): is missing",
        "data.pth (line 3): unknown field; did you mean 'path'?",
        "data.split[0] (line 3): must be 'train', 'valid' or 'test', not 'trian'; did you mean 'train'?",
        "data.limit (--set): must be a whole number, not '3'",
        "models.seeker.backbon (--set): unknown field; known here: max_context_tokens, max_words, on_length, "
        "sampling, scripted",
        "models.supporter.sampling.max_token (--set): unknown field; did you mean 'max_tokens'?",
        "models.coach (--set): unknown field; known here: critic, seeker, strategist, supporter",
        "simulation.candidates (--set): must be greater than 0, not 0",
        "budget (--set): must be a section (a mapping), not 3",
    ):
        assert line in message
    assert "critics" in message


@pytest.mark.parametrize("value", ["'4'", "4.5", "true", "[4]", "{a: 4}", "-1", ".nan"])
def test_types_are_strict(tmp_path, value):
    assert "simulation.candidates" in str(refusal(write_recipe(tmp_path), f"simulation.candidates={value}"))


def test_a_word_is_no_boolean(tmp_path):
    assert "true or false" in str(refusal(write_recipe(tmp_path), "critic.ppdpp_compat='yes'"))


def test_a_recipe_for_another_command_is_named(tmp_path):
    error = refusal(write_recipe(tmp_path, RIGHT.replace("command: simulate", "command: search")))
    assert "is for the command 'search'" in error.headline
    assert error.expected == "a recipe for 'simulate'"


def test_a_recipe_must_name_its_command(tmp_path):
    assert "which command" in str(refusal(write_recipe(tmp_path, "seed: 7\n")))


def test_a_command_without_engine_is_not_part_of_this_version(tmp_path):
    ref = write_recipe(tmp_path, "command: simulat\n")
    with pytest.raises(ConfigError, match=r"does not have.*Did you mean 'simulate'"):
        load_any_recipe(ref)


def test_merge_false_is_refused(tmp_path):
    assert "data.merge (--set): must be true here" in str(refusal(write_recipe(tmp_path), "data.merge=false"))


def test_the_digest_does_not_depend_on_how_a_value_is_written(tmp_path):
    ref = write_recipe(tmp_path)
    written = [
        load_recipe(ref, SimulateRecipe, overrides=[text]).recipe.resolved()
        for text in ("data.split=train", "data.split=[train]", "critic.threshold=0.5", "critic.threshold='0.5'")
    ]
    assert all(recipe == written[0] for recipe in written)


def test_what_is_no_recipe_is_refused(tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in str(refusal(str(binary)))
    assert "is a folder" in str(refusal(str(tmp_path)))
    (tmp_path / "manifest.json").touch()
    assert f"is a run folder; expected a recipe's name or file. What the run is: esckit runs show {tmp_path}" in str(
        refusal(str(tmp_path))
    )
    assert "no recipe" in str(refusal(str(tmp_path / "absent.yaml")))
    assert "no mapping" in str(refusal(write_recipe(tmp_path, "", "empty.yaml")))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mine.yaml", "runs/simulate-mine"),
        ("simulate.yaml", "runs/simulate"),
        ("simulate_wide.yaml", "runs/simulate-wide"),
    ],
)
def test_the_run_folder_is_named_after_command_and_recipe(tmp_path, name, folder):
    assert str(load_recipe(write_recipe(tmp_path, name=name), SimulateRecipe).default_out()) == folder
