"""The ``esckit`` command, ``python -m esckit`` and ``accelerate launch -m esckit``: one program."""

from __future__ import annotations

import atexit
import os
import sys

from esckit.cli.app import main


def program() -> None:
    """Run the command line as a process of its own.

    Once torch is loaded, the process ends when all of Python's exit handlers have run, and Python is not taken apart:
    a thread of torch's (gloo's, autograd's) that then lets go of a tensor would abort the process
    (pytorch/pytorch#190489), and a launcher would report a finished run as failed.
    """
    code: int | str | None = None

    def end() -> None:
        if isinstance(code, int) and "torch" in sys.modules:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            os._exit(code)

    atexit.register(end)  # the first to be registered runs last
    try:
        main()
    except SystemExit as leaving:
        code = leaving.code or 0
        raise


if __name__ == "__main__":
    program()
