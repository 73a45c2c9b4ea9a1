"""The reliability diagram of a reward model as an SVG."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from typing import Any


def reliability_svg(calibration: Mapping[str, Any], *, title: str) -> str:
    """Return the diagram of ``calibration.json``: share of positives over mean p by bin, with Wilson intervals.

    Equal input gives equal bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    bins = calibration["bins"]
    p = [each["mean_p"] for each in bins]
    y = [each["mean_y"] for each in bins]
    below = [max(0.0, each["mean_y"] - each["y_interval"][0]) for each in bins]
    above = [max(0.0, each["y_interval"][1] - each["mean_y"]) for each in bins]
    with matplotlib.rc_context({"svg.hashsalt": "esckit", "svg.fonttype": "none"}):
        figure = Figure(figsize=(5.0, 5.0), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], linestyle="--", color="0.6", label="perfectly calibrated")
        axes.errorbar(p, y, yerr=[below, above], fmt="o", capsize=3, label="dev, 95 % interval")
        for each in bins:
            axes.annotate(f"n={each['n']}", (each["mean_p"], each["mean_y"]), (6, -10), textcoords="offset points")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean p of the bin", ylabel="share of good futures", title=title)
        axes.legend(loc="upper left")
        target = StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue()
