"""`esckit train-sft` as a user runs it: through the command line, on every source, and told wrong things."""

import json
import sys
from pathlib import Path

import pytest

from esckit.cli.app import main
from tests.flow.flow_runs import sparse_tree, write_trees
from tests.reward.reward_runs import simulated
from tests.shell import esckit

TINY = ("train-sft", "smoke/train_sft_tiny")


def set_all(**fields: object) -> list[str]:
    return [word for name, value in fields.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]


@pytest.fixture(scope="module")
def futures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("futures") / "run")


@pytest.fixture
def trees(tmp_path: Path) -> Path:
    (tmp_path / "trees").mkdir()
    return write_trees(tmp_path / "trees", [sparse_tree(f"s{seed}", "train", seed) for seed in range(4)])


@pytest.mark.smoke
def test_the_tiny_recipe_trains_a_supporter_from_the_shell(tmp_path: Path) -> None:
    done = esckit(*TINY, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    facts = json.loads(done.stdout)
    assert (facts["out"], facts["source"]) == ("runs/train-sft-smoke-tiny", "corpus")
    assert (tmp_path / facts["out"] / "checkpoint/sft.json").is_file()
    again = esckit(*TINY, "--json", cwd=tmp_path)
    assert json.loads(again.stdout) == facts


def test_futures_and_trees_train_one_too(futures: Path, trees: Path, tmp_path: Path) -> None:
    sources = {
        "futures": set_all(inputs=f"[{futures}]", futures__keep="{rule: goal}", form="{reasoning: true}"),
        "trees": set_all(inputs=f"[{trees}]", dev__share=0),
    }
    for source, words in sources.items():
        out = tmp_path / f"of-{source}"
        given = [*set_all(source=source, data="null", optim__max_steps=1), *words]
        done = esckit(*TINY, *given, "--out", str(out))
        assert done.returncode == 0, done.stderr
        metadata = json.loads((out / "checkpoint/sft.json").read_text())
        assert (metadata["source"], bool(metadata["inputs"])) == (source, True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (set_all(form__reasoning="true"), ["no reply of this source has reasoning", "form.reasoning=false"]),
        (set_all(data__path="world:default/3/best", data__dataset="practice", data__scheme="null", data__split="null"),
         ["policies random, fixed, novice, rule, optimum"]),
        (set_all(model__backbone="tiny-randon"), ["tiny-randon", "tiny-random"]),
        (set_all(model__trainable="head"), ["model.trainable", "'lora' or 'full'"]),
        (set_all(source="trees"), ["source: trees needs inputs"]),
        (set_all(optim__batch_size=3, **{"executor.kind": "local"}), ["executor.kind"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_message(
    words: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for extra in ([], ["--dry-run"]):
        monkeypatch.setattr(sys, "argv", ["esckit", *TINY, *words, "--out", str(tmp_path / "run"), *extra])
        with pytest.raises(SystemExit) as left:
            main()
        message = capsys.readouterr().err
        assert left.value.code == 2, message
        assert all(text in " ".join(message.split()) for text in expected), message
        assert not (tmp_path / "run").exists()


def test_no_future_that_passes_is_told_with_the_command_that_helps(
    futures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = "{rule: threshold, delta: 0.99}"
    words = set_all(source="futures", data="null", inputs=f"[{futures}]", futures__keep=rule, form="{reasoning: true}")
    monkeypatch.setattr(sys, "argv", ["esckit", *TINY, *words, "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "no reply to train on (not good 30)" in capsys.readouterr().err


def test_processes_that_cannot_share_a_step_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    done = esckit(*TINY, "--dry-run", "--processes", "3")
    assert done.returncode == 2
    assert "4 examples (optim.batch_size) in a step over 3 processes" in done.stderr
