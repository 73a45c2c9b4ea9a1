"""The reference of recipes: every field is explained, and page, schema and terminal say the same."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml
from pydantic import Field as Limited
from typer.testing import CliRunner

from esckit.cli.app import app
from esckit.config.load import RECIPES, load_any_recipe, shipped_recipes
from esckit.config.reference import Field, below, field_docs, in_words, plain, recipe_fields, recipe_schema, summary
from esckit.config.sections import Section
from esckit.errors import ConfigError
from tests.shell import ROOT

COMMANDS = tuple(RECIPES.targets)


class Base(Section):
    """A base.

    Attributes:
        size: How large it is, in ``cm``;
            None is unknown. Operational.
        both: From the base.
    """

    size: int | None = None
    both: int = 1


class Derived(Base):
    """What is tried here.
    On two lines.

    Attributes:
        both: From :class:`~some.place`.
    """

    share: float = Limited(default=0.5, gt=0, le=1)


def everything(fields: tuple[Field, ...]) -> Iterator[Field]:
    for field in fields:
        yield field
        for form in field.sections:
            yield from everything(form.fields)


def run(*words: str):
    return CliRunner().invoke(app, ["recipes", *words])


def test_docs_come_from_the_class_and_those_above():
    assert field_docs(Derived) == {
        "size": "How large it is, in `cm`; `null` is unknown.",
        "both": "From `some.place`.",
    }
    assert summary(Derived) == "What is tried here. On two lines."


def test_code_in_a_docstring_keeps_its_none():
    assert plain("``None``, None, :func:`a.b` and ``x: y``. Operational.") == "`None`, `null`, `a.b` and `x: y`."


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "exclusiveMinimum": 0}, "a whole number above 0"),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, "a number of at least 0 and below 1"),
        ({"type": "integer", "minimum": 1, "maximum": 100_000}, "a whole number from 1 to 100,000"),
        ({"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1}, "a list of any of `a`, `b`, at least one"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "a mapping of names, each to a number"),
        ({"const": "local", "type": "string"}, "`local`"),
    ],
)
def test_types_are_said_in_words(schema, words):
    assert in_words(schema) == words


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_has_a_meaning_of_its_own(command):
    for field in everything(recipe_fields(command)):
        words = re.findall(r"\w+", re.sub(r"Defaults of this role:.*", "", field.meaning).lower())
        assert len(words) >= 3, f"{field.path}: describe it under Attributes: of its class"
        of_name = {"the", "a", "of", field.name, *field.name.split("_")}
        assert {*words} - of_name, f"{field.path}: {field.meaning!r} only repeats the name"


def test_operational_fields_are_those_of_the_recipe_class():
    found = {field.path for field in everything(recipe_fields("evaluate")) if field.operational}
    assert {"executor.threads", "models.judge.timeout_s", "resume.retry_failed", "statistics", "gates"} <= found
    assert not found & {"seed", "data.path", "models.judge", "data.allow_overlap"}


def test_the_defaults_of_a_role_stand_with_it():
    critic = next(field for field in everything(recipe_fields("simulate")) if field.path == "models.critic")
    assert "Defaults of this role: `sampling: {temperature: 1.1, max_tokens: 16}`." in critic.meaning
    assert [form.key for form in critic.sections] == ["backbone", "endpoint", "checkpoint", "scripted", "world"]


def test_kinds_of_a_section_are_looked_into_on_request():
    fields = recipe_fields("simulate")

    def by_path(prefix: str) -> dict[str, str]:
        return {field.path: key for field, key in below(fields, prefix)}

    assert not [path for path in by_path("models") if path.startswith("models.critic.")]
    having = by_path("models.critic")
    assert having["models.critic.sampling.top_p"] == ""
    assert having["models.critic.dtype"] == "backbone or checkpoint"
    assert "models.critic.endpoint.serve" not in having
    assert by_path("models.critic.endpoint")["models.critic.endpoint.serve"] == "endpoint, and serve"


def test_entries_of_a_mapping_are_found_by_any_name():
    paths = [field.path for field, _ in below(recipe_fields("run"), "stages.mine.set")]
    assert paths == ["stages.NAME.set"]


def test_the_page_is_what_the_recipe_classes_say():
    done = subprocess.run(
        [sys.executable, ".ci/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_shipped_recipes_satisfy_the_schema(command):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema, which comes with ray, is not installed")
    schema = recipe_schema(command)
    check = jsonschema.validators.validator_for(schema)(schema)
    check.check_schema(schema)
    for recipe in shipped_recipes():
        if recipe.command == command:
            check.validate(yaml.safe_load(recipe.path.read_text(encoding="utf-8")))
            check.validate(load_any_recipe(recipe.name).recipe.resolved())
    assert not check.is_valid({"command": command, "seed": -1})


def test_fields_are_printed_and_given_as_json():
    shown = run("fields", "train-rl", "grpo.beta").stdout
    assert shown.startswith("grpo.beta: a number of at least 0; default 0.04\n    Weight of the KL term")
    rows = json.loads(run("fields", "simulate", "--json").stdout)
    by_name = {row["field"]: row for row in rows}
    assert by_name["seed"]["required"]
    assert by_name["concurrency.futures"]["operational"]
    assert by_name["critic.samples"]["default"] == 10  # a number, as in the recipe
    assert by_name["critic.preset"]["default"] == "rlff7"
    assert by_name["data.split"]["default"] is None
    assert not by_name["data.split"]["required"]


@pytest.mark.parametrize(
    ("words", "found", "hint"),
    [
        (("fields", "simulat"), "no recipes for the command 'simulat'", "simulate"),
        (("fields", "simulate", "models.critik"), "have no field 'models.critik'", "models.critic"),
        (("fields", "simulate", "critic.sample"), "'esckit recipes fields simulate critic' prints", "critic.samples"),
        (("schema",), "no command is named", "--out FOLDER"),
    ],
)
def test_what_is_not_there_is_one_clear_error(words, found, hint):
    error = run(*words).exception
    assert isinstance(error, ConfigError)
    assert found in str(error)
    assert hint in str(error)


def test_schemas_are_written_for_an_editor(tmp_path):
    out = tmp_path / "schemas"
    assert run("schema", "--out", str(out)).stdout.split() == [str(out / f"{name}.json") for name in RECIPES.names()]
    written = json.loads((out / "simulate.json").read_text())
    assert written == json.loads(run("schema", "simulate").stdout)
    assert written["$defs"]["ResolutionCritic"]["properties"]["samples"]["description"]
    (out / "predict.json").write_text("mine")
    refused = run("schema", "predict", "--out", str(out))
    assert isinstance(refused.exception, ConfigError)
    assert (out / "predict.json").read_text() == "mine"
    assert run("schema", "predict", "--out", str(out), "--force").exit_code == 0
    assert isinstance(run("schema", "--out", str(out / "predict.json")).exception, ConfigError)
