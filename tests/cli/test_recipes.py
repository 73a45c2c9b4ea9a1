import json

import pytest
import yaml
from typer.testing import CliRunner

from esckit.cli.app import app
from esckit.config.load import shipped_recipes
from esckit.errors import ConfigError, EsckitError


def run(*args: str):
    return CliRunner().invoke(app, ["recipes", *args])


def test_list_names_every_shipped_recipe():
    shown = run("list").stdout
    assert all(recipe.name in shown for recipe in shipped_recipes())
    rows = json.loads(run("list", "--json").stdout)
    assert {"name": "smoke/simulate", "command": "simulate"}.items() <= next(
        row for row in rows if row["name"] == "smoke/simulate"
    ).items()


def test_show_prints_the_file_as_it_is_or_as_it_would_run():
    shipped = next(recipe for recipe in shipped_recipes() if recipe.name == "rlff/simulate")
    assert run("show", "rlff/simulate").stdout == shipped.path.read_text(encoding="utf-8")
    resolved = yaml.safe_load(run("show", "rlff/simulate", "--resolved").stdout)
    assert resolved["critic"]["min_parsed"] == 1
    changed = json.loads(run("show", "rlff/simulate", "--json", "--set", "data.limit=4").stdout)
    assert changed["data"]["limit"] == 4


def test_a_resolved_recipe_is_a_right_recipe_itself(tmp_path):
    path = tmp_path / "again.yaml"
    path.write_text(run("show", "smoke/simulate", "--resolved").stdout, encoding="utf-8")
    again = json.loads(run("show", str(path), "--json").stdout)
    assert again == json.loads(run("show", "smoke/simulate", "--json").stdout)


def test_copy_writes_the_file_and_never_over_another(tmp_path):
    target = tmp_path / "mine.yaml"
    assert run("copy", "smoke/simulate", str(target)).stdout.strip() == str(target)
    shipped = next(recipe for recipe in shipped_recipes() if recipe.name == "smoke/simulate")
    assert target.read_bytes() == shipped.path.read_bytes()
    target.write_text("mine")
    refused = run("copy", "smoke/simulate", str(target))
    assert isinstance(refused.exception, ConfigError)
    assert target.read_text() == "mine"
    assert run("copy", "smoke/simulate", str(target), "--force").exit_code == 0
    assert run("copy", "smoke/simulate", str(tmp_path)).stdout.strip() == str(tmp_path / "simulate.yaml")


def test_check_passes_shipped_recipes_and_names_every_problem(tmp_path):
    assert run("check").exit_code == 0
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(f"command: simulate\nseed: -1\n{name}: 1\n")
    refused = run("check", "smoke/simulate", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"))
    assert isinstance(refused.exception, ConfigError)
    message = str(refused.exception)
    assert "2 of 3 recipes are wrong" in message
    assert "a (line 3): unknown field" in message
    assert "b (line 3): unknown field" in message
    assert message.count("seed (line 2)") == 2


def test_schema_lists_the_fields_and_refuses_an_unknown_command():
    schema = json.loads(run("schema", "simulate").stdout)
    assert {"command", "seed", "data", "models", "critic", "simulation"} <= schema["properties"].keys()
    for word in ("simulat", "os:path"):
        with pytest.raises(ConfigError, match=f"the command '{word}'"):
            raise run("schema", word).exception


def test_a_recipe_that_is_not_text_is_an_error_of_ours(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"command: caf\xe9\n")
    for options in ([], ["--resolved"]):
        assert isinstance(run("show", str(tmp_path / "latin.yaml"), *options).exception, EsckitError)
