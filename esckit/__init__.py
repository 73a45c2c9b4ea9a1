"""esckit: a toolkit for emotional support conversation research.

Importing this package loads nothing heavy; the work is done by the commands of :mod:`esckit.cli`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

__all__ = ["ChatHarness", "DialogueEnv", "DialogueTaskset"]


def __getattr__(name: str) -> Any:
    """Return what the library verifiers looks for in a package: the environment that other trainers play."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("esckit.environment"), name)
