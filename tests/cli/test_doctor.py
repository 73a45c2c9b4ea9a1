"""`esckit doctor`: what is there, what is not, and the exit code; servers are asked as a run asks them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from esckit.cli import doctor
from tests.cli.test_servers import at
from tests.models.fake_server import FakeServer, refusal

RECIPE = "smoke/simulate_scripted"


def states(printed: str) -> dict[str, tuple[str, str]]:
    return {found["topic"]: (found["state"], found["found"]) for found in json.loads(printed)}


def test_a_whole_installation_has_no_problem(esckit) -> None:
    code, printed, _ = esckit("doctor", "--json")
    found = states(printed)
    assert code == 0, printed
    assert "cores, torch uses" in found["processor"][1]
    assert {"esckit", "versions", "extras", "memory", "disk", "models", "cache"} <= found.keys()


def but_for(name: str, version: str) -> Callable[[str], str | None]:
    """The installation as it is but for one library."""
    return lambda asked: version if asked == name else doctor.installed_version(asked)


def test_a_library_below_its_range_is_a_problem() -> None:
    (wrong,) = (found for found in doctor.installation(but_for("peft", "0.1")) if found.state == "problem")
    assert wrong.state == "problem"
    assert wrong.found.startswith("peft 0.1; esckit needs peft>=")
    assert str(wrong.mend).startswith("pip install 'peft>=")


def test_versions_that_the_lock_does_not_name_are_listed() -> None:
    noted = next(found for found in doctor.installation(but_for("regex", "999")) if found.topic == "versions")
    assert noted.state == "note"
    assert "regex 999 (lock: " in noted.found


def test_a_server_is_asked_as_a_run_asks_it(esckit, server: FakeServer) -> None:
    named = ("doctor", RECIPE, "--set", f"models.supporter={at(server)}", "--json")
    code, printed, _ = esckit(*named)
    assert code == 0, printed
    assert "answers; offers" in states(printed)[f"{RECIPE} supporter"][1]
    server.models = refusal("bad key", status=401)
    server.usual = refusal("bad key", status=401)
    code, printed, _ = esckit(*named)
    assert code == 1
    assert states(printed)[f"{RECIPE} supporter"][0] == "problem"


def test_what_a_recipe_names_and_is_not_here_is_told(esckit, tmp_path: Path) -> None:
    changes = ("--set", "models.seeker={endpoint: {serve: 'no-such-program --port {port}'}, model: m}")
    more = ("--set", f"models.critic={{backbone: {tmp_path}/nothing}}", "--set", "models.supporter={backbone: gpt2}")
    code, printed, _ = esckit("doctor", RECIPE, *changes, *more)
    assert code == 1
    assert "the run starts no-such-program, which is not installed here" in printed
    assert f"there is no folder '{tmp_path}/nothing'" in printed
    assert "esckit backbones fetch gpt2" in printed


def test_an_unknown_recipe_is_named(esckit) -> None:
    code, printed, _ = esckit("doctor", "rlff/simulat")
    assert code == 1
    assert "WRONG  rlff/simulat" in printed
    assert "Did you mean 'rlff/simulate'?" in printed


@pytest.mark.parametrize("recipe", ["rlff/train_sft", "rlff/train_rl", "rlff/train_reward", "aflow/train_flow"])
def test_the_model_of_a_training_is_looked_for(esckit, recipe: str) -> None:
    _, printed, _ = esckit("doctor", recipe)
    assert "is not on this machine" in printed
