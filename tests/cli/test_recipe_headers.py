"""What a recipe's header says to type is typed; and the papers' trainings are shared by one to eight devices."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from esckit.cli.app import main
from esckit.config.load import load_any_recipe
from esckit.registry import shipped_dir
from esckit.reward import run as train_reward
from esckit.reward.recipe import TrainRewardRecipe
from esckit.rl import run as train_rl
from esckit.rl.recipe import TrainRlRecipe
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
        "search": ["search", "smoke/search_scripted"],
        "train-reward-rlff-rrhf": [*reward, "--set", "objective.kind=pairwise"],
        "train-reward": reward,
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
                (folder / run).symlink_to(source)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def test_headers_hold_commands() -> None:
    assert ("rlff/train_rl", "train-rl rlff/train_rl --accelerate zero3") in commands()
    assert len(commands()) > 8


@pytest.mark.parametrize(("recipe", "command"), commands())
def test_a_headers_command_runs_dry(
    here: Path, recipe: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command)
    if "--out" in words:  # its own run stands there already, for recipes that go on from it
        del words[words.index("--out") : words.index("--out") + 2]
    words += ["--out", "elsewhere", *(["--dry-run"] if "--dry-run" not in words else [])]
    monkeypatch.setattr(sys, "argv", ["esckit", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "recipe", [f"{path.parent.name}/{path.stem}" for path in sorted(RECIPES.glob("rlff/train_*.yaml"))]
)
def test_a_papers_training_is_shared_by_eight_devices(here: Path, recipe: str) -> None:
    n_processes = 8  # and so by 2 and by 4
    loaded = load_any_recipe(recipe).recipe
    if isinstance(loaded, TrainRewardRecipe):
        planned = train_reward.plan(loaded, n_processes=n_processes)["steps_at_most"]
        assert planned == train_reward.plan(loaded, n_processes=1)["steps_at_most"]
    else:
        assert isinstance(loaded, TrainRlRecipe)
        assert train_rl.plan(loaded, n_processes=n_processes)["steps_at_most"] > 0
