"""docs/extending.md: every example is short, and does what its page says with the commands that stand beside it."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.shell import ROOT, esckit

PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
EXAMPLES = {title: text for title, text in SECTIONS.items() if "```python\n# my_" in text}


def test_the_page_has_an_example_for_what_can_be_named() -> None:
    assert {"A model of your own", "A reward", "An objective", "A corpus", "A metric"} <= EXAMPLES.keys()


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_runs_as_it_stands(title: str, tmp_path: Path) -> None:
    for name, code in re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", EXAMPLES[title], re.DOTALL):
        assert len(code.splitlines()) <= 30
        (tmp_path / name).write_text(code, encoding="utf-8")
    commands = re.findall(r"```console\n(.*?)```", EXAMPLES[title], re.DOTALL)
    for block in commands:
        printed = ""
        for line in block.splitlines():
            if line.startswith("$ esckit "):
                done = esckit(*shlex.split(line)[2:], cwd=tmp_path)
                printed = done.stdout
                assert done.returncode == 0, done.stderr
            elif line.startswith("$ "):
                subprocess.run(["bash", "-c", line[2:]], cwd=tmp_path, check=True)
            else:
                assert line in printed
