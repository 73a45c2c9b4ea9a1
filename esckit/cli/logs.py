"""What reaches the terminal: logging on stderr, configured once per call, and the gate that all text passes."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from dataclasses import dataclass

import typer

# C0 without tab and line feed, DEL, C1; line ends and directions that a terminal may act on; lone surrogates.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the options before the command's name say."""

    quiet: bool = False
    verbose: int = 0

    @property
    def level(self) -> int:
        """Lowest level of esckit's own messages that is shown."""
        if self.quiet:
            return logging.ERROR
        return (logging.WARNING, logging.INFO, logging.DEBUG)[min(self.verbose, 2)]


def printable(text: str) -> str:
    r"""Return a text without characters that a terminal acts on: each is written out, as JSON does (``\u001b``)."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a text through the gate; every command prints with it."""
    typer.echo(printable(text), err=err, nl=nl)


class StderrHandler(logging.Handler):
    """Writes to what ``sys.stderr`` is at that moment, so that lines pass above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        sys.stderr.write(printable(f"{record.levelname.lower()}: {self.format(record)}\n"))


def configure_logging(settings: Settings) -> None:
    """Let all loggers write to stderr: esckit's at the level that was asked for, those of libraries their errors.

    Libraries warn of what a user can do nothing about, so that their warnings are shown with ``--verbose`` only.
    """
    root = logging.getLogger()
    for handler in tuple(root.handlers):
        if isinstance(handler, StderrHandler):
            root.removeHandler(handler)
    handler = StderrHandler(logging.ERROR if settings.quiet else logging.NOTSET)
    root.addHandler(handler)
    logging.getLogger("esckit").setLevel(settings.level)
    # This one writes to stdout, where results go.
    logging.getLogger("DeepSpeed").addFilter(_handled_by_root)
    if settings.verbose:
        logging.captureWarnings(True)
        return
    handler.addFilter(lambda record: record.levelno >= logging.ERROR or record.name.partition(".")[0] == "esckit")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    # These bring a handler of their own, and ask the environment for a level when they are imported.
    for library in ("TRANSFORMERS", "DATASETS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


def _handled_by_root(record: logging.LogRecord) -> bool:
    """Hand a record to the root logger, and keep it from the handlers that a library brings."""
    logging.getLogger().handle(record)
    return False
