"""README and docs name files, functions, recipes and commands, and show output: all of it has to be there."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from esckit.cli.app import COMMANDS
from esckit.config.load import load_any_recipe, shipped_recipes
from esckit.evaluate.setup import known_metrics
from tests.evaluate.evalrecipes import everything
from tests.shell import ROOT, esckit

PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
_LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
_FILE = re.compile(r"`((?:[\w.]+/)*\w+\.(?:py|yaml))(?:: (\w+)(?:\.(\w+))?)?`")
_RECIPE = re.compile(r"(?<![\w/.-])((?:aflow|rlff|smoke|evaluate)/\w+)(?![\w./-])")
_COMMAND = re.compile(r"(?:\$ |`)esckit ([a-z][\w-]*)")
_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


class Shown(NamedTuple):
    """A command of a page and the lines that it is said to print."""

    command: str
    lines: tuple[str, ...]


def shown(page: Path) -> Iterator[Shown]:
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.splitlines()
            yield Shown(command.partition("#")[0].strip(), tuple(line for line in lines if line.strip(" .")))


def candidates(name: str) -> list[Path]:
    """Return the files that a page may mean: from the root, from the package, or a base name inside it."""
    places = [ROOT / name, ROOT / "esckit" / name]
    if "/" not in name:
        places += [*(ROOT / "esckit").rglob(name)]
    return [place for place in places if place.is_file()]


def defined_in(path: Path) -> dict[str, set[str]]:
    """Return what a module defines at its top level, each with the names inside if it is a class."""
    found: dict[str, set[str]] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = node.body if isinstance(node, ast.ClassDef) else []
            found[node.name] = {member.name for member in inner if isinstance(member, ast.FunctionDef)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: set() for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    # What stands in code, such as a pattern of file names, may look like a link.
    links = _LINK.findall(re.sub(r"`[^`\n]*`", "", page.read_text(encoding="utf-8")))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_function_exists(page: Path) -> None:
    missing = []
    for name, attr, member in _FILE.findall(page.read_text(encoding="utf-8")):
        # What a user is to write is called mine or my_…
        if re.search(r"\bmy|mine|critic\.yaml", name):
            continue
        found = candidates(name)
        known = defined_in(found[0]) if found and attr else {}
        if not found or (attr and attr not in known) or (member and member not in known[attr]):
            missing.append(f"{name}: {attr}.{member}")
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_recipe_and_command_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(_RECIPE.findall(text)) <= {recipe.name for recipe in shipped_recipes()}
    assert set(_COMMAND.findall(text)) <= set(COMMANDS)


def test_the_commands_of_the_papers_tables_have_recipes_that_load() -> None:
    lines = re.findall(r"^esckit .*", (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8"), re.MULTILINE)
    for command, name, *words in (shlex.split(line, comments=True)[1:] for line in lines if " study " not in line):
        changes = [word for option, word in pairwise(words) if option == "--set"]
        assert load_any_recipe(name, overrides=changes).recipe.command == command


def test_the_readme_has_a_row_for_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"| `esckit {name}` |" not in text] == []


def test_the_benchmarks_page_names_every_benchmark() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert [path.stem for path in sorted((ROOT / "tests/benchmarks").glob("bench_*.py")) if path.stem not in text] == []


def test_the_readme_has_an_example_of_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0]: part for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]}
    names = list(COMMANDS)
    assert [name for name in names if f"$ esckit {name} " not in sections.get(name, "")] == []


def test_the_evaluation_page_names_every_whole_metric() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    # What is printed beside a metric, as its baseline or another scale of it, goes without a row.
    beside = re.compile(r"_normalised$|^strategy\.(majority|frequency)|_entropy_dialogue$|^dialogue\.reply_words$")
    known = known_metrics(
        everything(
            models={"scorer": {"backbone": "embedded"}},
            settings={"dialogue": {"strategy": "predicted"}, "pairwise": {"dimensions": ["overall"]}},
        ),
        ("a", "b"),
    )
    named = set(re.findall(r"`(?:[a-z0-9_]+\.)*([a-z0-9_]+)`", page))
    assert [name for name in known if not beside.search(name) and name.rpartition(".")[2] not in named] == []


def test_the_architecture_page_draws_the_floors_of_the_contract() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    drawn = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Floors")[2].split("```")[1]
    floors = [re.split(r"\s{2,}", line)[0] for line in drawn.strip().splitlines()]
    assert floors == contract[0]["layers"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["README.md", "docs/data.md"])
def test_the_pages_show_what_the_commands_print(name: str, tmp_path: Path, corpora: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "esconv").symlink_to(corpora / "esconv")
    for command, lines in shown(ROOT / name):
        program, *words = shlex.split(command)
        if program != "esckit":
            continue
        done = esckit(*words, cwd=tmp_path, timeout_s=600)
        # A page may leave out the last columns.
        printed = "\n" + "\n".join(" ".join(line.split()) for line in (done.stdout + done.stderr).splitlines())
        assert [line for line in lines if "\n" + " ".join(line.split()) not in printed] == [], command


def test_the_recipe_page_names_every_shipped_script() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith("| `scripted` |"))
    assert {path.stem for path in (ROOT / "recipes" / "scripted").glob("*.yaml")} <= set(re.findall(r"`(\w+)`", row))
