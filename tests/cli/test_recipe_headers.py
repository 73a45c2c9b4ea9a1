"""What a recipe's header says to type is typed; and trainings are planned for one, four and eight devices."""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from esckit.cli.app import main
from esckit.registry import shipped_dir
from tests.shell import esckit

RECIPES = shipped_dir("recipes")
_COMMAND = re.compile(r"esckit ((?:simulate|search|predict|evaluate|train-\w+) \w+/[^`)\n]*)")
_RUN = re.compile(r"runs/[\w-]+")


def header(recipe: Path) -> str:
    lines = recipe.read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") + "\n" for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")])


def commands() -> list[tuple[str, str]]:
    found = []
    for path in sorted(RECIPES.glob("*/*.yaml")):
        name = f"{path.parent.name}/{path.stem}"
        found += [(name, command.strip()) for command in _COMMAND.findall(header(path))]
    return found


@pytest.fixture(scope="module")
def place(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the corpora, and a run behind every name that a shipped recipe has for one."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "data").mkdir()
    (folder / "data/esconv").symlink_to(corpora / "esconv")
    (folder / "data/extes").symlink_to(shipped_dir("data") / "extes_sample.json")
    made = folder / "made"
    esconv = ["--set", f"data.path={folder / 'data/esconv'}", "--set", "data.scheme=hub", "--set", "data.limit=120"]
    reward = ["train-reward", "smoke/train_reward_scripted", "--set", f"inputs=[{made / 'futures'}]"]
    reward += ["--set", "optim.epochs=1", "--set", "model.trainable=head"]
    sources = {
        "simulate": ["simulate", "smoke/simulate_scripted", *esconv],
        "futures": ["simulate", "smoke/simulate_scripted"],
        "search-practice": ["search", "practice/search", "--set", "data.path=world:default/40"],
        "train-flow-practice": [
            "train-flow",
            "practice/train_flow",
            "--set",
            f"data.trees=[{made / 'search-practice'}]",
            "--set",
            "optim.epochs=1",
        ],
        "search": ["search", "smoke/search_scripted"],
        "train-reward-rlff-rrhf": [*reward, "--set", "objective.kind=pairwise"],
        "train-reward-practice-pairwise": [*reward, "--set", "objective.kind=pairwise"],
        "train-reward": reward,
        "train-sft-practice": [
            *("train-sft", "practice/train_sft", "--set", "data.path=world:default/40/novice"),
            *("--set", "optim.max_steps=1", "--set", "dev.max_examples=4"),
        ],
        "train-sft": [
            *("train-sft", "smoke/train_sft", "--set", "model.backbone=tiny-random", "--set", "optim.max_steps=1"),
            *("--set", "encoding.max_prompt_tokens=1536", "--set", "encoding.max_completion_tokens=300"),
        ],
        "train-rl": [
            "train-rl",
            "smoke/train_rl_lexicon",
            "--set",
            "optim.max_steps=1",
            "--set",
            "monitor.dev_every=null",
        ],
        "train-flow": ["train-flow", "smoke/train_flow_tiny", "--set", f"data.trees=[{made / 'search'}]"],
    }
    made.mkdir()
    for name, words in sources.items():
        done = esckit(*words, "--out", str(made / name))
        assert done.returncode == 0, done.stderr
    (folder / "runs").mkdir()
    for text in (path.read_text(encoding="utf-8") for path in RECIPES.glob("*/*.yaml")):
        for run in _RUN.findall(text):
            source = next((made / name for name in sources if f"{run}-".startswith(f"runs/{name}-")), None)
            if source is not None and not (folder / run).exists():
                shutil.copytree(source, folder / run, copy_function=os.link)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def skip_without_library(recipe: str) -> None:
    """Skip a recipe that needs a library which is an extra; `make test` installs it."""
    if "quantisation: nf4" in (RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"):
        pytest.importorskip("bitsandbytes")


def test_headers_hold_commands() -> None:
    assert ("rlff/train_rl", "train-rl rlff/train_rl --accelerate zero3") in commands()
    assert len(commands()) > 8


@pytest.mark.parametrize(("recipe", "command"), commands())
def test_a_headers_command_runs_dry(
    here: Path, recipe: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_without_library(recipe)
    words = shlex.split(command)
    if "--out" in words:  # its own run stands there already, for recipes that go on from it
        del words[words.index("--out") : words.index("--out") + 2]
    words += ["--out", "elsewhere", *(["--dry-run"] if "--dry-run" not in words else [])]
    monkeypatch.setattr(sys, "argv", ["esckit", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0, capsys.readouterr().err


SMALL = ("smoke/", "practice/train_reward_pairwise")
TRAININGS = {
    f"{path.parent.name}/{path.stem}": found[1]
    for path in sorted(RECIPES.glob("*/*.yaml"))
    if (found := re.search(r"^command: (train-\w+)$", path.read_text(encoding="utf-8"), re.MULTILINE))
}


@pytest.mark.parametrize("recipe", TRAININGS)
def test_memory_and_steps_are_planned_for_1_4_and_8_devices(
    here: Path, recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_without_library(recipe)
    totals, steps = [], []
    for n in (1, 4, 8):
        words = [TRAININGS[recipe], recipe, "--out", "elsewhere", "--dry-run", "--json", "--processes", str(n)]
        if recipe.startswith(("rlff/train_rl", "rlff/train_sft")) and "dpo" not in recipe:
            words += ["--set", "data.limit=60"]  # it takes a second to read the whole corpus
        words += ["--set", "model.init=null"] * (
            recipe == "aflow/train_flow_round1"
        )  # the run here is of another model
        monkeypatch.setattr(sys, "argv", ["esckit", *words])
        with pytest.raises(SystemExit) as left:
            main()
        shown = capsys.readouterr()
        if left.value.code == 2 and n > 1 and recipe.startswith(SMALL):  # a step too small to share
            assert "a number of processes that divides" in shown.err
            continue
        assert left.value.code == 0, shown.err
        plan = json.loads(shown.out)
        assert plan["processes"] == n
        assert plan["memory_per_device"]["total"] > plan["memory_per_device"]["weights"] > 0
        totals.append(plan["memory_per_device"]["total"])
        steps.append(plan["steps_at_most"])
    assert steps[0] > 0
    assert len(set(steps)) == 1  # a step is the same on any number of devices
    assert len(totals) == 3 or recipe.startswith(SMALL)
