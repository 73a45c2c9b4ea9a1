"""Who plays: checkpoints are known by their metadata, and play what they were trained for."""

from pathlib import Path

import pytest

from esckit.config.sections import CheckpointBinding, ScriptedBinding
from esckit.errors import CheckpointError, ConfigError
from esckit.models.checkpoint import kind_of
from esckit.roles.cast import role_prompt
from esckit.roles.pool import known_taxonomy, part_of
from esckit.strategies.taxonomy import load_taxonomy

FLOW, REWARD, POLICY = "flow.json", "reward.json", "policy.json"


def trained(folder: Path, metadata: str, **options: object) -> CheckpointBinding:
    """Return a binding to a run folder in which a checkpoint can be told, but not loaded."""
    (folder / "checkpoint").mkdir(exist_ok=True)
    (folder / "checkpoint" / metadata).touch()
    return CheckpointBinding(checkpoint=str(folder), **options)


@pytest.mark.parametrize(
    ("role", "metadata", "adapter", "part"),
    [
        ("strategist", FLOW, "off", "strategist"),
        ("strategist", POLICY, "off", "chat"),
        ("supporter", FLOW, "off", "chat"),
        ("supporter", FLOW, "on", "writer"),
        ("supporter", POLICY, "on", "chat"),
        ("critic", REWARD, "off", "scorer"),
        ("critic", POLICY, "off", "chat"),
        ("seeker", FLOW, "on", "chat"),
    ],
)
def test_a_checkpoint_plays_what_it_was_trained_for(
    tmp_path: Path, role: str, metadata: str, adapter: str, part: str
) -> None:
    assert part_of(role, trained(tmp_path, metadata, adapter=adapter)) == part


def test_any_other_model_is_a_chat_model_in_every_role() -> None:
    assert {part_of(role, ScriptedBinding(scripted="x")) for role in ("strategist", "supporter", "critic")} == {"chat"}


@pytest.mark.parametrize(("metadata", "part"), [(REWARD, "chat"), (POLICY, "strategist"), (FLOW, "scorer")])
def test_a_checkpoint_is_refused_where_it_cannot_play(tmp_path: Path, metadata: str, part: str) -> None:
    run = Path(trained(tmp_path, metadata).checkpoint)
    with pytest.raises(CheckpointError, match="cannot be used as a"):
        kind_of(run, part)


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        kind_of(tmp_path)


def test_a_strategist_has_a_prompt_for_its_taxonomy() -> None:
    names = {name: role_prompt("strategist", None, taxonomy=load_taxonomy(name)).name for name in ("aflow", "esconv")}
    assert names == {"aflow": "strategist", "esconv": "strategist_any"}
    with pytest.raises(ConfigError, match="taxonomy"):
        known_taxonomy(None)


def test_a_search_takes_no_supporter_prompt_of_simulations() -> None:
    assert role_prompt("supporter", "supporter_rlff").name == "supporter_rlff"
    with pytest.raises(ConfigError, match="as aflow supporter"):
        role_prompt("supporter", "supporter_rlff", kind="aflow supporter")
