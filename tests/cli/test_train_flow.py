"""`esckit train-flow` through the shell, behind `esckit search`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esckit.cli.app import app
from esckit.config.load import load_recipe
from esckit.config.train_flow import TrainFlowRecipe

SHELL = CliRunner()
ABLATIONS = {
    "no_flow": ("objective.name", "kl.weight"),
    "no_process": ("rank.weight",),
    "no_search": ("data.trees",),
    "lambda": ("objective.subtb_lambda",),
    "tb": ("objective.name",),
    "db": ("objective.name",),
    "no_boundary": ("objective.terminal_boundary",),
    "eps": ("objective.flow_eps",),
}


def invoke(*arguments: str) -> str:
    result = SHELL.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def flat(recipe: TrainFlowRecipe) -> dict[str, object]:
    return {
        f"{section}.{field}": value
        for section, fields in recipe.resolved().items()
        if isinstance(fields, dict)
        for field, value in fields.items()
    }


def test_search_then_train_flow_from_the_shipped_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    invoke("--quiet", "search", "smoke/search_scripted", "--json")
    planned = json.loads(invoke("train-flow", "smoke/train_flow_tiny", "--dry-run", "--json"))
    assert planned["train"]["paths"] > 0
    assert not Path("runs/train-flow-smoke-tiny").exists()
    trained = json.loads(invoke("--quiet", "train-flow", "smoke/train_flow_tiny", "--json"))
    assert trained["out"] == "runs/train-flow-smoke-tiny"
    assert trained["material"] == planned
    assert Path("runs/train-flow-smoke-tiny/checkpoint/flow.json").is_file()
    shown = invoke("--quiet", "train-flow", "smoke/train_flow_tiny")
    assert "best update" in shown


def test_gold_strategies_from_the_sample_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = invoke("--quiet", "train-flow", "smoke/gold_bc")
    assert "test majority" in shown
    assert "confusion" not in shown


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_differs_from_the_paper_in_what_it_is_named_for(name: str) -> None:
    paper = flat(load_recipe("aflow/train_flow", TrainFlowRecipe).recipe)
    ablation = flat(load_recipe(f"aflow/ablation_{name}", TrainFlowRecipe).recipe)
    assert tuple(field for field in paper if paper[field] != ablation[field]) == ABLATIONS[name]


def test_the_papers_recipe_is_the_recipe_class(tmp_path: Path) -> None:
    paper = load_recipe("aflow/train_flow", TrainFlowRecipe).recipe
    plain = TrainFlowRecipe.model_validate(
        {
            "command": "train-flow",
            "seed": 1,
            "data": {"trees": ["runs/search-aflow"]},
            "model": {"backbone": "qwen2.5-7b-instruct"},
        }
    )
    assert paper == plain
