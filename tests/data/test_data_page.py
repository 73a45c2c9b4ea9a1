"""docs/data.md repeats what taxonomies, mappings and loaders hold; here it is held to them."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from esckit.cli.common import Settings
from esckit.cli.data import app
from esckit.config.data import DataConfig
from esckit.data.formats import FORMATS
from esckit.data.names import SPEAKERS
from esckit.data.selection import select_dialogues
from esckit.errors import ConfigError
from esckit.strategies.mapping import load_mapping
from esckit.strategies.taxonomy import load_taxonomy

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def _rows(head: str) -> list[list[str]]:
    """Return the rows of the table whose header line starts so."""
    lines = PAGE[PAGE.index(f"\n{head}") + 1 :].split("\n\n", 1)[0].split("\n")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize(
    ("source", "mappings"),
    [
        ("extes", ["extes_to_esconv.published", "extes_to_esconv.proposed", "extes_to_aflow"]),
        ("esconv", ["esconv_to_aflow"]),
    ],
)
def test_mapping_tables(source: str, mappings: list[str]) -> None:
    maps = [load_mapping(name).map for name in mappings]
    expected = [
        [strategy.name, strategy.abbr, *(targets[strategy.name] or "–" for targets in maps)]
        for strategy in load_taxonomy(source).strategies
    ]
    assert _rows(f"| {source} |") == expected


def test_every_code_on_the_page_is_one_that_the_package_gives() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "esckit").rglob("*.py"))
    named = [name for row in _rows("| code |") for name in re.findall(r"`(\w+)`", row[0])]
    assert len(named) == len(set(named)) == 42
    assert [name for name in named if f'"{name}"' not in code] == []


def test_the_page_names_every_format_and_every_speaker() -> None:
    assert [row[0].strip("`") for row in _rows("| format |")] == list(FORMATS)
    row = next(row for row in _rows("| code |") if row[0] == "`speaker_alias`")
    assert re.split(r"[,;] ", row[2])[:-2] == [
        f"{word.replace(word, side + ': ' + word)}" if word in ("usr", "sys") else word
        for word, side in SPEAKERS.items()
        if word not in ("seeker", "supporter")
    ]


def test_the_examples_of_own_data_work_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = PAGE.partition("## Your own data")[2].partition("## Getting the corpora")[0]
    monkeypatch.chdir(tmp_path)
    for name, content in re.findall(r"\*\*`(\S+)`\*\*.*?```(?:csv|json)\n(.*?)```", section, re.DOTALL):
        (tmp_path / name).write_text(content, encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(snippet, {})
    commands = re.findall(r"^\$ esckit data (.*)$", section, re.MULTILINE)
    assert len(commands) == 5
    printed = ""
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command), obj=Settings())
        assert done.exit_code == 0, done.output
        printed += done.stdout
    (shown,) = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
    assert shown in printed
    (recipe,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    (dialogue,) = select_dialogues(DataConfig.model_validate(yaml.safe_load(recipe)["data"])).dialogues
    assert [turn.speaker for turn in dialogue.turns] == ["seeker", "supporter"] * 2
    assert dialogue.scenario.situation == "Exams begin on Monday."


def test_the_recipe_page_names_every_data_set() -> None:
    with pytest.raises(ConfigError) as caught:
        select_dialogues(DataConfig(dataset="none", path="sample:esconv"))
    known = re.findall(r"\w+", str(caught.value.expected).removeprefix("one of "))
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for row in (line for line in page.splitlines() if re.match(r"\| `(\w+\.)*dataset` \|", line)):
        assert {f"`{name}`" for name in known if name not in ("or", "module", "attr")} <= set(re.findall(r"`\w+`", row))
