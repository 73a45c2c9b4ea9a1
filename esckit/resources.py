"""Where files lie: those that ship with esckit (in the wheel under ``_shipped/``), and a user's own under ``~``."""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent


def shipped_dir(kind: Literal["recipes", "data"]) -> Path:
    """Return the folder of shipped recipes or of the sample corpus."""
    in_wheel = _PACKAGE / "_shipped" / kind
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / kind


def expand_home(word: str) -> str:
    """Return a path with ``~`` or ``~name`` at its beginning replaced; any other word as it is."""
    return os.path.expanduser(word) if word.startswith("~") and (word == "~" or "/" in word) else word
