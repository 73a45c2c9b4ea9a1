"""`esckit export` as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.export_runs import OLD
from tests.shell import ROOT, esckit

HEAVY = ("torch", "transformers", "numpy", "peft", "trl", "accelerate", "datasets")


def test_a_dry_run_writes_nothing_and_loads_no_torch(tmp_path: Path) -> None:
    words = ["export", str(OLD / "rl-grpo"), str(tmp_path / "out"), "--dry-run", "--json"]
    code = f"""
import sys
from esckit.cli.app import main
sys.argv = ["esckit", *{words!r}]
try:
    main()
except SystemExit as left:
    assert left.code == 0, left.code
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    assert done.stderr.splitlines()[-1] == "[]", done.stderr
    facts = json.loads(done.stdout)
    assert (facts["model"], facts["form"], facts["backbone"]) == ("policy", "AutoModelForCausalLM", "tiny-random")
    assert list(tmp_path.iterdir()) == []


def test_an_export_says_what_was_compared(tmp_path: Path) -> None:
    done = esckit("export", str(OLD / "reward-classifier"), str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["compared"] == 16
    assert facts["largest_difference"] <= 1e-5
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "README.md",
        "config.json",
        "esckit.json",
        "model.safetensors",
        "reward_template.json",
        "tokenizer.json",
    }


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--push", "me/model"), "--push where nobody can be asked"),
        (("--push", "not a name", "--yes"), "OWNER/NAME"),
        (("--yes",), "--yes without --push"),
        (("--public",), "--public without --push"),
        (("--adapter",), "built in memory"),
        (("--evaluation", str(OLD / "search")), "run of 'search'"),
    ],
)
def test_wrong_options_end_with_2_before_anything_is_written(
    words: tuple[str, ...], found: str, tmp_path: Path
) -> None:
    done = esckit("export", str(OLD / "rl-grpo"), str(tmp_path / "out"), *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert found in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_hub_that_cannot_be_reached_leaves_the_folder(tmp_path: Path) -> None:
    done = esckit("export", str(OLD / "rl-grpo"), str(tmp_path / "out"), "--push", "me/model", "--yes")
    assert done.returncode == 2
    assert "would upload" in done.stderr
    assert "(private)" in done.stderr
    assert "was written, but the hub did not take it" in done.stderr
    assert (tmp_path / "out" / "README.md").is_file()
