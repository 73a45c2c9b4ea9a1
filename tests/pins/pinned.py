"""Texts that must not change by accident: kept in files beside the tests, compared line by line, renewed on purpose.

``python -m tests.pins.renew`` writes them anew; the diff of the files is then what a change changes for users.
"""

import difflib
import os
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent / "kept"
N_SHOWN = 60

# What would draw a page wider, coloured or with other clocks, and what would find another model or setting.
_FOREIGN = (
    "ESCKIT_CACHE",
    "ESCKIT_MODELS",
    "FORCE_COLOR",
    "GITHUB_ACTIONS",
    "PY_COLORS",
    "TERMINAL_WIDTH",
    "TYPER_USE_RICH",
    "MPLBACKEND",
    "MPLSTYLE",
)


def environment(**changes: str) -> dict[str, str]:
    """Return the variables under which everything pinned is made."""
    kept = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    fixed = {
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**kept, **fixed, **changes}


def made_with(*packages: str) -> str:
    """Return the versions of the libraries that draw a text."""
    return " ".join(f"{name}={version(name)}" for name in packages)


def pinned(path: str) -> str:
    """Return a text that is kept, as it should still be."""
    return (FOLDER / path).read_text(encoding="utf-8")


def kept_names(folder: str) -> list[str]:
    """Return the names of all texts kept in a folder, sorted."""
    base = FOLDER / folder
    return sorted(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file())


def require_same(path: str, found: str) -> None:
    """Fail, with the lines that differ, if a text is no longer the one that is kept."""
    kept = pinned(path)
    if found == kept:
        return
    names = (f"kept/{path}", "now")
    lines = list(difflib.unified_diff(kept.splitlines(), found.splitlines(), *names, lineterm="", n=1))
    shown = [line if len(line) < 400 else line[:400] + "…" for line in lines[:N_SHOWN]]
    more = [f"… and {len(lines) - N_SHOWN} lines more"] if len(lines) > N_SHOWN else []
    hint = "If this is meant: python -m tests.pins.renew"
    pytest.fail("\n".join([*shown, *more, hint]), pytrace=False)
