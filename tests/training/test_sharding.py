"""How a training is shared: one GPU without a launcher, equal steps, and failures that reach everybody."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from esckit.errors import ConfigError, ModelError
from esckit.flow.objectives import OBJECTIVES, TERMS, potentials, without_terminal
from esckit.processes import Process, gathered, together
from esckit.reward.recipe import RewardOptim, plan_steps
from esckit.reward.text import RewardInput
from esckit.reward.trainer import Item, MicroBatches
from esckit.training.sections import share_batch
from esckit.training.sharding import one_device


def test_a_process_without_a_launcher_keeps_to_one_gpu(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["esckit", "train-rl", "my recipe.yaml"])
    arguments = SimpleNamespace(n_gpu=4, _n_gpu=4)
    with caplog.at_level(logging.WARNING):
        one_device(arguments)
    assert arguments._n_gpu == 1
    assert "esckit train-rl 'my recipe.yaml' --accelerate multi-gpu" in caplog.text


@pytest.mark.parametrize("n_gpus", [0, 1])
def test_one_gpu_or_none_is_left_as_it_is(n_gpus: int) -> None:
    arguments = SimpleNamespace(n_gpu=n_gpus, _n_gpu=n_gpus)
    one_device(arguments)
    assert arguments._n_gpu == n_gpus


def test_what_cannot_be_shared_names_the_numbers_that_can() -> None:
    with pytest.raises(ConfigError, match=r"12 pairs in a step over 5 processes.*: 1, 2, 3, 4, 6, 12"):
        share_batch(12, at_most=4, n_processes=5, what="pairs")
    assert share_batch(12, at_most=4, n_processes=2, what="pairs") == (3, 2)


def test_a_failure_of_one_process_is_raised() -> None:
    def fails() -> None:
        raise ModelError("no number")

    assert gathered([1, 2]) == [[1, 2]]
    assert together(lambda: 3) == 3
    with pytest.raises(ModelError, match="no number"):
        together(fails)


@pytest.mark.parametrize("n_items", [5, 8, 13])
@pytest.mark.parametrize("n_processes", [1, 2, 4])
def test_a_step_is_the_mean_over_its_items_for_any_processes(n_items: int, n_processes: int) -> None:
    items = [Item((str(i),), (RewardInput((i + 1,), 0, 1, 0),), (i % 2,)) for i in range(n_items)]
    plan = plan_steps(RewardOptim(batch_size=2, accumulate=4), n_items=n_items, n_processes=n_processes)

    def collate(own):
        return {"ids": torch.tensor([int(item.ids[0]) for item in own])}

    shares = [
        MicroBatches(items, collate, plan=plan, epochs=2, seed=7, process=Process(rank, n_processes))
        for rank in range(n_processes)
    ]
    assert {len(share) for share in shares} == {plan.steps * plan.accumulate}
    for step in range(plan.steps):
        parts = [share[step * plan.accumulate + k] for share in shares for k in range(plan.accumulate)]
        # What data parallelism and accumulation make of it: the mean over passes of weight times the mean of a pass.
        mean = sum(float(p["weight"]) * float(p["ids"].float().mean()) for p in parts) / len(parts)
        seen = [i for p in parts if float(p["weight"]) for i in p["ids"].tolist()]
        assert len(seen) == len(set(seen))
        assert mean == pytest.approx(sum(seen) / len(seen))
    epoch = [
        i for share in shares for p in list(share)[: len(share) // 2] if float(p["weight"]) for i in p["ids"].tolist()
    ]
    assert sorted(epoch) == list(range(n_items))


@pytest.mark.parametrize("name", ["subtb", "tb", "db"])
def test_a_pass_without_paths_gives_no_loss_with_or_without_leaf(name: str) -> None:
    nothing = torch.zeros(0, 1), torch.zeros(0, 2), torch.zeros(0, 1, dtype=torch.bool)
    for paths in (nothing, without_terminal(*nothing)):
        assert OBJECTIVES.resolve(name)(*paths).shape == (0,)
        options = {"subtb_lambda": 0.9} if name == "subtb" else {}
        squares, weights = TERMS.resolve(name)(potentials(*paths), paths[2], **options)
        assert squares.sum() == weights.sum() == 0
