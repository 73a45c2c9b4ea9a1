"""What `train-reward` and `train-rl` cannot train on: one clear message and exit code 2, and no run folder is left.

A training that diverged ends with the same code, and leaves what it had.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esckit.cli.app import main
from tests.flow.flow_runs import recipe as flow_recipe
from tests.flow.flow_runs import sparse_tree, write_trees
from tests.reward.reward_runs import reward_recipe, simulated

Refused = Callable[..., str]

OLD_RUNS = Path(__file__).resolve().parents[1] / "old_runs" / "runs"


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must be refused, and return its message.

    What is refused before there is a folder, a dry run refuses as well.
    """

    def attempt(*argv: str) -> str:
        monkeypatch.setattr(sys, "argv", ["esckit", *argv])
        with pytest.raises(SystemExit) as left:
            main()
        message = capsys.readouterr().err
        assert left.value.code == 2, message
        assert "Traceback" not in message
        return " ".join(message.split())

    def run(command: str, *args: str, leaves_nothing: bool = True) -> str:
        out = tmp_path / "run"
        message = attempt(command, *args, "--out", str(out))
        if leaves_nothing:
            assert not out.exists()
            assert attempt(command, *args, "--out", str(out), "--dry-run") == message
            assert not out.exists()
        return message

    return run


@pytest.fixture(scope="module")
def futures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("futures") / "simulate")


def write_recipe(folder: Path, *inputs: Path) -> str:
    (folder / "recipe.yaml").write_text(json.dumps(reward_recipe(*inputs).resolved()))
    return str(folder / "recipe.yaml")


def edit_manifest(folder: Path, place: tuple[str, ...], value: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    section = manifest
    for name in place[:-1]:
        section = section[name]
    section[place[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("recipe", "critic", "preset"), "ppdpp4"),
        (("recipe", "critic", "readout"), "expected"),
        (("prompts", "critic"), "critic_resolution/0123456789abcdef"),
    ],
    ids=["presets", "read-outs", "prompts"],
)
def test_futures_that_were_read_differently(
    refused: Refused, futures: Path, tmp_path: Path, place: tuple[str, ...], value: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(futures, other)
    edit_manifest(other, place, value)
    message = refused("train-reward", write_recipe(tmp_path, futures, other))
    assert "futures of another kind" in message
    assert value in message
    assert "None" not in message


def test_too_few_futures(refused: Refused, futures: Path, tmp_path: Path) -> None:
    message = refused("train-reward", write_recipe(tmp_path, futures), "--set", "dev.share=0.001")
    assert "no scored future in the dev part" in message


def test_too_few_contexts(refused: Refused) -> None:
    args = ("--set", "data.limit=1", "--set", "contexts.per_dialogue=1", "--set", "dev.share=0")
    assert "1 contexts to train on" in refused("train-rl", "smoke/train_rl_lexicon", *args)


@pytest.mark.parametrize("command", ["train-reward", "train-rl"])
def test_a_step_that_the_processes_cannot_share(
    refused: Refused, futures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    recipe = write_recipe(tmp_path, futures) if command == "train-reward" else "smoke/train_rl_lexicon"
    assert "over 3 processes" in refused(command, recipe)


def test_a_reward_model_of_another_prompt_version(refused: Refused, tmp_path: Path) -> None:
    reward = shutil.copytree(OLD_RUNS / "reward-classifier", tmp_path / "reward")
    metadata = reward / "checkpoint" / "reward.json"
    known = json.loads(metadata.read_text())
    other = {**known["template"], "prompt": "reward_model/0123456789abcdef"}
    metadata.write_text(json.dumps({**known, "template": other}))
    message = refused("train-rl", "smoke/train_rl_scripted", "--set", f"models.reward.checkpoint={reward}")
    assert "was trained with prompt reward_model/0123456789abcdef" in message


def test_a_policy_whose_chat_template_training_cannot_use(refused: Refused, tmp_path: Path) -> None:
    from esckit.models.in_memory import build

    model, tokenizer = build("tiny-random")
    tokenizer.chat_template = (
        "{% for message in messages %}[{{ message['content'].split('</think>')[-1] }}]{% endfor %}"
    )
    model.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    args = ("--set", f"models.policy.backbone={tmp_path / 'policy'}")
    message = refused("train-rl", "smoke/train_rl_lexicon", *args, leaves_nothing=False)
    assert "a chat template that changes answers" in message


@pytest.mark.parametrize("trainer", ["grpo", "dpo", "reward", "flow"])
def test_an_adapter_on_layers_that_the_model_lacks(
    refused: Refused, futures: Path, tmp_path: Path, trainer: str
) -> None:
    trees = write_trees(tmp_path, [sparse_tree("a", "train", 1), sparse_tree("b", "valid", 2)])
    (tmp_path / "flow.yaml").write_text(json.dumps(flow_recipe(trees).resolved()))
    named = {
        "grpo": ("train-rl", "smoke/train_rl_lexicon", "lora.targets=[q_proj,nope]"),
        "dpo": ("train-rl", "smoke/train_rl_dpo", "lora.targets=[self_attn]", f"inputs=[{futures}]"),
        "reward": (
            "train-reward",
            write_recipe(tmp_path, futures),
            "model.lora.targets=[nope]",
            "model.trainable=lora",
        ),
        "flow": ("train-flow", str(tmp_path / "flow.yaml"), "lora.targets=[nope]"),
    }
    command, recipe, *settings = named[trainer]
    options = [part for setting in settings for part in ("--set", setting)]
    message = refused(command, recipe, *options, leaves_nothing=False)
    # A module that holds layers is none that an adapter could lie on.
    assert f"lora.targets: no layer {'self_attn' if trainer == 'dpo' else 'nope'}" in message
    assert "q_proj" in message.partition("expected")[2]


@pytest.mark.parametrize("command", ["train-rl", "train-reward", "train-flow"])
def test_a_tracker_that_is_not_there(refused: Refused, futures: Path, tmp_path: Path, command: str) -> None:
    trees = write_trees(tmp_path, [sparse_tree("a", "train", 1), sparse_tree("b", "valid", 2)])
    (tmp_path / "flow.yaml").write_text(json.dumps(flow_recipe(trees).resolved()))
    recipes = {
        "train-rl": "smoke/train_rl_lexicon",
        "train-reward": write_recipe(tmp_path, futures),
        "train-flow": str(tmp_path / "flow.yaml"),
    }
    message = refused(command, recipes[command], "--set", "trackers=[tensorbord]", leaves_nothing=False)
    assert "trackers: tensorbord" in message


@pytest.mark.parametrize(
    ("extra", "command", "options"),
    [
        ("wandb", "train-reward", ("--set", "trackers=[wandb]")),
        ("tensorboard", "train-rl", ("--set", "trackers=[tensorboard]")),
        ("vllm", "train-rl", ("--set", "grpo.engine=vllm")),
        ("deepspeed", "train-rl", ("--accelerate", "zero2")),
        ("deepspeed", "train-reward", ("--accelerate", "zero3")),
    ],
)
def test_an_extra_that_is_missing_is_named_with_its_command(
    refused: Refused,
    futures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extra: str,
    command: str,
    options: tuple[str, ...],
) -> None:
    monkeypatch.setitem(sys.modules, extra, None)  # as if it were not installed
    recipe = "smoke/train_rl_lexicon" if command == "train-rl" else write_recipe(tmp_path, futures)
    message = refused(command, recipe, *options, leaves_nothing=False)
    assert f"needs {extra}, which is not installed" in message
    assert f"pip install 'esckit[{extra}]'" in message


def test_an_adapter_on_no_layer(refused: Refused, futures: Path, tmp_path: Path) -> None:
    options = ("--set", "model.trainable=lora", "--set", "model.lora.targets=[]")
    message = refused("train-reward", write_recipe(tmp_path, futures), *options, leaves_nothing=False)
    assert "no layer is named" in message


@pytest.mark.parametrize("command", ["train-rl", "train-reward"])
def test_a_training_that_diverges(refused: Refused, futures: Path, tmp_path: Path, command: str) -> None:
    bad = {
        "train-rl": ("smoke/train_rl_lexicon", "--set", "reward.kind=tests.rl.rl_runs:bad_reward"),
        "train-reward": (write_recipe(tmp_path, futures), "--set", "optim.lr=1.0e+30"),
    }
    message = refused(command, *bad[command], leaves_nothing=False)
    assert "training diverged at step" in message
    assert "diverged.json holds the last logs" in message
    told = json.loads((tmp_path / "run/diverged.json").read_text())
    assert told["input_ids"]
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "stopped"
