"""What a reward model says of dev: metrics where all p are finite, and a divergence otherwise."""

import math

import numpy as np
import pytest
from transformers import EvalPrediction

from esckit.errors import NotFiniteError
from esckit.reward.trainer import DevScores


def judged(scores: DevScores, *p: float) -> dict[str, float]:
    return scores(EvalPrediction(predictions=np.array(p), label_ids=np.zeros(len(p))))


def test_metrics_that_could_not_be_computed_are_not_logged() -> None:
    scores = DevScores(["a"], lambda p: {"log_loss": p[0], "auc": None})
    assert judged(scores, 0.25) == {"log_loss": 0.25}
    assert (scores.p, scores.metrics) == ((0.25,), {"log_loss": 0.25, "auc": None})


def test_a_number_that_is_not_finite_is_a_divergence() -> None:
    scores = DevScores(["a", "b"], lambda p: {"log_loss": p[0]})
    with pytest.raises(NotFiniteError, match="p of a dev example"):
        judged(scores, 0.5, math.nan)
    assert scores.broken == ["b"]
