"""A taxonomy of a user's own, from the corpus to the evaluation, through the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from esckit.cli.app import app
from esckit.errors import ConfigError, DataError
from esckit.records import read_records
from esckit.strategies.taxonomy import kept_taxonomy, load_taxonomy
from esckit.types import Dialogue

NAMES = ("Listen", "Ask", "Advise")
TAXONOMY = {
    "name": "mine",
    "title": "Mine",
    "source": "ours",
    "stages": ["one"],
    "strategies": [
        {"name": name, "abbr": abbr, "definition": f"To {name}.", "stage": "one"}
        for name, abbr in zip(NAMES, ("Li", "As", "Ad"), strict=True)
    ],
}
TARGETS = {"Question": "Ask", "Providing Suggestions": "Advise", "Information": "Advise", "Others": None}
MAPPING = {
    "name": "esconv_to_mine",
    "from": "esconv",
    "to": "mine.yaml",
    "lossy": True,
    "note": "ours",
    "map": {name: TARGETS.get(name, "Listen") for name in load_taxonomy("esconv").names},
}
STRATEGIST = f"models.strategist={{scripted: '{__name__}:strategist'}}"


def strategist(messages: Sequence[Any], sampling: Any, seed: int) -> str:
    """Answer with probabilities of the three strategies."""
    return '{"Li": 0.5, "As": 0.3, "Ad": 0.2}' if seed % 2 else '{"Li": 0.2, "As": 0.3, "Ad": 0.5}'


def esckit(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the taxonomy, a mapping into it, trees grown with it and a policy trained on them."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("mine.yaml").write_text(yaml.safe_dump(TAXONOMY), encoding="utf-8")
        Path("map.yaml").write_text(yaml.safe_dump(MAPPING), encoding="utf-8")
        esckit("search", "smoke/search_scripted", "--set", "taxonomy=mine.yaml", "--set", STRATEGIST, "--out", "trees")
        esckit(
            "train-flow", "smoke/train_flow_tiny", "--set", "data.trees=[trees]", "--set", "optim.epochs=1",
            "--out", "policy",
        )  # fmt: skip
        # Nothing that was made with it needs the file any more.
        Path("mine.yaml").rename("elsewhere.yaml")
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def test_runs_keep_the_taxonomy_that_they_were_made_with(here: Path) -> None:
    for run in ("trees", "policy"):
        assert kept_taxonomy("mine", here / run) == load_taxonomy("elsewhere.yaml")
    with pytest.raises(ConfigError, match=r"unknown taxonomy 'mine'.*its \.yaml file"):
        kept_taxonomy("mine", here)


def test_a_policy_is_used_without_naming_its_taxonomy(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "said"
    esckit("predict", "--input", "sample:esconv", "--strategist", "policy", "--set", "data.limit=1", "--out", str(out))
    text = (out / "predictions.jsonl").read_text(encoding="utf-8")
    assert any(f'"strategy":"{name}"' in text for name in NAMES)


@pytest.mark.parametrize(
    "changes",
    [
        ["data.mapping=map.yaml", "taxonomy=mine.yaml", STRATEGIST],
        [
            "data.mapping=map.yaml",
            "taxonomy=null",
            "models.strategist={checkpoint: policy}",
            "data.allow_cross_family=true",
            "data.allow_overlap=true",
        ],
        ["settings.strategy={source: expanded, trees: [trees]}", "taxonomy=null", STRATEGIST],
    ],
)
def test_evaluate_takes_it(here: Path, tmp_path: Path, changes: list[str]) -> None:
    Path("mine.yaml").write_bytes(Path("elsewhere.yaml").read_bytes())
    try:
        sets = [word for change in ["suites=[strategy]", *changes] for word in ("--set", change)]
        esckit("evaluate", "smoke/evaluate_scripted", *sets, "--out", str(tmp_path / "out"))
    finally:
        Path("mine.yaml").unlink()
    assert '"Listen"' in (tmp_path / "out" / "metrics.json").read_text(encoding="utf-8")


def test_a_corpus_in_it_goes_through_data_and_search(here: Path, tmp_path: Path) -> None:
    Path("mine.yaml").write_bytes(Path("elsewhere.yaml").read_bytes())
    corpus = tmp_path / "corpus.jsonl"
    try:
        esckit("data", "convert", "sample:esconv", "--to", "jsonl", "--map", "map.yaml", "--out", str(corpus))
        for run, extra in (("mcts", []), ("linear", ["--set", "search.mode=linear"])):
            esckit(
                "search", "smoke/search_scripted", "--set", STRATEGIST, "--set", "taxonomy=mine.yaml",
                "--set", f"data={{dataset: jsonl, path: '{corpus}', limit: 2}}", *extra, "--out", str(tmp_path / run),
            )  # fmt: skip
    finally:
        Path("mine.yaml").unlink()
    assert {dialogue.taxonomy for dialogue in read_records(Dialogue, corpus)} == {"mine"}
    assert "Listen" in esckit("data", "inspect", str(corpus))
    esckit("data", "inspect", str(corpus), "--taxonomy", "elsewhere.yaml")


def test_train_flow_learns_from_a_corpus_in_it(here: Path) -> None:
    Path("mine.yaml").write_bytes(Path("elsewhere.yaml").read_bytes())
    try:
        plan = esckit("train-flow", "smoke/gold_bc", "--set", "data.gold.mapping=map.yaml", "--dry-run")
    finally:
        Path("mine.yaml").unlink()
    assert "mine" in plan


def test_another_taxonomy_of_the_same_name_is_told_apart(here: Path, tmp_path: Path) -> None:
    other = {**TAXONOMY, "name": "esconv"}
    (tmp_path / "esconv.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")
    out = tmp_path / "out"
    words = ["--set", f"taxonomy={tmp_path / 'esconv.yaml'}", "--set", STRATEGIST, "--set", "data.limit=2"]
    esckit("search", "smoke/search_scripted", *words, "--out", str(out))
    assert kept_taxonomy("esconv", out).names == NAMES
    other["title"] = "Changed"
    (tmp_path / "esconv.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")
    with pytest.raises((ConfigError, DataError), match="taxonomy"):
        esckit("search", "smoke/search_scripted", *words, "--out", str(out))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2]", "holds a list"),
        ("name: [", "expected YAML"),
        (yaml.safe_dump({**TAXONOMY, "strategies": None}), "strategies: must be a list"),
        (yaml.safe_dump({**TAXONOMY, "name": 7}), "name: must be text"),
        (yaml.safe_dump({**TAXONOMY, "strategies": [{"name": "A"}, 7]}), "strategies[0].abbr: is missing"),
    ],
)
def test_faults_of_the_file_are_told_in_our_words(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_taxonomy(str(path))
    assert said in str(caught.value)
    assert "Input should" not in str(caught.value)
    assert "pydantic" not in str(caught.value)
