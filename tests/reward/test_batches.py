"""How examples become the batches of a training, and what the net says of those of dev."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from transformers import EvalPrediction

from esckit.errors import NotFiniteError
from esckit.reward.examples import RewardExample
from esckit.reward.recipe import RewardOptim, plan_steps
from esckit.reward.text import RewardInput
from esckit.reward.trainer import DevScores, Encoded, Item, MicroBatches
from esckit.training.run import Process


@pytest.mark.parametrize("n_items", [5, 8, 13])
@pytest.mark.parametrize("n_processes", [1, 2, 4])
def test_a_step_is_the_mean_over_its_items_for_any_processes(n_items: int, n_processes: int) -> None:
    items = [Item((str(i),), (RewardInput((i,), 0, 1, 0),), (i % 2,)) for i in range(n_items)]
    plan = plan_steps(RewardOptim(batch_size=2, accumulate=4), n_items=n_items, n_processes=n_processes)
    shares = [
        MicroBatches(items, plan=plan, epochs=2, seed=7, process=Process(rank, n_processes))
        for rank in range(n_processes)
    ]
    assert {len(share) for share in shares} == {plan.steps * plan.accumulate}
    for step in range(plan.steps):
        parts = [share[step * plan.accumulate + k] for share in shares for k in range(plan.accumulate)]
        # What data parallelism and accumulation make of it: the mean over passes of weight times the mean of a pass.
        mean = sum(float(p["weight"]) * float(p["input_ids"].float().mean()) for p in parts) / len(parts)
        seen = [i for p in parts if float(p["weight"]) for i in p["input_ids"].flatten().tolist()]
        assert len(seen) == len(set(seen))
        assert mean == pytest.approx(sum(seen) / len(seen))
    halves = [p for share in shares for p in list(share)[: len(share) // 2] if float(p["weight"])]
    assert sorted(i for p in halves for i in p["input_ids"].flatten().tolist()) == list(range(n_items))


def judged(p: Sequence[float], *, labels: Sequence[bool]) -> tuple[DevScores, dict[str, float]]:
    examples = tuple(RewardExample(str(i), "g", "d", (), "Hm.", Fraction(i), label) for i, label in enumerate(labels))
    scores = DevScores(Encoded(examples, (), 0, 0))
    return scores, scores(EvalPrediction(predictions=np.array(p), label_ids=np.zeros(len(p))))


def test_metrics_that_could_not_be_computed_are_not_logged() -> None:
    scores, logged = judged([0.25], labels=[False])
    assert (scores.p, scores.metrics["auc"]) == ((0.25,), None)
    assert "auc" not in logged
    assert logged["brier"] == 0.0625


def test_a_number_that_is_not_finite_is_a_divergence() -> None:
    scores = DevScores(Encoded((RewardExample("a", "g", "d", (), "Hm.", Fraction(0), True),), (), 0, 0))
    with pytest.raises(NotFiniteError, match="p of a dev example"):
        scores(EvalPrediction(predictions=np.array([math.nan]), label_ids=np.zeros(1)))
    assert scores.broken == ["a"]
