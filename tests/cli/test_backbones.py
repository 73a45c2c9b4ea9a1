import json

from typer.testing import CliRunner

from esckit.cli.app import app
from esckit.errors import ConfigError
from esckit.models.backbones import load_backbones


def run(*args: str):
    return CliRunner().invoke(app, ["backbones", *args])


def test_list_names_all_with_licence():
    shown = run("list")
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in load_backbones())
    rows = json.loads(run("list", "--json").stdout)
    assert [row["name"] for row in rows] == list(load_backbones())


def test_show_says_what_is_known():
    facts = json.loads(run("show", "smollm2-135m-instruct", "--json").stdout)
    entry = load_backbones()["smollm2-135m-instruct"]
    assert (facts["name"], facts["licence"], facts["context"]) == (entry.name, entry.licence, entry.context)
    assert entry.licence in run("show", "smollm2-135m-instruct").stdout


def test_unknown_backbones_and_folders_without_model_are_refused(tmp_path):
    unknown = run("show", "smollm2-135m-instruc").exception
    assert isinstance(unknown, ConfigError)
    assert "smollm2-135m-instruct" in (unknown.hint or "")
    assert isinstance(run("show", str(tmp_path)).exception, ConfigError)


def test_what_is_built_in_memory_cannot_be_fetched():
    assert isinstance(run("fetch", "tiny-random").exception, ConfigError)
