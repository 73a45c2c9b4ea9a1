"""The harness of trainings: the Trainer's arguments, states to go on from, and what ends a run that diverged."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from esckit.errors import NotFiniteError, TrainingError
from esckit.reward.recipe import RewardOptim
from esckit.training.harness import Diverged, trainer_arguments
from esckit.training.run import TrainingRun, last_state

TRAINER = SimpleNamespace(state=SimpleNamespace(global_step=3))


def arguments(folder: Path, **own: Any) -> TrainingArguments:
    return trainer_arguments(
        TrainingArguments,
        RewardOptim(),
        run=TrainingRun(folder),
        seed=2**40,
        n_steps=26,
        precision="auto",
        trackers=(),
        **own,
    )


def test_what_matters_is_passed_explicitly(tmp_path: Path) -> None:
    args = arguments(tmp_path, gradient_accumulation_steps=8)
    assert (args.learning_rate, args.max_steps, args.max_grad_norm, args.weight_decay) == (1e-4, 26, 1.0, 0.0)
    assert (args.gradient_accumulation_steps, args.warmup_steps, args.lr_scheduler_type) == (8, 3, "linear")
    assert (args.adam_beta1, args.adam_beta2, args.optim) == (0.9, 0.999, "adamw_torch")
    assert (args.output_dir, args.report_to) == (str(tmp_path / "states"), [])
    assert args.disable_tqdm
    assert not args.logging_nan_inf_filter


def test_a_training_may_pass_arguments_of_its_own(tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="steps", save_steps=7, eval_on_start=True)
    assert (args.save_strategy, args.save_steps, args.eval_on_start) == ("steps", 7, True)
    assert not arguments(tmp_path).eval_on_start


def test_a_state_that_was_not_finished_is_passed_over(tmp_path: Path) -> None:
    assert last_state(tmp_path) is None
    for step, whole in ((8, True), (16, True), (24, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({}))
    assert last_state(tmp_path) == tmp_path / "checkpoint-16"
    (tmp_path / "checkpoint-24" / "trainer_state.json").write_text('{"best_metric": 0.')
    assert last_state(tmp_path) == tmp_path / "checkpoint-16"


@pytest.mark.parametrize(("trackers", "left"), [((), []), (("tensorboard",), ["states", "states/runs"])])
def test_states_go_and_what_trackers_wrote_stays(tmp_path: Path, trackers: tuple[str, ...], left: list[str]) -> None:
    for name in ("checkpoint-8", "runs"):
        (tmp_path / "states" / name).mkdir(parents=True)
    TrainingRun(tmp_path).forget_states(trackers)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == left


def diverged(folder: Path) -> Diverged:
    found = Diverged(TrainingRun(folder), lambda: ["c"])
    found.note(3, {"loss": 0.5, "kl": math.nan})
    return found


def test_any_number_that_is_not_finite_leaves_the_same_file(tmp_path: Path) -> None:
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
    found = Diverged(TrainingRun(tmp_path), lambda: ["c"], advice="Mend the reward")
    with pytest.raises(TrainingError) as caught, found.guarded(TRAINER):
        raise NotFiniteError("the reward", math.nan)
    assert str(caught.value.hint).endswith("Mend the reward")
    with pytest.raises(TrainingError) as caught:
        found.stop(3, {"loss": math.nan})
    assert str(caught.value.hint).endswith("A lower optim.lr may help")


def test_a_policy_that_nothing_can_be_drawn_from_has_diverged(tmp_path: Path) -> None:
    guard = diverged(tmp_path)
    with pytest.raises(TrainingError, match="at step 3: a probability of the policy"), guard.guarded(TRAINER):
        torch.multinomial(torch.tensor([math.nan, 1.0]), 1)
    assert (tmp_path / "diverged.json").is_file()


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), diverged(tmp_path).guarded(TRAINER):
        raise RuntimeError("out of memory")
    assert not (tmp_path / "diverged.json").exists()
