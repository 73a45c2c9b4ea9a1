"""What a policy's run is known by: its prompts, its inputs, and the dialogues that come with them."""

import json
from pathlib import Path

import pytest

from esckit.errors import ConfigError
from esckit.prompts.prompt import load_prompt
from esckit.rl.rewards import check_reward
from esckit.rl.rows import collect
from esckit.rl.run import run
from tests.reward.reward_runs import simulated
from tests.rl.rl_runs import StopAt, recipe


def test_every_prompt_of_an_online_reward_is_known(tmp_path: Path) -> None:
    models = {role: {"scripted": role} for role in ("seeker", "critic", "supporter")}
    online = recipe(reward={"kind": "online"}, models=models, online={"critic": {"readout": "expected"}})
    found = check_reward(online)
    assert found["seeker"] == load_prompt("seeker").identity
    assert set(found) == {"supporter", "seeker", "critic", "critic_letters"}
    untrained = recipe(reward={"kind": "untrained"}, models={"reward": {"backbone": "tiny-random"}})
    assert check_reward(untrained) == {"reward_model": load_prompt("reward_model").identity}
    assert check_reward(recipe()) == {}


def test_a_run_does_not_go_on_with_another_prompt_of_its_online_seeker(tmp_path: Path) -> None:
    prompt = tmp_path / "mine.yaml"
    shipped = load_prompt("seeker").model_dump(mode="json")
    prompt.write_text(json.dumps(shipped | {"name": "mine"}))
    ours = recipe(
        reward={"kind": "online"},
        models={role: {"scripted": role} for role in ("seeker", "critic", "supporter")},
        online={"horizon": 1, "critic": {"readout": "expected"}, "prompts": {"seeker": str(prompt)}},
        monitor={"dev_every": None},
    )
    with pytest.raises(KeyboardInterrupt):
        run(ours, out=tmp_path / "run", progress=StopAt(1))
    prompt.write_text(json.dumps(shipped | {"name": "mine", "version": 2}))
    with pytest.raises(ConfigError, match="other inputs"):
        run(ours, out=tmp_path / "run")


def test_a_policy_from_futures_says_whose_dialogues_it_inherits(tmp_path: Path) -> None:
    futures = simulated(tmp_path / "futures")
    material = collect(recipe(algorithm="dpo", inputs=(str(futures),), data=None, monitor={"dev_every": None}))
    assert material.facts["inherited_ids"] == list(material.dialogue_ids)
    assert material.facts["simulation"]["preset"] == "rlff7"
