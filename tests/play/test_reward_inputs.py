"""Futures of several runs: what they must have in common, and what is only said."""

import json
from pathlib import Path

import pytest

from esckit.play.futures import read_inputs
from tests.reward.reward_runs import simulated


def test_another_prompt_of_the_seeker_is_said_and_not_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = [str(simulated(tmp_path / name, seed=seed)) for name, seed in (("a", 7), ("b", 8))]
    read_inputs(folders)
    assert not caplog.records
    manifest = tmp_path / "b/manifest.json"
    facts = json.loads(manifest.read_text())
    facts["prompts"]["seeker"] = "mine/0123456789abcdef"
    manifest.write_text(json.dumps(facts))
    assert len(read_inputs(folders).futures) == 60
    (record,) = caplog.records
    assert "different prompts of the seeker: mine/0123456789abcdef, seeker/" in record.message
