"""``--accelerate``: the same command once more, under accelerate's launcher."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from esckit.errors import ConfigError
from esckit.registry import did_you_mean

AccelerateOption = Annotated[
    str | None,
    typer.Option(
        "--accelerate",
        metavar="NAME|FILE",
        show_default=False,
        help="Start under accelerate's launcher: single, multi-gpu, fsdp, zero2, zero3, multi-node, or a file.",
    ),
]


def preset_names() -> tuple[str, ...]:
    """Return the names of the shipped launcher settings."""
    folder = resources.files("esckit.train").joinpath("accelerate")
    return tuple(sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")))


def find_preset(name: str) -> Path:
    """Return the file of launcher settings.

    Raises:
        ConfigError: If there is neither such a preset nor such a file.
    """
    if name in preset_names():
        return Path(str(resources.files("esckit.train").joinpath("accelerate", f"{name}.yaml")))
    if Path(name).is_file():
        return Path(name)
    raise ConfigError(
        f"unknown launcher settings {name!r}",
        expected=f"one of {', '.join(preset_names())}, or a file that `accelerate config` wrote",
        hint=did_you_mean(name, preset_names()).capitalize() or None,
    )


def launch_command(arguments: Sequence[str], preset: Path) -> list[str]:
    """Return the command line that starts esckit under the launcher.

    Args:
        arguments: What esckit was called with; ``--accelerate`` is taken out.
        preset: The launcher settings.
    """
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--accelerate":
            next(words, None)
        elif not word.startswith("--accelerate="):
            kept.append(word)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", str(preset)]
    return [*launcher, "-m", "esckit", *kept]


def launch(name: str) -> None:
    """Run this very command under the launcher and leave with its exit code.

    Raises:
        ConfigError: If there are no such settings.
    """
    raise typer.Exit(subprocess.run(launch_command(sys.argv[1:], find_preset(name)), check=False).returncode)
