"""How good a trained reward model is: dev metrics beside what it must beat, warnings, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from esckit.metrics.calibration import accuracy, auc, brier, ece, log_loss, pair_accuracy, reliability
from esckit.reward.examples import RewardExample
from esckit.text import n_words

Metrics = dict[str, float | int | None]

MIN_AUC = 0.55
"""Below this dev AUC a reward is close to noise."""


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
    share = sum(example.label for example in examples) / len(examples)
    constant = [sum(example.label for example in train) / len(train)] * len(examples)
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


def quality_warnings(metrics: dict[str, Any], beside: dict[str, dict[str, Any]]) -> list[str]:
    """Return the reasons not to train a policy on this reward."""
    warnings = []
    if metrics["auc"] is not None and metrics["auc"] < MIN_AUC:
        warnings.append(f"dev AUC {metrics['auc']:.3f} is below {MIN_AUC}: RL on this reward is close to RL on noise")
    if metrics["accuracy"] <= beside["majority"]["accuracy"]:
        warnings.append(
            f"dev accuracy {metrics['accuracy']:.3f} is not above the majority's {beside['majority']['accuracy']:.3f}: "
            "RL on this reward is close to RL on noise"
        )
    by_length = beside["reply_length"]["auc"]
    if metrics["auc"] is not None and by_length is not None and metrics["auc"] <= by_length:
        warnings.append(f"dev AUC {metrics['auc']:.3f} does not beat the length of the reply alone ({by_length:.3f})")
    return warnings


def calibration(p: Sequence[float], examples: Sequence[RewardExample], *, step: int) -> dict[str, Any]:
    """Return ``calibration.json``: the reliability table with Wilson's interval of each bin's share."""
    from esckit.metrics.intervals import wilson

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
