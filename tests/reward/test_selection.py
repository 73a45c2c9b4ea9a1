"""Which evaluation of a reward model is the best, and which is none at all."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from transformers import EvalPrediction

from esckit.errors import NotFiniteError
from esckit.reward.trainer import Evaluation, Metrics, Selection


def log_loss_of(p: Sequence[float]) -> Metrics:
    return {"log_loss": p[0], "auc": None}


def judged(selection: Selection, *p: float) -> dict[str, float]:
    return selection.judge(EvalPrediction(predictions=np.array(p), label_ids=np.zeros(len(p))))


def test_the_best_so_far_is_handed_over_and_ties_keep_the_earlier_one() -> None:
    selection = Selection(["a"], log_loss_of, "log_loss", None)
    found = []
    for step, loss in ((0, 0.1), (2, 0.5), (4, 0.5), (6, 0.25)):
        assert judged(selection, loss) == {"log_loss": loss}
        found.append(selection.best_at(step))
    # What was not trained never stays the best.
    assert [each and each.step for each in found] == [0, 2, None, 6]
    assert found[-1] == Evaluation(6, {"log_loss": 0.25, "auc": None}, (0.25,))


def test_a_resumed_run_goes_on_from_the_best_of_the_earlier_go() -> None:
    selection = Selection(["a"], log_loss_of, "log_loss", (4, {"log_loss": 0.3}))
    judged(selection, 0.4)
    assert selection.best_at(6) is None


def test_a_number_that_is_not_finite_is_a_divergence_and_never_the_best() -> None:
    selection = Selection(["a", "b"], log_loss_of, "log_loss", None)
    with pytest.raises(NotFiniteError, match="p of a dev example"):
        judged(selection, 0.5, math.nan)
    assert selection.broken == ["b"]
