"""DPO through TRL: nothing is cut, it learns which of two is better, and it goes on where it stopped."""

import json

import pytest
import torch

from esckit.errors import ConfigError, DataError
from esckit.rl.monitor import means, watched
from esckit.rl.recipe import TrainRlRecipe, plan_steps
from esckit.rl.trainer import dpo_arguments, make_trainer
from esckit.training.harness import Diverged
from esckit.training.monitor import Monitor
from esckit.training.run import TrainingRun
from esckit.training.sharding import EngineGuard
from tests.rl.rl_fakes import Stop, learner, optim, resumed, rows, trained
from tests.rl.rl_runs import recipe


def dpo(logging=None, dpo=None, **changes) -> TrainRlRecipe:
    return recipe(
        algorithm="dpo",
        inputs=("runs/x",),
        data=None,
        dpo=dpo or {"batch_size": 4},
        optim=optim(**changes),
        monitor={"dev_every": None},
        logging={"save_every": 1000} | (logging or {}),
    )


def fitted(run: TrainingRun, *callbacks, ids=list, logging=None, **changes):
    ours = dpo(logging, **changes)
    policy = learner()
    pairs = [
        {
            "context_id": row["context_id"],
            "prompt": row["prompt"],
            "chosen": [
                {"role": "assistant", "content": f"<think>a</think> <response>yes {row['context_id']}</response>"}
            ],
            "rejected": [
                {"role": "assistant", "content": f"<think>b</think> <response>no {row['context_id']}</response>"}
            ],
        }
        for row in rows(policy)
    ]
    diverged = Diverged(run, ids)
    watching = [
        Monitor(run, diverged, watched=watched, means=means, epoch=float, every=2),
        EngineGuard(lambda: trainer, diverged.stop),
    ]
    plan = plan_steps(ours, n_rows=len(pairs), n_processes=1)
    trainer = make_trainer(ours, policy, pairs, rewards=None, plan=plan, run=run, callbacks=[*watching, *callbacks])
    return trainer, trained(trainer, run, diverged)


def test_the_settings_are_passed_and_nothing_is_cut(tmp_path):
    ours = dpo(dpo={"batch_size": 16}, epochs=2)
    plan = plan_steps(ours, n_rows=40, n_processes=1)
    assert (plan.accumulate, plan.steps_per_epoch, plan.steps, plan.batch) == (8, 2, 4, 16)
    found = dpo_arguments(ours, plan, TrainingRun(tmp_path))
    assert (found.beta, found.max_length, found.loss_type, found.max_steps) == (0.1, 2561, ["sigmoid"], 4)
    assert found.gradient_accumulation_steps * found.per_device_train_batch_size == 16


def test_few_pairs_make_smaller_steps_and_none_are_refused():
    ours = dpo(dpo={"batch_size": 16})
    assert plan_steps(ours, n_rows=5, n_processes=1).batch == 5
    with pytest.raises(DataError, match="1 pairs"):
        plan_steps(ours, n_rows=1, n_processes=2)
    with pytest.raises(ConfigError, match=r"16 pairs .* over 3 processes"):
        plan_steps(ours, n_rows=50, n_processes=3)


def test_the_better_output_becomes_likelier_to_its_last_token(tmp_path):
    trainer, _ = fitted(TrainingRun(tmp_path), max_steps=6)
    example = trainer.train_dataset[0]
    text = trainer.processing_class.decode(example["chosen_ids"])
    assert text.startswith("<think>a</think> <response>yes")
    assert text.rstrip().endswith("</response><|im_end|>")
    margins = [json.loads(line)["rl/dpo/margin"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert margins[-1] > margins[0]


def test_a_resumed_training_equals_a_whole_one_bit_for_bit(tmp_path):
    _, whole = fitted(TrainingRun(tmp_path / "whole"), max_steps=6, epochs=3)
    with pytest.raises(KeyboardInterrupt):
        fitted(TrainingRun(tmp_path / "cut"), Stop(4), logging={"save_every": 3}, max_steps=6, epochs=3)
    run = resumed(tmp_path / "cut")
    assert run.resumed_step == 3
    _, again = fitted(run, max_steps=6, epochs=3)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_run_cut_after_its_last_state_takes_no_further_step(tmp_path):
    _, whole = fitted(TrainingRun(tmp_path), max_steps=3, epochs=2)
    trainer, again = fitted(resumed(tmp_path), max_steps=3, epochs=2)
    assert trainer.state.global_step == 3
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_off_a_terminal_no_bar_of_trl_is_drawn(tmp_path, capfd):
    fitted(TrainingRun(tmp_path), max_steps=1)
    assert "examples/s" not in capfd.readouterr().err
