"""DPO through TRL: nothing is cut, it learns which of two is better, and it goes on where it stopped."""

import json

import pytest
import torch

from esckit.errors import ConfigError, DataError, TrainingError
from esckit.rl.monitor import Watch
from esckit.rl.recipe import DpoSettings, plan_dpo
from esckit.rl.rows import epoch_order
from esckit.rl.trainer import Batches, dpo_arguments, dpo_trainer, quiet_warnings
from esckit.training.harness import Diverged, TrainingRun
from esckit.training.sharding import EngineGuard
from tests.rl.rl_fakes import Poison, Stop, learner, optim, place, rows

SETTINGS = DpoSettings(beta=0.1, batch_size=4, micro_batch=2, max_prompt_tokens=2048, max_completion_tokens=512)


def trainer_of(folder, *callbacks, **changes):
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
    settings = optim(**changes)
    batches = Batches(pairs, settings=SETTINGS, optim=settings, n_processes=1)
    diverged = Diverged(TrainingRun(folder), lambda: batches.context_ids)
    watch = Watch(folder, every=2, resumed_step=0, steps_per_epoch=2, diverged=diverged, max_unscored=0.05)
    guard = EngineGuard(lambda: trainer, diverged.stop)
    trainer = dpo_trainer(
        policy, batches, settings=SETTINGS, optim=settings, place=place(folder / "states", watch, guard, *callbacks)
    )
    return trainer


def fit(trainer, state=None):
    with quiet_warnings():
        trainer.train(resume_from_checkpoint=state)
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_the_settings_are_passed_and_nothing_is_cut(tmp_path):
    settings = DpoSettings(0.1, 16, 2, 2048, 512)
    plan = plan_dpo(settings, optim(epochs=2), n_pairs=40, n_processes=1)
    assert (plan.accumulate, plan.steps_per_epoch, plan.steps, plan.batch) == (8, 2, 4, 16)
    found = dpo_arguments(settings, optim(epochs=2), plan, folder=tmp_path)
    assert (found.beta, found.max_length, found.loss_type, found.max_steps) == (0.1, 2561, ["sigmoid"], 4)
    assert found.gradient_accumulation_steps * found.per_device_train_batch_size == 16


def test_few_pairs_make_smaller_steps_and_none_are_refused():
    settings = DpoSettings(0.1, 16, 2, 2048, 512)
    assert plan_dpo(settings, optim(), n_pairs=5, n_processes=1).batch == 5
    with pytest.raises(DataError, match="1 pairs"):
        plan_dpo(settings, optim(), n_pairs=1, n_processes=2)
    with pytest.raises(ConfigError, match=r"16 pairs .* over 3 processes"):
        plan_dpo(settings, optim(), n_pairs=50, n_processes=3)


def test_the_better_output_becomes_likelier_and_every_token_of_it_counts(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=6)
    example = trainer.train_dataset[0]
    text = trainer.processing_class.decode(example["chosen_ids"])
    assert text.startswith("<think>a</think> <response>yes")
    assert text.rstrip().endswith("</response><|im_end|>")
    fit(trainer)
    margins = [json.loads(line)["rl/dpo/margin"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert margins[-1] > margins[0]


def test_k_steps_resumed_by_k_steps_equal_two_k_steps_bit_for_bit(tmp_path):
    whole = fit(trainer_of(tmp_path / "whole", max_steps=6, epochs=3))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer_of(tmp_path / "cut", Stop(4), max_steps=6, epochs=3, save_every=3))
    resumed = fit(trainer_of(tmp_path / "cut", max_steps=6, epochs=3), str(tmp_path / "cut/states/checkpoint-3"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_diverged_run_names_the_pairs_of_the_step(tmp_path):
    with pytest.raises(TrainingError, match="at step 3"):
        fit(trainer_of(tmp_path, Poison(3), max_steps=6, epochs=3))
    order = epoch_order(8, 3, batch=4, seed=7)
    found = json.loads((tmp_path / "diverged.json").read_text())["input_ids"]
    assert found == [row["context_id"] for row in map(rows(learner()).__getitem__, order[12:16])]


def test_a_run_cut_after_its_last_state_takes_no_further_step(tmp_path):
    whole = fit(trainer_of(tmp_path, max_steps=3, epochs=2))
    trainer = trainer_of(tmp_path, max_steps=3, epochs=2)
    again = fit(trainer, str(tmp_path / "states/checkpoint-3"))
    assert trainer.state.global_step == 3
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_off_a_terminal_no_bar_of_trl_is_drawn(tmp_path, capfd):
    trainer_of(tmp_path, max_steps=1)
    assert "examples/s" not in capfd.readouterr().err
