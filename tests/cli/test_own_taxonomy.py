"""A taxonomy of a user's own, from the corpus to the evaluation, through the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from esckit.cli.app import app
from esckit.errors import ConfigError, DataError
from esckit.models.scripted import any_strategies
from esckit.records import read_records, write_records
from esckit.strategies.kept import kept_taxonomy
from esckit.strategies.taxonomy import load_taxonomy
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
STRATEGIST = "models.strategist={scripted: 'esckit.models.scripted:any_strategies'}"


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
        own = {**MAPPING, "to": "elsewhere.yaml"}
        Path("elsewhere_map.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
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


def labelled(folder: Path) -> Path:
    """A corpus of 12 dialogues in the taxonomy, whose file is not beside it."""
    path = folder / "own.jsonl"
    esckit(
        "data", "convert", "sample:esconv", "--map", str(Path("elsewhere_map.yaml")), "--to", "jsonl",
        "--out", str(path),
    )  # fmt: skip
    return path


def changed(name: str, **fields: Any) -> str:
    """Write the taxonomy with the first strategy changed; return the path."""
    first, *others = TAXONOMY["strategies"]
    content = {**TAXONOMY, "strategies": [{**first, **fields}, *others]}
    Path(name).write_text(yaml.safe_dump(content), encoding="utf-8")
    return name


def corpus(path: Path) -> str:
    return f"data={{dataset: jsonl, path: '{path}', limit: 4, merge: true}}"


def test_a_run_stands_for_the_taxonomy_that_it_keeps(here: Path, tmp_path: Path) -> None:
    own = labelled(tmp_path)
    for run in ("trees", "policy", "policy/checkpoint"):
        assert load_taxonomy(run).names == NAMES
    assert "Listen" in esckit("data", "inspect", str(own), "--taxonomy", "policy")
    words = ["--set", corpus(own), "--set", "taxonomy=trees", "--set", "models.strategist={checkpoint: policy}"]
    esckit("search", "smoke/search_scripted", *words, "--set", "data.limit=1", "--out", str(tmp_path / "again"))
    assert load_taxonomy(str(tmp_path / "again")).names == NAMES
    with pytest.raises(ConfigError, match="a folder that keeps no taxonomy"):
        load_taxonomy(str(tmp_path))


def test_the_strategist_brings_the_taxonomy_of_a_corpus(here: Path, tmp_path: Path) -> None:
    own, said = labelled(tmp_path), tmp_path / "said"
    esckit("predict", "--input", str(own), "--strategist", "policy", "--set", "data.limit=4", "--out", str(said))
    for run, changes in (
        ("trained", ["models.strategist={checkpoint: policy}", "data.allow_cross_family=true"]),
        ("file", [f"predictions={said}", "models.strategist=null", "data.allow_cross_family=true"]),
    ):
        changes = [corpus(own), "data.allow_overlap=true", "suites=[strategy]", "taxonomy=null", *changes]
        sets = [word for change in changes for word in ("--set", change)]
        esckit("evaluate", "smoke/evaluate_scripted", *sets, "--out", str(tmp_path / run))
        assert load_taxonomy(str(tmp_path / run)).names == NAMES
    with pytest.raises(ConfigError, match="labelled in taxonomy 'mine', which does not ship"):
        esckit("evaluate", "smoke/evaluate_scripted", *sets, "--set", "predictions=null", "--set", STRATEGIST,
               "--out", str(tmp_path / "none"))  # fmt: skip


def test_a_taxonomy_that_changed_is_refused_with_what_differs(here: Path, tmp_path: Path) -> None:
    out, own = str(tmp_path / "out"), labelled(tmp_path)
    other = changed(str(tmp_path / "other.yaml"), definition="To hear.", abbr="Hear")
    words = ["--set", f"taxonomy={other}", "--set", "models.strategist={checkpoint: policy}", "--set", corpus(own)]
    for command, recipe in (("search", "smoke/search_scripted"), ("predict", "smoke/predict_scripted")):
        with pytest.raises(ConfigError, match=r"called 'mine'.*abbr of 'Listen'; definition of 'Listen'"):
            esckit(command, recipe, *words, "--dry-run")
    esckit("search", "smoke/search_scripted", *words[:2], "--set", STRATEGIST.replace(":strategist'", ":heard'"),
           "--out", str(tmp_path / "trees"))  # fmt: skip
    with pytest.raises(ConfigError, match=r"called 'mine'.*abbr of 'Listen'"):
        esckit(
            "train-flow", "smoke/train_flow_tiny", "--set", f"data.trees=[trees, {tmp_path / 'trees'}]", "--out", out
        )
    changed(str(tmp_path / "trees" / "taxonomy.yaml"), definition="To sit.")
    with pytest.raises(ConfigError, match="was changed after the run"):
        esckit("train-flow", "smoke/train_flow_tiny", "--set", f"data.trees=[{tmp_path / 'trees'}]", "--out", out)


def test_one_name_cannot_stand_for_two_files(here: Path, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(MAPPING), encoding="utf-8")
    changed(str(tmp_path / "mine.yaml"), definition="To hear.")
    words = ["--set", f"data.mapping={tmp_path / 'map.yaml'}", "--set", "taxonomy=elsewhere.yaml", "--set", STRATEGIST]
    words += ["--set", "search.mode=linear"]
    with pytest.raises(ConfigError, match=r"called 'mine', an end of .*definition of 'Listen'"):
        esckit("search", "smoke/search_scripted", *words, "--dry-run")


def test_labels_of_the_source_are_kept_beside_their_counterparts(here: Path, tmp_path: Path) -> None:
    own, back = labelled(tmp_path), tmp_path / "back.jsonl"
    plain = [dialogue.model_copy(update={"mapping": None}) for dialogue in read_records(Dialogue, own)]
    turns = [[turn.model_copy(update={"source_strategy": None}) for turn in dialogue.turns] for dialogue in plain]
    write_records(own, (one.model_copy(update={"turns": tuple(its)}) for one, its in zip(plain, turns, strict=True)))
    mapping = {"name": "back", "from": "policy", "to": "esconv", "lossy": True, "note": "ours"}
    names = {"Listen": "Reflection of feelings", "Ask": "Question", "Advise": None}
    (tmp_path / "back.yaml").write_text(yaml.safe_dump({**mapping, "map": names}), encoding="utf-8")
    esckit("data", "convert", str(own), "--map", str(tmp_path / "back.yaml"), "--to", "jsonl", "--out", str(back))
    found = {(t.source_strategy, t.strategy) for one in read_records(Dialogue, back) for t in one.turns if t.strategy}
    assert found == {("Listen", "Reflection of feelings"), ("Ask", "Question")}


def heard(messages: Sequence[Any], sampling: Any, seed: int) -> str:
    """Answer with the abbreviation that was changed."""
    return any_strategies(messages, sampling, seed).replace("Li", "Hear")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2]", "holds a list"),
        ("name: [", "expected YAML"),
        (yaml.safe_dump({**TAXONOMY, "strategies": None}), "strategies (line 5): must be a list"),
        (yaml.safe_dump({**TAXONOMY, "name": 7}), "name (line 1): must be text"),
        (yaml.safe_dump({**TAXONOMY, "strategies": [{"name": "A"}, 7]}), "strategies[0].abbr (line 6): is missing"),
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
