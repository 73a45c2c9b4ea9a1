"""Where a test lets a process die: documented points are those of the code, and a wrong name is refused."""

import os
import re

import pytest

from esckit.faultpoints import POINTS, VARIABLE
from tests.shell import ROOT, esckit


def test_every_point_stands_once_in_the_code_and_on_the_page() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "esckit").rglob("*.py"))
    assert sorted(re.findall(r"\breached\(\"([\w-]+)\"", text)) == sorted(POINTS)
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = page.partition("### Fault points")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", table, re.MULTILINE)).keys() == POINTS.keys()


@pytest.mark.parametrize("asked", ["nowhere:1", "renamed", "renamed:0"])
def test_a_point_that_is_not_there_is_refused(asked: str, tmp_path) -> None:
    words = ("simulate", "smoke/simulate_scripted", "--out", str(tmp_path / "run"))
    done = esckit(*words, env={**os.environ, VARIABLE: asked})
    assert done.returncode == 2, done.stderr
    assert f"{VARIABLE}={asked}" in done.stderr
    assert "POINT:N" in done.stderr
