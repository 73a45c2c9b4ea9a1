"""Our metrics as modules of the ``evaluate`` library, for those who load metrics by path.

::

    import evaluate
    from esckit.evaluate.hf_metrics import module_path

    overlap = evaluate.load(module_path("esc_response"))
    overlap.compute(predictions=["I hear you."], references=["I can hear you."])

Nothing of that library is imported here: its import takes seconds, and esckit itself does not need it.
"""

from __future__ import annotations

from pathlib import Path

from esckit.errors import ConfigError

_HERE = Path(__file__).resolve().parent


def module_names() -> tuple[str, ...]:
    """Return the names of the modules, sorted."""
    return tuple(sorted(path.stem for path in _HERE.glob("*/*.py") if path.stem == path.parent.name))


def module_path(name: str) -> str:
    """Return what ``evaluate.load`` takes for one of our modules.

    Raises:
        ConfigError: If there is none of this name.
    """
    if name not in module_names():
        raise ConfigError(f"unknown metric module {name!r}", expected=f"one of {', '.join(module_names())}")
    return str(_HERE / name / f"{name}.py")
