"""The ``--help`` of every command, as text of a fixed width; run as a module it prints them as one JSON object."""

import json
import subprocess
import sys
from typing import Any

from tests.pins.pinned import ROOT, environment


def pages() -> dict[str, str]:
    """Return the pages by the words of their command, made in a process whose terminal is always the same."""
    command = [sys.executable, "-m", "tests.pins.helps"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=True)
    return dict(json.loads(done.stdout))


def text() -> str:
    """Return all pages as one text."""
    return "\n".join(f"$ {words} --help\n{page}" for words, page in pages().items())


def _print() -> None:
    import typer
    from typer.testing import CliRunner

    from esckit.cli.app import app

    found = {}
    for words in _commands(typer.main.get_command(app), ()):
        done = CliRunner().invoke(app, [*words, "--help"], prog_name="esckit")
        assert done.exit_code == 0, done.output
        lines = [line.rstrip() for line in done.stdout.splitlines()]
        found[" ".join(("esckit", *words))] = "\n".join(lines).strip("\n") + "\n"
    sys.stdout.write(json.dumps(found))


def _commands(command: Any, words: tuple[str, ...]) -> list[tuple[str, ...]]:
    names = command.list_commands(None) if hasattr(command, "list_commands") else []
    below = [_commands(command.get_command(None, name), (*words, name)) for name in names]
    return [words, *(each for group in below for each in group)]


if __name__ == "__main__":
    _print()
