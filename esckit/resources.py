"""Where the files that ship with esckit lie: in the wheel under ``_shipped/``, in a checkout at the top level."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent


def shipped_dir(kind: Literal["recipes", "data"]) -> Path:
    """Return the folder of shipped recipes or of the sample corpus."""
    in_wheel = _PACKAGE / "_shipped" / kind
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / kind
