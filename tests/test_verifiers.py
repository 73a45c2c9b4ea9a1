"""The environment for the library verifiers, played by that library: its loader, its command, its records.

It runs where ``ESCKIT_VERIFIERS`` names a Python that has the library beside esckit (``make test-verifiers``).
"""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.models.fake_server import Canned, FakeServer, completion, refusal
from tests.shell import ROOT, esckit

pytestmark = pytest.mark.timeout(1200)  # each test starts the library's command, which imports much

REPLIES = (
    "You are not alone, and your feelings count.",
    "When did you first notice it, and how was it then?",
    "It makes sense that it hurts, and anyone would feel it.",
    "What goes through your mind in those moments?",
    "We could plan one small step together, the easiest one first.",
)


class Speakers(FakeServer):
    """A policy that says one thing after the other, and a seeker; each of them can fail at a turn of its own."""

    seeker_fails = policy_fails = policy_blank = 99

    def _answer(self, path: str, body: dict[str, Any]) -> Canned:
        if path == "/v1/models":
            return super()._answer(path, body)
        said = sum(message["role"] == "assistant" for message in body["messages"]) + 1
        if body["model"] == "seeker":
            return refusal("no such person") if said >= self.seeker_fails else completion("It is still hard.")
        if said >= self.policy_fails:
            return refusal("no such policy")
        text = "<response></response>" if said >= self.policy_blank else REPLIES[(said - 1) % len(REPLIES)]
        answer = completion(text)
        return replace(answer, body={**answer.body, "id": "x", "created": 0, "model": "policy"})  # as openai's do


@pytest.fixture
def server() -> Iterator[Speakers]:
    with Speakers().running() as running:
        yield running


def evaluated(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What ``vf-eval esckit`` does."""
    if "ESCKIT_VERIFIERS" not in os.environ:
        pytest.skip("ESCKIT_VERIFIERS names no Python with verifiers (make test-verifiers)")
    program = Path(os.environ["ESCKIT_VERIFIERS"]).absolute().with_name("vf-eval")
    fixed = ["-m", "policy", "--client.api-key-var", "NO_KEY", "--no-push", "--no-rich", "--output-dir", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [program, "esckit", *fixed, "--run.name", "x", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def episodes(*words: str, cwd: Path) -> list[dict[str, Any]]:
    done = evaluated(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr + done.stdout
    return [json.loads(line) for line in (cwd / "out/x/traces.jsonl").read_text().splitlines()]


def test_rewards_are_those_of_an_evaluation(server: Speakers, tmp_path: Path) -> None:
    client = ("--client.base-url", server.url, "--env.taskset.changes", "data.limit=12")
    played = {each["task"]["key"]: each for each in episodes(*client, cwd=tmp_path)}
    bound = {"endpoint": {"base_url": server.url}, "model": "policy"}
    sets = ("data.limit=12", f"models.supporter={json.dumps(bound)}")
    done = esckit(
        "evaluate", "practice/evaluate_rl", "--out", "run", *(f"--set={change}" for change in sets), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    ours = {each["id"]: each for each in map(json.loads, (tmp_path / "run/episodes.jsonl").read_text().splitlines())}
    assert played.keys() == ours.keys()
    rewards = {}
    for name, episode in played.items():
        assert episode["ok"]
        (trace,) = episode["traces"]
        turns = ours[name]["turns"]
        said = [node["message"]["content"] for node in trace["nodes"] if node["message"]["role"] != "system"]
        theirs = [text for turn in turns for text in (turn["supporter"]["response"], turn["seeker"])]
        assert said == [ours[name]["scenario"]["situation"], *theirs[:-1]]
        rewards[name] = trace["rewards"]["success"]["score"]
        assert rewards[name] == float(turns[-1]["readings"]["rlff7"]["value"] > 0.5)
    assert {0.0, 1.0} == set(rewards.values())


def test_progress_is_measured_from_the_seekers_first_words(server: Speakers, tmp_path: Path) -> None:
    taskset = (
        "--env.taskset.changes",
        "data.limit=3",
        "settings.dialogue.max_turns=1",
        "--env.taskset.reward",
        "progress",
    )
    found = episodes("--client.base-url", server.url, *taskset, "-r", "2", cwd=tmp_path)
    assert len(found) == 6
    for episode in found:
        assert -2 <= episode["traces"][0]["rewards"]["progress"]["score"] <= 2


def test_a_policy_that_says_nothing_has_failed_the_seeker(server: Speakers, tmp_path: Path) -> None:
    server.policy_blank = 2
    taskset = ("--env.taskset.changes", "data.limit=1", "--env.taskset.reward", "progress")
    (episode,) = episodes("--client.base-url", server.url, *taskset, cwd=tmp_path)
    assert episode["ok"]
    assert episode["traces"][0]["rewards"]["progress"]["score"] <= 0


@pytest.mark.parametrize(("who", "at"), [("seeker", 3), ("policy", 2)])  # the seeker has spoken before turn 1
def test_a_rollout_in_which_somebody_fails_has_no_reward(who: str, at: int, server: Speakers, tmp_path: Path) -> None:
    setattr(server, f"{who}_fails", at)
    seeker = json.dumps({"endpoint": {"base_url": server.url}, "model": "seeker"})
    changes = ("--env.taskset.changes", "data.limit=1", f"models.seeker={seeker}")
    (episode,) = episodes("--client.base-url", server.url, *changes, cwd=tmp_path)
    assert not episode["ok"]
    (trace,) = episode["traces"]
    assert trace["errors"]
    assert not trace.get("rewards")
    if who == "seeker":
        assert "the seeker failed at turn 2" in episode["errors"][0]["message"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--env.taskset.profile", "shy"), "'guarded'"),
        (("--env.taskset.recipe", "practice/evaluate"), "strategist"),
        (("--env.taskset.recipe", "smoke/simulate"), "'simulate'"),
        (("--env.taskset.changes", "models.seeker.planet=default"), "planet"),
    ],
)
def test_a_wrong_option_is_one_message(words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    done = evaluated(*words, cwd=tmp_path)
    assert done.returncode != 0
    printed = " ".join((done.stderr + done.stdout).split())
    assert told in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()
