"""What ``train-reward`` writes after training: calibration, model card and summary.

The metrics themselves are computed in :mod:`esckit.reward.quality`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from fractions import Fraction
from io import StringIO
from typing import Any

import esckit
from esckit.models.checkpoint import FOLDER, read_metadata
from esckit.play.runner import SUMMARY
from esckit.records import read_records, write_atomic, write_json
from esckit.reward.examples import RewardExample
from esckit.reward.quality import baselines, calibration, quality_warnings
from esckit.reward.text import RewardMetadata
from esckit.reward.trainer import PREDICTIONS, DevPrediction, Session
from esckit.training.checkpoint import metrics_table, render_card
from esckit.training.monitor import METRICS, read_rows

log = logging.getLogger(__name__)


def finish(session: Session, warnings: Sequence[str]) -> dict[str, Any]:
    """Write calibration, card and summary, delete the states, and return the summary."""
    out, train, dev = session.run.out, session.train, session.dev
    metadata = read_metadata(RewardMetadata, out)
    rows = [row for row in read_rows(out / METRICS) if "dev" in row]
    p = [prediction.p for prediction in read_records(DevPrediction, out / PREDICTIONS)]
    beside = baselines(
        dev.examples, train.examples, untrained=next((row["dev"] for row in rows if row["step"] == 0), None)
    )
    table = calibration(p, dev.examples, step=metadata.step)
    write_json(out / "calibration.json", table)
    write_atomic(out / "calibration.svg", reliability_svg(table, title="Reward model on dev"))
    found = quality_warnings(metadata.metrics, beside)
    for warning in found:
        log.warning("%s", warning)
    summary = {
        "schema": "esckit.train_reward_summary/1",
        "examples": {"train": len(train.examples), "dev": len(dev.examples)},
        "dialogues": {"train": session.parts.train.n_dialogues, "dev": session.parts.dev.n_dialogues},
        "positive_share": {"train": _positive_share(train.examples), "dev": _positive_share(dev.examples)},
        "delta": None if metadata.delta is None else float(Fraction(metadata.delta)),
        "too_long": train.n_too_long + dev.n_too_long,
        "cut": train.n_cut + dev.n_cut,
        "contexts_without_pairs": session.n_without_pairs,
        "steps": rows[-1]["step"],
        "selected_step": metadata.step,
        "dev": dict(metadata.metrics),
        **beside,
        "warnings": [*warnings, *found],
    }
    write_atomic(out / FOLDER / "README.md", _card(metadata, beside, summary))
    session.run.forget_states(session.recipe.trackers)
    write_json(out / SUMMARY, summary)
    return summary


def _positive_share(examples: Sequence[RewardExample]) -> float:
    return sum(example.label for example in examples) / len(examples)


def _card(metadata: RewardMetadata, beside: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    facts = metadata.model_dump() | {
        "version": esckit.__version__,
        "prompt": metadata.template.prompt,
        "label": ", ".join(f"{name} {value}" for name, value in metadata.label.items()),
        "delta": metadata.delta or "the goal",
        "simulation": ", ".join(f"{name} {value}" for name, value in metadata.simulation.items()),
        "n_train": summary["examples"]["train"],
        "n_dev": summary["examples"]["dev"],
        "n_dialogues": len(metadata.dialogue_ids),
        "positive_train": f"{summary['positive_share']['train']:.1%}",
        "positive_dev": f"{summary['positive_share']['dev']:.1%}",
        "steps": summary["steps"],
        "metrics": metrics_table({"this model": metadata.metrics, **beside}, list(metadata.metrics)),
        "warnings": "\n".join(f"**Warning:** {warning}" for warning in summary["warnings"]),
    }
    return render_card("reward_model", **facts)


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
