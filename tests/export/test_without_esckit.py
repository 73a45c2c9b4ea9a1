"""Exports give the same numbers in plain transformers and peft, in a process that cannot import esckit."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from esckit.export.run import export, plan
from esckit.flow.run import run as train_flow
from esckit.models.chat import ChatFormat, merge_messages
from esckit.prompts.prompt import load_prompt
from esckit.reward.model import RewardModel
from esckit.reward.run import run as train_reward
from esckit.rl.run import run as train_rl
from esckit.roles.asking import as_chat
from esckit.strategies.taxonomy import load_taxonomy
from esckit.training.policy import load_merged
from esckit.types import Scenario, Turn
from tests.export.export_runs import OLD, REPLY, TURNS, Ask, process_without_esckit
from tests.flow.flow_runs import AFLOW, policy_of, some_trees, write_trees
from tests.flow.flow_runs import recipe as flow_recipe
from tests.reward.reward_runs import reward_recipe, simulated
from tests.rl.rl_runs import recipe as rl_recipe
from tests.tiny import tiny_folder

TALK = tuple(Turn(speaker=speaker, text=text) for speaker, text in TURNS)  # type: ignore[arg-type]
SCENARIO = Scenario(id="s", situation="I lost my job.", problem_type="work")


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    with process_without_esckit() as asked:
        yield asked


@pytest.fixture(scope="module")
def futures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("futures") / "simulate")


def exported(run: Path, folder: Path, **options: object) -> Path:
    found = export(plan(run, folder, **options))  # type: ignore[arg-type]
    assert found["largest_difference"] is None or found["largest_difference"] <= 1e-5
    return folder


# ---------------------------------------------------------------- reward models


def same_p(ask: Ask, run: Path, folder: Path) -> None:
    [expected] = RewardModel.load(run, dtype="float32", device="cpu").score([TALK], [REPLY])
    assert ask(exported(run, folder), "reward") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["reward-classifier", "reward-pairwise"])
def test_the_sigmoid_of_an_old_reward_model_is_its_p(ask: Ask, name: str, tmp_path: Path) -> None:
    same_p(ask, OLD / name, tmp_path / "reward")


@pytest.mark.slow
@pytest.mark.parametrize(("family", "trainable"), [("llama", "lora"), ("gpt2", "full"), ("gpt2", "head")])
def test_the_sigmoid_is_p_on_other_backbones(
    ask: Ask, family: str, trainable: str, futures: Path, tmp_path: Path
) -> None:
    backbone = tiny_folder(tmp_path / "backbone", family)  # type: ignore[arg-type]
    run = tmp_path / "run"
    train_reward(reward_recipe(futures, model={"backbone": str(backbone), "trainable": trainable}), out=run)
    same_p(ask, run, tmp_path / "reward")
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert (config["model_type"], len(config["id2label"])) == (family, 1)


# ---------------------------------------------------------------- policies


def same_log_p(ask: Ask, run: Path, folder: Path, *, adapter: bool = False) -> None:
    model, tokenizer = load_merged(run)
    chat = ChatFormat.of(tokenizer)
    opening = load_prompt("supporter_rlff").render()
    ids = list(chat.encode(merge_messages([*opening, *as_chat(TALK, speaking="supporter")])))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).tolist()
    found = ask(exported(run, folder, adapter=adapter), "policy")
    assert found["ids"] == ids
    assert found["log_p"] == pytest.approx(expected, abs=1e-5)
    assert found["ends"] == sorted(chat.stop_ids)


@pytest.mark.parametrize("name", ["rl-grpo", "rl-dpo"])
def test_an_old_policy_says_the_same(ask: Ask, name: str, tmp_path: Path) -> None:
    same_log_p(ask, OLD / name, tmp_path / "policy")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_policies_on_other_backbones_say_the_same(ask: Ask, family: str, tmp_path: Path) -> None:
    backbone = tiny_folder(tmp_path / "backbone", family)  # type: ignore[arg-type]
    train_rl(rl_recipe(models={"policy": {"backbone": str(backbone)}}), out=tmp_path / "run")
    same_log_p(ask, tmp_path / "run", tmp_path / "policy")
    same_log_p(ask, tmp_path / "run", tmp_path / "adapter", adapter=True)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(backbone)


def test_the_system_prompt_stands_in_config_and_card(tmp_path: Path) -> None:
    folder = exported(OLD / "rl-grpo", tmp_path / "policy")
    [opening] = load_prompt("supporter_rlff").render()
    assert json.loads((folder / "config.json").read_text())["esckit"]["system_prompt"] == opening.content
    assert opening.content in (folder / "README.md").read_text()


# ---------------------------------------------------------------- flow policies


def same_reading(ask: Ask, run: Path, folder: Path, taxonomy: str) -> None:
    reading = policy_of(run, load_taxonomy(taxonomy), dtype="float32", device="cpu").read(SCENARIO, TALK)
    pi, value = ask(exported(run, folder), "flow")
    assert list(pi) == list(load_taxonomy(taxonomy).names)
    assert list(pi.values()) == pytest.approx(reading.probabilities, abs=1e-5)
    assert list(value.values()) == pytest.approx(reading.values, rel=1e-5)


@pytest.mark.parametrize(("name", "taxonomy"), [("flow", "aflow"), ("flow-bc", "esconv")])
def test_an_old_flow_policy_reads_the_same(ask: Ask, name: str, taxonomy: str, tmp_path: Path) -> None:
    same_reading(ask, OLD / name, tmp_path / "flow", taxonomy)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [{}, {"mode": "prefix", "max_prefix_tokens": 64}])
def test_a_flow_policy_on_llama_reads_the_same(ask: Ask, tmp_path: Path, cut: dict[str, object]) -> None:
    backbone = tiny_folder(tmp_path / "backbone", "llama")
    trees = write_trees(tmp_path, some_trees())
    train_flow(
        flow_recipe(trees, model={"backbone": str(backbone)}, encoding={"strategy_tags": True, **cut}),
        out=tmp_path / "run",
    )
    same_reading(ask, tmp_path / "run", tmp_path / "flow", AFLOW.name)
