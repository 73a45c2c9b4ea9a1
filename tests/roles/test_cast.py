"""Who plays: checkpoints are known by their metadata, and play what they were trained for."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from esckit.config.sections import (
    CheckpointBinding,
    EndpointBinding,
    ScriptedBinding,
    StrategistCheckpoint,
    SupporterCheckpoint,
)
from esckit.errors import CheckpointError, ConfigError
from esckit.models.checkpoint import kind_of
from esckit.prompts.prompt import load_prompt
from esckit.records import write_json
from esckit.roles.cast import Casting, role_prompt
from esckit.roles.pool import ModelPool, checkpoint_ids, known_taxonomy, part_of, require_checkpoints
from esckit.strategies.taxonomy import load_taxonomy
from esckit.training.policy import PolicyMetadata

FLOW, REWARD, POLICY = "flow.json", "reward.json", "policy.json"


def trained(folder: Path, metadata: str) -> str:
    """Return a run folder whose checkpoint has a kind, but cannot be loaded."""
    (folder / "checkpoint").mkdir(exist_ok=True)
    (folder / "checkpoint" / metadata).touch()
    return str(folder)


@pytest.mark.parametrize(
    ("role", "metadata", "binding", "options", "part"),
    [
        ("strategist", FLOW, StrategistCheckpoint, {}, "strategist"),
        ("strategist", POLICY, StrategistCheckpoint, {}, "chat"),
        ("supporter", FLOW, SupporterCheckpoint, {"adapter": "off"}, "chat"),
        ("supporter", FLOW, SupporterCheckpoint, {"adapter": "on"}, "writer"),
        ("supporter", POLICY, SupporterCheckpoint, {"adapter": "on"}, "chat"),
        ("critic", REWARD, CheckpointBinding, {}, "scorer"),
        ("critic", POLICY, CheckpointBinding, {}, "chat"),
        ("seeker", FLOW, CheckpointBinding, {}, "chat"),
    ],
)
def test_a_checkpoint_plays_what_it_was_trained_for(
    tmp_path: Path, role: str, metadata: str, binding: type[CheckpointBinding], options: dict[str, str], part: str
) -> None:
    assert part_of(role, binding(checkpoint=trained(tmp_path, metadata), **options)) == part


def test_any_other_model_is_a_chat_model_in_every_role() -> None:
    assert {part_of(role, ScriptedBinding(scripted="x")) for role in ("strategist", "supporter", "critic")} == {"chat"}


@pytest.mark.parametrize(("metadata", "part"), [(REWARD, "chat"), (POLICY, "strategist"), (FLOW, "scorer")])
def test_a_checkpoint_is_refused_where_it_cannot_play(tmp_path: Path, metadata: str, part: str) -> None:
    run = Path(trained(tmp_path, metadata))
    with pytest.raises(CheckpointError, match="cannot be used as a"):
        kind_of(run, part)


def test_a_servers_policy_is_known_by_its_run(tmp_path: Path) -> None:
    run = trained(tmp_path, POLICY)
    manifest = {"schema": "esckit.manifest/1", "command": "train-rl", "recipe": {}, "recipe_digest": "d"}
    write_json(tmp_path / "manifest.json", {**manifest, "status": "complete"})
    served = EndpointBinding(endpoint="local", model="policy", checkpoint=run)
    assert part_of("supporter", served) == "chat"
    require_checkpoints({"supporter": served})
    assert checkpoint_ids([served]) == {run: "d of None, complete"}


@pytest.mark.parametrize(("role", "metadata"), [("strategist", FLOW), ("critic", REWARD)])
def test_a_server_cannot_play_what_is_read_by_heads(tmp_path: Path, role: str, metadata: str) -> None:
    served = EndpointBinding(endpoint="local", model="x", checkpoint=trained(tmp_path, metadata))
    with pytest.raises(CheckpointError, match="read by heads of its own"):
        require_checkpoints({role: served})


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        kind_of(tmp_path)


def test_a_supporter_warns_once_of_a_prompt_that_it_was_not_trained_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learnt = load_prompt("supporter_practice").identity
    policy = PolicyMetadata(
        backbone="tiny-random", algorithm="grpo", prompt=learnt, reward={}, dialogue_ids=(), dev_ids=(),
        selected_by="last", step=1,
    )  # fmt: skip
    run = trained(tmp_path, POLICY)
    write_json(tmp_path / "checkpoint" / POLICY, policy.model_dump())
    pool = cast(ModelPool, SimpleNamespace(voice=lambda *_, **__: None))
    bindings = (SupporterCheckpoint(checkpoint=run), EndpointBinding(endpoint="local", model="x", checkpoint=run))
    for prompt in ("supporter_practice", "supporter_rlff"):
        for binding in bindings:
            Casting(pool, {"supporter": binding}, {"supporter": prompt}, max_attempts=1).supporter()
    (warning,) = caplog.messages
    assert f"was trained with the prompt {learnt}, and answers supporter_rlff/" in warning


def test_a_strategist_has_a_prompt_for_its_taxonomy() -> None:
    names = {name: role_prompt("strategist", None, taxonomy=load_taxonomy(name)).name for name in ("aflow", "esconv")}
    assert names == {"aflow": "strategist", "esconv": "strategist_any"}
    with pytest.raises(ConfigError, match="taxonomy"):
        known_taxonomy(None)


def test_a_search_takes_no_supporter_prompt_of_simulations() -> None:
    assert role_prompt("supporter", "supporter_rlff").name == "supporter_rlff"
    with pytest.raises(ConfigError, match="as aflow supporter"):
        role_prompt("supporter", "supporter_rlff", kind="aflow supporter")


def test_aflows_base_scores_are_asked_of_its_taxonomy_alone() -> None:
    for name in (None, "strategist"):
        assert role_prompt("strategist", name, taxonomy=load_taxonomy("aflow")).name == "strategist"
        assert role_prompt("strategist", name, taxonomy=load_taxonomy("cso")).name == "strategist_any"
