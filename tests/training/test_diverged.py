"""What ends a run whose numbers are not finite any more."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from esckit.errors import NotFiniteError, TrainingError
from esckit.training.harness import Diverged

TRAINER = SimpleNamespace(state=SimpleNamespace(global_step=3))


def diverged(folder: Path) -> Diverged:
    found = Diverged(folder / "diverged.json", lambda: ["c"], writes=True)
    found.note(3, {"loss": 0.5, "kl": math.nan})
    return found


def test_a_number_of_a_model_that_is_not_finite_leaves_what_every_divergence_leaves(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="at step 3: the reward is nan"), diverged(tmp_path).guarded(TRAINER):
        raise NotFiniteError("the reward", math.nan)
    assert json.loads((tmp_path / "diverged.json").read_text()) == {
        "schema": "esckit.diverged/1",
        "step": 3,
        "what": {"the reward": "nan"},
        "input_ids": ["c"],
        "rows": [{"step": 3, "loss": 0.5, "kl": "nan"}],
    }


def test_what_is_not_trained_is_not_helped_by_a_learning_rate(tmp_path: Path) -> None:
    found = Diverged(tmp_path / "diverged.json", lambda: ["c"], writes=True, advice="Mend the reward")
    with pytest.raises(TrainingError) as caught, found.guarded(TRAINER):
        raise NotFiniteError("the reward", math.nan)
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("Mend the reward")
    with pytest.raises(TrainingError) as caught:
        found.stop(3, {"loss": math.nan})
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("A lower optim.lr may help")


def test_a_policy_that_nothing_can_be_drawn_from_has_diverged(tmp_path: Path) -> None:
    guard = diverged(tmp_path)
    with pytest.raises(TrainingError, match="at step 3: a probability of the policy"), guard.guarded(TRAINER):
        torch.multinomial(torch.tensor([math.nan, 1.0]), 1)
    assert (tmp_path / "diverged.json").is_file()


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), diverged(tmp_path).guarded(TRAINER):
        raise RuntimeError("out of memory")
    assert not (tmp_path / "diverged.json").exists()
