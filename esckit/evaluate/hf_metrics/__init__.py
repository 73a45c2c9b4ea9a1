"""Our metrics as modules of the ``evaluate`` library, for those who load metrics by path.

::

    import evaluate
    from esckit.evaluate.hf_metrics import module_path

    overlap = evaluate.load(module_path("esc_response"))
    overlap.compute(predictions=["I hear you."], references=["I can hear you."])

Importing this package does not import that library: it takes seconds, and esckit itself does not need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esckit.errors import ConfigError
from esckit.metrics.metric import C, Metric, collect


def info(description: str, inputs: str) -> Any:
    """Return what the library wants to know of a metric of two columns of text."""
    import datasets
    import evaluate

    text = datasets.Value("string")
    columns = datasets.Features({"predictions": text, "references": text})
    return evaluate.MetricInfo(description=description, citation="", inputs_description=inputs, features=columns)


def values(metrics: Sequence[Metric[C]], cases: Sequence[C]) -> dict[str, float | None]:
    """Return the value of every metric under its short name, and the number of unscored cases as ``n_unscored``."""
    found: dict[str, float | None] = {}
    for metric in metrics:
        collected = collect(metric, cases)
        found[metric.name.partition(".")[2]] = metric.finish(collected.stats)
        found["n_unscored"] = collected.n_unscored
    return found


MODULES = ("esc_response", "esc_strategy")


def module_path(name: str) -> str:
    """Return what ``evaluate.load`` takes for one of our modules.

    Raises:
        ConfigError: If there is none of this name.
    """
    if name not in MODULES:
        raise ConfigError(f"unknown metric module {name!r}", expected=f"one of {', '.join(MODULES)}")
    return str(Path(__file__).resolve().parent / name / f"{name}.py")
