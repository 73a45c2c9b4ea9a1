"""`--dry-run` of every command: what a run would refuse ends it with 2, and it changes nothing."""

import json
import sys
from pathlib import Path

import pytest

from esckit.cli.app import main
from esckit.config.load import load_any_recipe
from esckit.records import write_json

SCRIPTED = {
    "search": "smoke/search_scripted",
    "simulate": "smoke/simulate_scripted",
    "predict": "smoke/predict_scripted",
    "evaluate": "smoke/evaluate_scripted",
}
RESPONSE = ("--set", "suites=[response]")


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return exit code, stdout and stderr of a dry run in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, *args: str) -> tuple[int, str, str]:
        argv = [command, SCRIPTED[command], *(RESPONSE if command == "evaluate" else ()), *args, "--dry-run", "--json"]
        monkeypatch.setattr(sys, "argv", ["esckit", *argv])
        with pytest.raises(SystemExit) as left:
            main()
        shown = capsys.readouterr()
        return int(left.value.code or 0), shown.out, shown.err

    return run


def own_run(folder: Path, command: str, **facts: object) -> str:
    """Write a run folder of a shipped recipe that holds nothing but its manifest."""
    folder.mkdir(parents=True)
    names = {"train-reward": "smoke/train_reward_scripted", "train-flow": "smoke/train_flow_tiny"}
    recipe = load_any_recipe(names.get(command) or SCRIPTED[command]).recipe.resolved() | facts
    manifest = {"schema": "esckit.manifest/1", "command": command, "recipe": recipe, "recipe_digest": "0"}
    write_json(folder / "manifest.json", {**manifest, "data": {"ids": [], "scheme": "files"}})
    return str(folder)


@pytest.mark.parametrize("command", ["search", "predict", "evaluate"])
def test_an_unknown_taxonomy_is_refused(planned, command: str) -> None:
    code, _, error = planned(command, "--set", "taxonomy=nonesuch")
    assert (code, "nonesuch" in error) == (2, True)


@pytest.mark.parametrize(
    ("command", "role", "trained"),
    [
        ("search", "strategist", "train-reward"),
        ("search", "strategist", "train-flow"),
        ("simulate", "supporter", "train-reward"),
        ("predict", "supporter", "train-reward"),
        ("predict", "strategist", "train-flow"),
        ("evaluate", "supporter", "train-reward"),
    ],
)
def test_a_checkpoint_that_cannot_play_its_role_is_refused(planned, command: str, role: str, trained: str) -> None:
    run = own_run(Path("runs/trained"), trained)
    code, out, error = planned(command, "--set", f"models.{role}={{checkpoint: {run}}}")
    assert (code, out) == (2, "")
    assert "runs/trained" in error


@pytest.mark.parametrize("command", SCRIPTED)
def test_a_folder_of_another_recipe_is_refused_after_the_plan(planned, command: str) -> None:
    out = own_run(Path("runs/mine"), command, seed=99)
    before = Path(out, "manifest.json").read_bytes()
    code, shown, error = planned(command, "--out", out)
    assert code == 2
    assert "belongs to another recipe: " in error
    assert json.loads(shown)
    assert [path.name for path in Path(out).iterdir()] == ["manifest.json"]
    assert Path(out, "manifest.json").read_bytes() == before


def test_a_used_default_folder_is_a_warning(planned) -> None:
    out = own_run(Path("runs/simulate-smoke-scripted"), "simulate", seed=99)
    code, shown, error = planned("simulate")
    assert (code, bool(json.loads(shown)["forecast"])) == (0, True)
    assert f"the run needs another folder (--out): {out} belongs to another recipe: seed differs" in error


@pytest.mark.parametrize("command", SCRIPTED)
def test_a_run_that_may_go_on_is_planned(planned, command: str) -> None:
    code, shown, _ = planned(command, "--out", "runs/new")
    assert code == 0
    assert json.loads(shown)
    assert not Path("runs").exists()
