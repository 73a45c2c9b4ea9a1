"""Logging of the command line, configured once per call: stderr, one line a message."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass


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


class StderrHandler(logging.Handler):
    """Writes to what ``sys.stderr`` is at that moment, so that lines pass above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        sys.stderr.write(f"{record.levelname.lower()}: {self.format(record)}\n")


def configure_logging(settings: Settings) -> None:
    """Let esckit's loggers write to stderr at the level that was asked for."""
    logger = logging.getLogger("esckit")
    logger.handlers = [StderrHandler()]
    logger.setLevel(settings.level)
