"""``esckit strategies``: what ships is shown, copies can be used, a mapping is begun, filled in and measured."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from esckit.cli.app import app
from esckit.errors import ConfigError
from esckit.strategies.files import shipped_names
from esckit.strategies.mapping import load_mapping
from esckit.strategies.taxonomy import load_taxonomy


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def esckit(*words: str) -> str:
    done = CliRunner().invoke(app, ["strategies", *words])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_all_that_ships_is_listed_and_shown() -> None:
    found = json.loads(esckit("list", "--json"))
    assert [one["name"] for one in found["taxonomies"]] == list(shipped_names("taxonomy"))
    text = esckit("list")
    assert all(name in text for name in (*shipped_names("taxonomy"), *shipped_names("mapping")))
    shown = esckit("show", "esconv")
    for strategy in load_taxonomy("esconv").strategies:
        assert f"{strategy.name}  (" in shown
        assert strategy.definition in shown
    assert json.loads(esckit("show", "aflow", "--json"))["digest"] == load_taxonomy("aflow").digest


@pytest.mark.parametrize("name", ["esconv", "extes", "extes_to_esconv.published"])
def test_a_copy_has_the_name_of_its_file(name: str) -> None:
    esckit("copy", name)
    load = load_mapping if name in shipped_names("mapping") else load_taxonomy
    copied, shipped = load(f"my_{name}.yaml"), load(name)
    assert copied == shipped.model_copy(update={"name": f"my_{name}"})
    with pytest.raises(ConfigError, match="already exists"):
        esckit("copy", name)
    esckit("copy", name, "--force")


def test_a_reworded_copy_under_the_old_name_is_remarked_on() -> None:
    text = Path(esckit("copy", "esconv").strip()).read_text(encoding="utf-8")
    Path("own.yaml").write_text(
        text.replace("my_esconv", "esconv").replace("abbr: Q\n", "abbr: Que\n"), encoding="utf-8"
    )
    (note,) = json.loads(esckit("show", "own.yaml", "--json"))["notes"]
    assert "abbr of 'Question'" in note
    assert json.loads(esckit("show", "my_esconv.yaml", "--json"))["notes"] == []


def test_many_strategies_are_remarked_on() -> None:
    strategies = [{"name": f"S {n}", "abbr": f"s{n}", "definition": "d", "stage": "any"} for n in range(27)]
    head = {"name": "many", "title": "Many", "source": "me", "stages": ["one"]}
    Path("many.yaml").write_text(yaml.safe_dump({**head, "strategies": strategies}), encoding="utf-8")
    (note,) = json.loads(esckit("show", "many.yaml", "--json"))["notes"]
    assert "at most 26" in note


def test_a_mapping_is_begun_filled_in_and_measured() -> None:
    esckit("copy", "extes")
    assert "extes_to_esconv.published" in esckit("map", "--from", "extes", "--to", "esconv")
    esckit("map", "--from", "my_extes.yaml", "--to", "aflow", "--out", "own.yaml")
    with pytest.raises(ConfigError, match=r"(?s)8 faults.*map\.Offer Hope \(line \d+\): still '\?'") as caught:
        esckit("map", "own.yaml")
    assert "Affirmation (" not in str(caught.value)
    filled = (
        Path("own.yaml")
        .read_text(encoding="utf-8")
        .replace("'?'", "null")
        .replace("from: my_extes.yaml", "from: extes")
    )
    Path("own.yaml").write_text(filled, encoding="utf-8")
    found = json.loads(esckit("map", "own.yaml", "--corpus", "sample:extes", "--json"))
    labels, table = found["corpus"]["labels"], found["map"]
    assert found["corpus"]["lost"] == sum(n for name, n in labels.items() if table[name] is None) > 0
    assert found["corpus"]["merged"] == 0
    assert found["never_used"] == []
    published = json.loads(esckit("map", "extes_to_esconv.published", "--corpus", "sample:extes", "--json"))["corpus"]
    assert published["labelled"] == found["corpus"]["labelled"]
    assert published["merged"] > published["lost"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["map"], "what to show is not clear"),
        (["map", "esconv_to_aflow", "--to", "esconv"], "what to show is not clear"),
        (["map", "extes_to_esconv"], "unknown mapping 'extes_to_esconv'"),
        (["map", "esconv_to_aflow", "--corpus", "sample:extes"], "a corpus labelled in taxonomy extes"),
        (["show", "esconvv"], "did you mean 'esconv'"),
        (["show", "."], "a folder that keeps no taxonomy"),
        (["copy", "extes_to_esconv"], "Did you mean"),
        (["copy", "esconv", "own.txt"], "does not end in .yaml"),
    ],
)
def test_bad_input_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        esckit(*words)
    assert said in str(caught.value)
