"""Settings of the optimiser, and how many steps they come to."""

import json
from pathlib import Path

import pytest

from esckit.errors import ConfigError
from esckit.training.harness import OptimSettings, last_state, plan_steps, training_arguments

PAPER = OptimSettings(seed=2**40, lr=1e-4, epochs=2, batch_size=1, accumulate=8)


def test_the_effective_batch_does_not_hang_on_the_number_of_processes():
    one, two = (plan_steps(PAPER, n_items=100, n_processes=n) for n in (1, 2))
    assert (one.accumulate, one.steps_per_epoch, one.steps, one.warmup) == (8, 13, 26, 3)
    assert (two.accumulate, two.steps) == (4, 26)


def test_processes_that_cannot_share_a_step_are_refused():
    with pytest.raises(ConfigError, match=r"8 examples .* over 3 processes.*divides them: 1, 2, 4, 8"):
        plan_steps(PAPER, n_items=100, n_processes=3)


def test_what_matters_is_passed_explicitly(tmp_path: Path):
    plan = plan_steps(PAPER, n_items=100, n_processes=1)
    args = training_arguments(PAPER, plan, folder=tmp_path, evaluate_first=True)
    assert (args.learning_rate, args.max_steps, args.max_grad_norm, args.weight_decay) == (1e-4, plan.steps, 1.0, 0.0)
    assert (args.gradient_accumulation_steps, args.warmup_steps, args.lr_scheduler_type) == (8, 3, "linear")
    assert (args.adam_beta1, args.adam_beta2, args.optim) == (0.9, 0.999, "adamw_torch")
    assert args.report_to == []
    assert args.disable_tqdm
    assert not args.logging_nan_inf_filter
    assert args.eval_on_start
    assert not training_arguments(PAPER, plan, folder=tmp_path, evaluate_first=False).eval_on_start


def test_a_state_that_was_not_finished_is_passed_over(tmp_path: Path):
    assert last_state(tmp_path) is None
    for step, whole in ((8, True), (16, True), (24, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({}))
    assert last_state(tmp_path) == tmp_path / "checkpoint-16"
    (tmp_path / "checkpoint-24" / "trainer_state.json").write_text('{"best_metric": 0.')
    assert last_state(tmp_path) == tmp_path / "checkpoint-16"
