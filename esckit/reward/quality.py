"""How good a trained reward model is, and what ``train-reward`` writes about it.

Dev metrics beside what a reward model must beat, warnings, calibration, model card and summary. Not here: the training
(:mod:`esckit.reward.trainer`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from io import StringIO
from typing import TYPE_CHECKING, Any, ClassVar

from esckit.metrics.calibration import accuracy, auc, brier, ece, log_loss, pair_accuracy, reliability
from esckit.metrics.intervals import wilson
from esckit.models.checkpoint import FOLDER, read_metadata
from esckit.play.runner import SUMMARY
from esckit.records import read_records, write_atomic, write_json
from esckit.reward.examples import RewardExample
from esckit.reward.recipe import Kind
from esckit.reward.text import RewardMetadata
from esckit.text import n_words
from esckit.training.checkpoint import metrics_table, write_card
from esckit.training.monitor import METRICS, read_rows
from esckit.training.policy import begun_with
from esckit.types import Record

if TYPE_CHECKING:
    from esckit.reward.trainer import Session

log = logging.getLogger(__name__)

PREDICTIONS = "dev_predictions.jsonl"

Metrics = dict[str, float | int | None]

MIN_ORDERED = 0.55
"""Below this dev AUC, or of a ranker this share of pairs in order, a reward is close to noise, which has 0.5."""


def dev_metrics(p: Sequence[float], examples: Sequence[RewardExample]) -> Metrics:
    """Return the metrics of p on dev examples, the one to read first at the head."""
    labels = [example.label for example in examples]
    order = pair_accuracy(p, [example.reward for example in examples], [example.group for example in examples])
    return {
        "pair_accuracy": order.share,
        "n_pairs": order.n_pairs,
        "accuracy": accuracy(p, labels),
        "auc": auc(p, labels),
        "brier": brier(p, labels),
        "log_loss": log_loss(p, labels),
        "ece": ece(p, labels),
    }


def positive_share(examples: Sequence[RewardExample]) -> float:
    """Return the share of good futures."""
    return sum(example.label for example in examples) / len(examples)


def baselines(
    examples: Sequence[RewardExample], train: Sequence[RewardExample], *, untrained: dict[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """Return what a reward model must beat: the majority, its own fresh head, and the length of the reply.

    Args:
        examples: The dev examples.
        train: The training examples; the share of positives in them is the p of ``majority``, and the p of
            ``reply_length`` is a logistic function of the number of words, fitted to them.
        untrained: Dev metrics before the first step.
    """
    share = positive_share(examples)
    constant = [positive_share(train)] * len(examples)
    return {
        # Its accuracy is that of the class that is larger on dev, whichever is larger in training: harder to beat.
        "majority": dev_metrics(constant, examples) | {"accuracy": max(share, 1 - share)},
        "untrained": untrained or {},
        "reply_length": dev_metrics(_by_length(examples, train), examples),
    }


def _by_length(examples: Sequence[RewardExample], train: Sequence[RewardExample]) -> list[float]:
    """Return p of each example by the length of its reply alone, after ``train``; the fit is slightly regularised."""
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import expit

    def length(of: Sequence[RewardExample]) -> Any:
        return np.log1p([n_words(example.response) for example in of])

    x, y = length(train), np.asarray([example.label for example in train], dtype=float)
    centre, scale = x.mean(), x.std() or 1.0

    def loss(weights: Any) -> float:
        logits = weights[0] + weights[1] * (x - centre) / scale
        return float(np.mean(np.logaddexp(0.0, logits) - y * logits) + 1e-3 * weights[1] ** 2)

    intercept, slope = minimize(loss, np.zeros(2)).x
    found: list[float] = expit(intercept + slope * (length(examples) - centre) / scale).tolist()
    return found


def quality_warnings(metrics: dict[str, Any], beside: dict[str, dict[str, Any]], *, kind: Kind) -> list[str]:
    """Return the reasons not to train a policy on this reward.

    A ranker is judged by the pairs that it puts in order: it learns, and a policy reads of it, nothing that compares
    replies to different contexts, as AUC and accuracy do.

    Args:
        metrics: The dev metrics.
        beside: Those of the :func:`baselines`.
        kind: What its output is.
    """
    name, what = ("auc", "AUC") if kind == "classifier" else ("pair_accuracy", "pair accuracy")
    found, by_length, warnings = metrics[name], beside["reply_length"][name], []
    if found is not None and found < MIN_ORDERED:
        warnings.append(f"dev {what} {found:.3f} is below {MIN_ORDERED}: RL on this reward is close to RL on noise")
    if kind == "classifier" and metrics["accuracy"] <= beside["majority"]["accuracy"]:
        warnings.append(
            f"dev accuracy {metrics['accuracy']:.3f} is not above the majority's {beside['majority']['accuracy']:.3f}: "
            "RL on this reward is close to RL on noise"
        )
    if found is not None and by_length is not None and found <= by_length:
        warnings.append(f"dev {what} {found:.3f} does not beat the length of the reply alone ({by_length:.3f})")
    return warnings


def calibration(p: Sequence[float], examples: Sequence[RewardExample], *, step: int) -> dict[str, Any]:
    """Return ``calibration.json``: the reliability table with Wilson's interval of each bin's share."""
    labels = [example.label for example in examples]
    bins = []
    for each in reliability(p, labels):
        bounds = wilson(round(each.mean_y * each.n), each.n)
        bins.append({**asdict(each), "y_interval": [bounds.low, bounds.high]})
    return {
        "schema": "esckit.calibration/1",
        "step": step,
        "n": len(labels),
        "positive_share": sum(labels) / len(labels),
        "ece": ece(p, labels),
        "brier": brier(p, labels),
        "bins": bins,
    }


# ---------------------------------------------------------------- what is written


class DevPrediction(Record):
    """A line of ``dev_predictions.jsonl``; ``step`` is that of the checkpoint that gave p."""

    SCHEMA: ClassVar[str] = "esckit.dev_prediction/1"

    id: str
    dialogue_id: str
    p: float
    label: bool
    reward_num: int
    reward_den: int
    step: int


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
    found = quality_warnings(metadata.metrics, beside, kind=metadata.kind)
    parts = {"train": train.examples, "dev": dev.examples}
    for warning in found:
        log.warning("%s", warning)
    summary = {
        "schema": "esckit.train_reward_summary/1",
        "examples": {name: len(examples) for name, examples in parts.items()},
        "dialogues": {"train": session.parts.train.n_dialogues, "dev": session.parts.dev.n_dialogues},
        "positive_share": {name: positive_share(examples) for name, examples in parts.items()},
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
    card = metadata.model_dump() | {
        "backbone": begun_with(metadata.backbone, metadata.start),
        "prompt": metadata.template.prompt,
        "label": ", ".join(f"{name} {value}" for name, value in metadata.label.items()),
        "delta": metadata.delta or "the goal",
        "simulation": ", ".join(f"{name} {value}" for name, value in metadata.simulation.items()),
        "n_train": len(train.examples),
        "n_dev": len(dev.examples),
        "n_dialogues": len(metadata.dialogue_ids),
        "positive_train": f"{positive_share(train.examples):.1%}",
        "positive_dev": f"{positive_share(dev.examples):.1%}",
        "steps": summary["steps"],
        "metrics": metrics_table({"this model": metadata.metrics, **beside}, list(metadata.metrics)),
        "warnings": "\n".join(f"**Warning:** {warning}" for warning in (*warnings, *found)),
    }
    write_card(out / FOLDER, "reward_model", card)
    session.run.forget_states(session.recipe.trackers)
    write_json(out / SUMMARY, summary)
    return summary


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
