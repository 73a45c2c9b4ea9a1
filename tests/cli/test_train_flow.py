"""`esckit train-flow` through the shell, behind `esckit search`."""

import json
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esckit.cli.app import app
from esckit.config.load import load_recipe
from esckit.errors import ConfigError, DataError
from esckit.flow.recipe import TrainFlowRecipe
from esckit.flow.run import run
from tests.flow.flow_runs import recipe, rows, sparse_tree, write_trees
from tests.shell import started

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


@pytest.mark.smoke
def test_search_then_train_flow_from_the_shipped_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    invoke("--quiet", "search", "smoke/search_scripted", "--json")
    planned = json.loads(invoke("train-flow", "smoke/train_flow_tiny", "--dry-run", "--json"))
    assert planned["train"]["paths"] > 0
    assert not Path("runs/train-flow-smoke-tiny").exists()
    trained = json.loads(invoke("--quiet", "train-flow", "smoke/train_flow_tiny", "--json"))
    assert trained["out"] == "runs/train-flow-smoke-tiny"
    assert trained["material"].items() <= planned.items()
    assert Path("runs/train-flow-smoke-tiny/checkpoint/flow.json").is_file()
    shown = invoke("--quiet", "train-flow", "smoke/train_flow_tiny")
    assert "best update" in shown
    invoke("report", "runs/train-flow-smoke-tiny")
    page = Path("runs/train-flow-smoke-tiny/report.md").read_text()
    losses = [row["train/loss"] for row in rows(Path("runs/train-flow-smoke-tiny")) if "train/loss" in row]
    drawn = [f"| train | {update} | {loss:.2f} |" for update, loss in enumerate(losses, start=1)]
    assert "\n".join(["| curve | update | loss |", "|---|---|---|"]) in page
    assert "\n".join(drawn) in page
    assert "- **model**: backbone tiny-random, trainable lora" in page
    assert "- **data**: runs/search-smoke-scripted · split train, valid" in page


def test_labels_of_no_taxonomy_are_not_called_missing(tmp_path: Path) -> None:
    said = [("user", None), ("assistant", "Asking")]
    messages = [{"role": role, "content": "So.", **({"strategy": label} if label else {})} for role, label in said]
    lines = [{"messages": [{"role": "user", "content": f"Number {n}."}, *messages]} for n in range(30)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    gold = f"--set=data.gold={{path: {tmp_path}/own.jsonl, scheme: ratio, ratios: [0.4, 0.3, 0.3]}}"
    with pytest.raises(DataError, match=r"\d+ strategy labels, and no taxonomy .* expected data\.gold\.taxonomy"):
        invoke("train-flow", "smoke/gold_bc", gold, "--dry-run")
    with pytest.raises(ConfigError, match=r"taxonomy \(--set\): unknown field; did you mean data\.gold\.taxonomy\?"):
        invoke("train-flow", "smoke/gold_bc", gold, "--set=taxonomy=own.yaml", "--dry-run")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_moment_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    file, out = tmp_path / "recipe.yaml", tmp_path / "killed"
    file.write_text(
        recipe(
            write_trees(tmp_path, [sparse_tree(f"s{n}", "valid" if n > 5 else "train", n) for n in range(8)]),
            optim={"epochs": 6, "paths_per_update": 8},
            checkpoints={"every": 1},
            executor={"threads": 1},
        ).model_dump_json()
    )
    for moment in ("metrics.jsonl", "states/checkpoint-3", "checkpoint/flow.json", "states/checkpoint-17"):
        process = started("--quiet", "train-flow", str(file), "--out", str(out), log=tmp_path / "log")
        while process.is_alive() and not (out / moment).exists():
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, moment
    settings = load_recipe(str(file), TrainFlowRecipe).recipe
    killed, whole = run(settings, out=out), run(settings, out=tmp_path / "whole")
    assert killed.summary == whole.summary
    assert rows(out) == rows(tmp_path / "whole")
    for part in ("heads.safetensors", "adapter/adapter_model.safetensors"):
        assert (out / "checkpoint" / part).read_bytes() == (tmp_path / "whole/checkpoint" / part).read_bytes()


@pytest.mark.slow
def test_gold_strategies_from_the_sample_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = invoke("--quiet", "train-flow", "smoke/gold_bc")
    assert "test majority" in shown
    assert "confusion" not in shown


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_differs_from_the_paper_as_its_name_says(name: str) -> None:
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
