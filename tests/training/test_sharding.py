"""How a training is shared: one GPU without a launcher, equal steps, and failures that reach everybody."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from esckit.errors import ConfigError, ModelError
from esckit.flow.objectives import objective, path_terms, potentials, without_terminal
from esckit.training.run import gathered, share_batch, together
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


@pytest.mark.parametrize("name", ["subtb", "tb", "db"])
def test_a_pass_without_paths_gives_no_loss_with_or_without_leaf(name: str) -> None:
    nothing = torch.zeros(0, 1), torch.zeros(0, 2), torch.zeros(0, 1, dtype=torch.bool)
    for paths in (nothing, without_terminal(*nothing)):
        assert objective(name, subtb_lambda=0.9)(*paths).shape == (0,)
        squares, weights = path_terms(name, subtb_lambda=0.9)(potentials(*paths), paths[2])
        assert squares.sum() == weights.sum() == 0
