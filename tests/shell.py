"""esckit's commands as a user types them, each in a process of its own that is forked with all imports done.

They are forked from a server that has imported the package and its libraries, so that a command costs only its work.
Tests of how Python itself starts and ends (imports, signals, a stdout that closes) run ``python -m esckit`` instead: a
forked process does not finalise Python.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_STARTING = threading.Lock()


def esckit(
    *words: str,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    typed: str | None = None,
    timeout_s: float = 280.0,
) -> subprocess.CompletedProcess[str]:
    """Run a command in ``cwd`` and with the variables of this process or with ``env``; ``typed`` is what it reads.

    Raises:
        subprocess.TimeoutExpired: If it takes longer; it is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "stdout", Path(folder) / "stderr"
        stdin = Path(folder) / "stdin" if typed is not None else Path(os.devnull)
        if typed is not None:
            stdin.write_text(typed, encoding="utf-8", errors="surrogateescape")
        process = forked(play, words, cwd=cwd, env=dict(env or os.environ), stdin=stdin, stdout=out, stderr=err)
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, timeout_s)
        printed = [path.read_text(encoding="utf-8", errors="replace") for path in (out, err)]
    return subprocess.CompletedProcess(words, process.exitcode, *printed)


def started(*words: str, log: Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> BaseProcess:
    """Start a command that prints into ``log``, and do not wait for it."""
    return forked(play, words, cwd=cwd, env=dict(env or os.environ), stdout=log, stderr=log)


def forked(
    target: Callable[..., None],
    *args: Any,
    env: Mapping[str, str],
    stdout: Path,
    stderr: Path,
    stdin: Path = Path(os.devnull),
    cwd: Path = ROOT,
    **options: Any,
) -> BaseProcess:
    """Start a function in a process of its own, which prints into two files; they may be the same."""
    call = (target, args, options, dict(env), str(cwd), (str(stdin), str(stdout), str(stderr)))
    process = multiprocessing.get_context("forkserver").Process(target=_run, args=call)
    # The server is started with the first process; it looks for modules where it starts.
    with _STARTING, contextlib.chdir(ROOT):
        multiprocessing.set_forkserver_preload(["tests.preload"])
        process.start()
    return process


def play(words: tuple[str, ...]) -> None:
    """Run a command in this process, as if it had been typed."""
    sys.argv = ["esckit", *words]
    runpy.run_module("esckit", run_name="__main__", alter_sys=True)


def _run(
    target: Callable[..., None],
    args: tuple[Any, ...],
    options: Mapping[str, Any],
    env: Mapping[str, str],
    cwd: str,
    streams: tuple[str, str, str],
) -> None:
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    stdin, *printed = streams
    os.dup2(os.open(stdin, os.O_RDONLY), 0)
    for number, path in enumerate(printed, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    # Python's own objects may be those of the server, which has no terminal.
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    code: Any = 1
    try:
        target(*args, **options)
        code = 0
    except SystemExit as left:
        code = left.code or 0
    except BaseException:  # noqa: BLE001 - what is printed is all that is left of it
        traceback.print_exc()
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)
