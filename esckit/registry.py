"""Names to objects and to places: tables of ``"module:attr"`` strings, nearest names, shipped folders, ``~``.

Nothing is imported before it is asked for. A name that holds a colon is taken as ``module:attr`` itself, which is how
a user's own loader, model script or critic is plugged in without changing the package. Shipped files lie in the wheel
under ``_shipped/``.
"""

from __future__ import annotations

import difflib
import importlib
import os.path
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from esckit.errors import ConfigError, EsckitError

_PACKAGE = Path(__file__).resolve().parent


def shipped_dir(kind: Literal["recipes", "data"]) -> Path:
    """Return the folder of shipped recipes or of the sample corpus."""
    in_wheel = _PACKAGE / "_shipped" / kind
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / kind


def expand_home(word: str) -> str:
    """Return a path with ``~`` or ``~name`` at its beginning replaced; any other word as it is."""
    return os.path.expanduser(word) if word.startswith("~") and (word == "~" or "/" in word) else word


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word closest to ``word`` (case aside), else one that begins with it, else None."""
    by_key = {candidate.casefold(): candidate for candidate in known}
    key = word.casefold()
    close = difflib.get_close_matches(key, list(by_key), n=1, cutoff=0.6)
    close = close or [candidate for candidate in by_key if len(key) > 3 and candidate.startswith(key)]
    return by_key[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'?"`` for a close known word, else the empty string."""
    close = nearest(word, known)
    return f"did you mean {close!r}?" if close else ""


def load_attr(target: str) -> Any:
    """Import ``module:attr`` and return the attribute (dots after the colon go deeper).

    Raises:
        ConfigError: If the module or the attribute does not exist.
    """
    module_name, _, attr_path = target.partition(":")
    if not module_name or not attr_path:
        raise ConfigError(f"{target!r} names no object", expected="module:attr")
    try:
        with own_code(f"module {module_name!r}"):
            found: Any = importlib.import_module(module_name)
        for attr in attr_path.split("."):
            found = getattr(found, attr)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot load {target!r}: {error}", expected="an importable module:attr") from error
    return found


def load_function(target: str, *, field: str, expected: str) -> Any:
    """Import the function that a field of a recipe names as ``module:attr``.

    Raises:
        ConfigError: If it does not exist, or is no function.
    """
    found = load_attr(target)
    if isinstance(found, type) or not callable(found):
        raise ConfigError(f"{field} {target!r} is not a function", expected=expected)
    return found


@contextmanager
def own_code(name: str) -> Iterator[None]:
    """Run a user's own code: whatever it raises becomes an error that names it.

    Our own errors and those of importing, which say what they mean themselves, pass as they are.

    Raises:
        ConfigError: If the code raises anything else.
    """
    try:
        yield
    except (EsckitError, ImportError):
        raise
    except Exception as error:
        # Pydantic's own words speak of classes and addresses.
        text = "" if type(error).__module__.startswith("pydantic") else " ".join(str(error).split())
        raise ConfigError(
            f"{name} raised {type(error).__name__}" + (f": {text[:200]}" if text else ""),
            hint="With -v the traceback is shown",
        ) from error


class Registry:
    """A table of names with lazily imported targets.

    Args:
        kind: What the names stand for, used in messages ("data set loader").
        targets: Name to ``"module:attr"``.
    """

    def __init__(self, kind: str, targets: Mapping[str, str]) -> None:
        self.kind = kind
        self.targets = dict(targets)

    def names(self) -> tuple[str, ...]:
        """Return the registered names, sorted."""
        return tuple(sorted(self.targets))

    def resolve(self, name: str) -> Any:
        """Return the object behind a registered name, or behind ``module:attr``.

        Raises:
            ConfigError: If the name is unknown; the message lists the known ones and the nearest.
        """
        if name in self.targets:
            return load_attr(self.targets[name])
        if ":" in name:
            return load_attr(name)
        raise ConfigError(
            f"unknown {self.kind} {name!r}",
            expected=f"one of {', '.join(self.names())}, or module:attr",
            hint=did_you_mean(name, self.targets) or None,
        )
