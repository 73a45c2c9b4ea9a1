"""``--accelerate``: the same command once more, under accelerate's launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import resources, util
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from esckit.documents import read_yaml
from esckit.errors import ConfigError, MissingExtraError
from esckit.registry import did_you_mean

if TYPE_CHECKING:
    from esckit.training.run import Sharding

_NOTE = "ESCKIT_EXIT_CODE_FILE"

_GROUP_WAITS = 100


AccelerateOption = Annotated[
    str | None,
    typer.Option(
        "--accelerate",
        metavar="NAME|FILE",
        show_default=False,
        help="Start under accelerate's launcher: single, multi-gpu, fsdp, zero2, zero3, multi-node, or a file.",
    ),
]


ProcessesOption = Annotated[
    int | None,
    typer.Option(
        "--processes",
        metavar="N",
        min=1,
        show_default=False,
        help="With --dry-run: plan for so many devices, where --accelerate does not say how many.",
    ),
]


def preset_names() -> tuple[str, ...]:
    """Return the names of the shipped launcher settings."""
    folder = resources.files("esckit.training").joinpath("accelerate")
    return tuple(sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")))


def find_preset(name: str) -> Path:
    """Return the file of launcher settings.

    Raises:
        ConfigError: If there is neither such a preset nor such a file.
    """
    if name in preset_names():
        return Path(str(resources.files("esckit.training").joinpath("accelerate", f"{name}.yaml")))
    if Path(name).is_file():
        return Path(name)
    raise ConfigError(
        f"unknown launcher settings {name!r}",
        expected=f"one of {', '.join(preset_names())}, or a file that `accelerate config` wrote",
        hint=did_you_mean(name, preset_names()).capitalize() or None,
    )


def launch_command(arguments: Sequence[str], preset: Path, *, n_processes: int | None = None) -> list[str]:
    """Return the command line that starts esckit under the launcher.

    Args:
        arguments: What esckit was called with; ``--accelerate`` is taken out.
        preset: The launcher settings.
        n_processes: Number of processes; None where the settings say it.
    """
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--accelerate":
            next(words, None)
        elif not word.startswith("--accelerate="):
            kept.append(word)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", str(preset)]
    if n_processes is not None:
        launcher += ["--num_processes", str(n_processes)]
    return [*launcher, "-m", "esckit", *kept]


def launcher_settings(name: str) -> tuple[Path, Mapping[str, Any]]:
    """Return the file of the launcher's settings and what it says; a dry run needs no more to refuse them.

    Raises:
        ConfigError: If there are no such settings, or they want DeepSpeed and it is not installed.
    """
    preset = find_preset(name)
    settings = read_yaml(preset, "launcher settings")
    if not isinstance(settings, dict):
        raise ConfigError(f"launcher settings {preset}: no mapping", expected="a file that `accelerate config` wrote")
    if settings.get("distributed_type") == "DEEPSPEED" and util.find_spec("deepspeed") is None:
        raise MissingExtraError(f"--accelerate {name}", "deepspeed")
    return preset, settings


def planned_processes(name: str | None, wanted: int | None = None) -> dict[str, Any]:
    """Return for a dry run how many processes the launcher would start, and what they would divide.

    Args:
        name: Preset or file.
        wanted: Number of processes where the settings leave it open.

    Raises:
        ConfigError: See :func:`launcher_settings`.
    """
    if name is None:
        return {"n_processes": wanted}
    _, settings = launcher_settings(name)
    return {"n_processes": wanted or settings.get("num_processes"), "sharding": _sharding(settings)}


def _sharding(settings: Mapping[str, Any]) -> Sharding:
    """Return what processes divide under a launcher's settings."""
    from esckit.training.run import sharding_of

    deepspeed = settings.get("deepspeed_config") or {}
    return sharding_of(
        fsdp=settings.get("distributed_type") == "FSDP",
        zero_stage=deepspeed.get("zero_stage") if settings.get("distributed_type") == "DEEPSPEED" else None,
        deepspeed_file=deepspeed.get("deepspeed_config_file"),
    )


def launch(name: str, check: Callable[[Mapping[str, Any]], object] = lambda planned: None) -> None:
    """Run this very command under the launcher and leave with its exit code.

    Args:
        name: Preset or file.
        check: Called with what :func:`planned_processes` tells before any process is started; refuses what they
            cannot share, once.

    Raises:
        ConfigError: If there are no such settings, or they want GPUs or DeepSpeed and there are none.
    """
    preset, settings = launcher_settings(name)
    count = _missing_count(name, settings)
    check({"n_processes": count or settings["num_processes"], "sharding": _sharding(settings)})
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "exit_code"
        command = launch_command(sys.argv[1:], preset, n_processes=count)
        code = run_launcher(command, {**os.environ, _NOTE: str(note)})
        # The launcher itself knows only success and failure.
        raise typer.Exit(int(note.read_text()) if code and note.is_file() else code)


def run_launcher(command: Sequence[str], environment: Mapping[str, str], *, stdout: IO[str] | None = None) -> int:
    """Run the launcher, or esckit itself, and return its exit code; whoever interrupts esckit ends all that it started.

    Args:
        command: The command.
        environment: Its variables.
        stdout: Where it prints; by default where this process does.
    """
    with subprocess.Popen(command, env=environment, stdout=stdout, process_group=0) as launcher:
        try:
            return launcher.wait()
        except KeyboardInterrupt:
            os.killpg(launcher.pid, signal.SIGTERM)  # the launcher hands it on where its processes have other groups
            launcher.wait()
            # Processes that their launcher did not wait for hold the run folder's lock: wait a little for them.
            with suppress(ProcessLookupError):
                for _ in range(_GROUP_WAITS):
                    os.killpg(launcher.pid, 0)
                    time.sleep(0.1)
            raise


def note_exit_code(code: int | str | None) -> None:
    """Leave a note of the exit code of this process, where :func:`launch` looks for it if it started the process.

    The first process to end says why: the launcher then ends the others.
    """
    if isinstance(code, int) and code and _NOTE in os.environ:
        with suppress(FileExistsError), open(os.environ[_NOTE], "x", encoding="ascii") as note:
            note.write(str(code))


def _missing_count(name: str, settings: Mapping[str, Any]) -> int | None:
    """Return the number of GPUs where the settings leave the number of processes open."""
    if "num_processes" in settings:
        return None
    import torch

    n_gpus = torch.cuda.device_count()
    if not n_gpus:
        raise ConfigError(f"launcher settings {name!r}, but torch sees no GPU", hint="Use --accelerate single")
    return n_gpus
