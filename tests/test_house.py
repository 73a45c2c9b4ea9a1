"""`make house` counts what stands in the source, and the package keeps to its measures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ROOT / ".ci" / "house.py"

FILES = {
    "__init__.py": "",
    "base.py": '''\
"""Three lines of
docstring, none
of them code."""

from pydantic import BaseModel  # code lines so far: 1

LIMIT = 3


class Section(BaseModel):
    """A base."""

    kind: str = "any"  # 4


def outer(n: int) -> int:
    """Not code."""
    # nor this

    def inner() -> int:
        return (
            n
            + _once(n)
        )

    return inner() + _twice(1) + _twice(2)


def _once(n: int) -> int:
    return n + LIMIT


def _twice(n: int) -> int:
    return n
''',
    "room/__init__.py": '"""Only words."""\n',
    "room/left.py": """\
from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from house.base import Section
from house.room import right as other

if TYPE_CHECKING:
    from house.room.lazy import late


class Address(Section):
    host: str
    port: int = 0


_Where = Annotated[Address | None, Field(description="Address")]


class LeftRecipe(Section):
    KNOWN: ClassVar[tuple[str, ...]] = ()
    command: Literal["left"]
    where: _Where = None
    others: tuple[Address, ...] = ()
    extra: other.Extra
""",
    "room/right.py": """\
from house.base import Section


class Extra(Section):
    first: int
    second: "int | None" = None


def back() -> None:
    import os

    import numpy.linalg
    from house.room import left, lazy

    print(os, numpy, left, lazy)
""",
    "room/lazy.py": "from house.room.loop import late\n",
    "room/loop.py": "import house.room.lazy\n\nlate = 1\n",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "house"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def _run(*args):
    done = subprocess.run(
        [sys.executable, "-I", str(HOUSE), *map(str, args)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def measured(package):
    return json.loads(_run(package, "--json"))


@pytest.fixture(scope="module")
def esckit():
    return json.loads(_run("--json"))


def test_code_lines_leave_out_blank_comments_and_docstrings(measured):
    assert measured["rooms"] == {
        "files": {"files": 1, "code_lines": 15},
        "room": {"files": 4, "code_lines": 30},
    }
    assert (measured["files"], measured["code_lines"]) == (5, 45)
    assert measured["small_files"] == {
        "house.base": 15,
        "house.room.lazy": 1,
        "house.room.left": 18,
        "house.room.loop": 2,
        "house.room.right": 9,
    }


def test_inner_functions_count_on_their_own_too(measured):
    # outer 7, inner 5, back 5, _once 2, _twice 2
    assert measured["functions"] == 5
    assert measured["function_median"] == 5
    assert measured["function_p95"] == measured["function_longest"] == 7


def test_circles_leave_out_imports_for_type_checkers(measured):
    assert measured["circles"] == [["house.room.lazy", "house.room.loop"]]
    assert measured["circles_with_in_function_imports"] == [["house.room.left", "house.room.right"]]


def test_in_function_imports_are_split_by_origin(measured):
    found = measured["in_function_imports"]
    assert {kind: [where.split()[1] for where in places] for kind, places in found.items()} == {
        "own": ["house.room"],
        "third_party": ["numpy.linalg"],
        "stdlib": ["os"],
    }


def test_names_are_public_without_an_underscore(measured):
    assert measured["public_names"] == [
        "house.base.LIMIT",
        "house.base.Section",
        "house.base.outer",
        "house.room.left.Address",
        "house.room.left.LeftRecipe",
        "house.room.loop.late",
        "house.room.right.Extra",
        "house.room.right.back",
    ]
    assert measured["small_helpers_used_once"] == ["house.base._once"]


def test_recipe_fields_are_the_leaves_of_all_sections(measured):
    assert measured["recipe_fields"] == {
        "left": [
            "command",
            "extra.first",
            "extra.kind",
            "extra.second",
            "kind",
            "others.host",
            "others.kind",
            "others.port",
            "where.host",
            "where.kind",
            "where.port",
        ]
    }


def test_a_long_file_and_a_long_function_are_named(tmp_path):
    folder = tmp_path / "long"
    folder.mkdir()
    (folder / "tale.py").write_text("def tell():\n" + "    tell()\n" * 80 + "tell()\n" * 320, encoding="utf-8")
    found = json.loads(_run(folder, "--json"))
    assert found["large_files"] == {"long.tale": 401}
    assert found["long_functions"] == {"long.tale:1 tell": 81}


def test_the_tables_are_markdown(package):
    lines = _run(package).splitlines()
    assert lines[:2] == ["| room | files | code lines |", "| --- | ---: | ---: |"]
    assert "| **total** | 5 | 45 |" in lines
    assert "| import circles | 1: house.room.lazy house.room.loop |" in lines


def test_the_recipe_fields_are_those_that_pydantic_sees(esckit):
    from esckit.config.load import RECIPES

    for command, paths in esckit["recipe_fields"].items():
        assert {path.partition(".")[0] for path in paths} == set(RECIPES.resolve(command).model_fields), command
    assert set(esckit["recipe_fields"]) == set(RECIPES.names())


def test_no_modules_of_the_package_import_each_other(esckit):
    assert esckit["circles"] == []
    assert esckit["circles_with_in_function_imports"] == []


def test_no_file_or_function_is_too_long(esckit):
    assert esckit["large_files"] == {}
    assert esckit["long_functions"] == {}


def test_the_floors_hold():
    script = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [str(script), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "floors: imports go down only KEPT" in done.stdout
