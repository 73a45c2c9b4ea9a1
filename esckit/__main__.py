"""The ``esckit`` command, ``python -m esckit`` and ``accelerate launch -m esckit``: one program."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress

from esckit.cli.app import main


def program() -> None:
    """Run the command line as a process of its own.

    Once torch is loaded, the process ends when the exit handlers that were registered meanwhile have run, and Python is
    not taken apart: a thread of torch's (gloo's, autograd's) that then lets go of a tensor would abort the process
    (pytorch/pytorch#190489), and a launcher would report a finished run as failed.
    """
    _open_missing_streams()
    code: int | str | None = None

    def end() -> None:
        if isinstance(code, int) and "torch" in sys.modules:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                with suppress(OSError):
                    stream.flush()
            os._exit(code)

    atexit.register(end)  # the first to be registered runs last
    try:
        main()
    except SystemExit as leaving:
        code = leaving.code or 0
        raise


def _open_missing_streams() -> None:
    """Open what the process was started without (``2>&-``): else the next file would get its number, and its output."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process


if __name__ == "__main__":
    program()
