"""GRPO through TRL: what is passed, what TRL makes of it, that it learns, stops, and goes on."""

import json
import math

import pytest
import torch

from esckit.errors import ConfigError, DataError, TrainingError
from esckit.models.in_memory import build
from esckit.rl.monitor import DevSet, means, watched
from esckit.rl.recipe import TrainRlRecipe, plan_steps
from esckit.rl.rewards import PairedRewards
from esckit.rl.trainer import grpo_arguments, make_trainer
from esckit.training.harness import Diverged
from esckit.training.learner import learner_of
from esckit.training.monitor import Monitor
from esckit.training.run import TrainingRun
from esckit.training.sharding import EngineGuard
from tests.rl.rl_fakes import SCORE, Poison, Stop, columns, learner, optim, paired, resumed, rows, said, trained
from tests.rl.rl_runs import recipe

PAPER = recipe(grpo=None, optim=None, logging=None)


def small(save_every=1000, grpo=None, **changes) -> TrainRlRecipe:
    return recipe(
        grpo={"prompts_per_step": 2, "max_prompt_tokens": 2048, "max_completion_tokens": 16, **(grpo or {})},
        optim=optim(**changes),
        logging={"save_every": save_every},
    )


def planned(ours, n_rows=64, n_processes=1):
    return plan_steps(ours, n_rows=n_rows, n_processes=n_processes)


def trainer_of(ours, run, *callbacks, rewards=None):
    policy = learner()
    return make_trainer(
        ours, policy, rows(policy), rewards=rewards or paired(), plan=planned(ours, 8), run=run, callbacks=callbacks
    )


def fitted(ours, run, *callbacks):
    return trained(trainer_of(ours, run, *callbacks), run)


def watching(run, diverged=None, every=1):
    return Monitor(run, diverged or Diverged(run, list), watched=watched, means=means, epoch=float, every=every)


def test_every_value_of_the_paper_and_ours_is_passed(tmp_path):
    plan = planned(PAPER, 10_191)
    assert (plan.accumulate, plan.steps_per_epoch, plan.steps) == (4, 2547, 5094)
    found = grpo_arguments(PAPER, plan, TrainingRun(tmp_path))
    wanted = {
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "steps_per_generation": 4,
        "generation_batch_size": 16,
        "learning_rate": 1e-6,
        "max_steps": 5094,
        "warmup_steps": math.ceil(0.03 * 5094),
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "temperature": 1.1,
        "top_k": 80,
        "top_p": 1.0,
        "beta": 0.04,
        "epsilon": 0.2,
        "epsilon_high": 0.2,
        "num_iterations": 1,
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "scale_rewards": "group",
        "multi_objective_aggregation": "sum_then_normalize",
        "reward_weights": [1.0, 0.5],
        "use_bias_correction_kl": False,
        "mask_truncated_completions": False,
        "max_completion_length": 512,
        "remove_unused_columns": False,
        "disable_dropout": True,
        "gradient_checkpointing": True,
        "logging_nan_inf_filter": False,
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "use_vllm": False,
        "shuffle_dataset": False,
    }
    assert {name: getattr(found, name) for name in wanted} == wanted


@pytest.mark.parametrize(("generations", "prompts", "micro", "processes"), [(4, 4, 4, 3), (4, 4, 2, 32)])
def test_a_batch_that_cannot_be_shared_evenly_is_refused(generations, prompts, micro, processes):
    ours = small(grpo={"n_generations": generations, "prompts_per_step": prompts, "micro_batch": micro})
    with pytest.raises(ConfigError, match=rf"16 outputs .* over {processes} processes.*divides them: 1, 2, 4, 8, 16"):
        planned(ours, n_processes=processes)


@pytest.mark.parametrize(("processes", "micro", "accumulate"), [(1, 4, 4), (2, 4, 2), (4, 4, 1), (8, 2, 1)])
def test_the_papers_step_is_shared_by_one_to_eight_devices(processes, micro, accumulate):
    plan = planned(PAPER, n_processes=processes)
    assert (plan.micro_batch, plan.accumulate, plan.steps_per_epoch) == (micro, accumulate, 16)


@pytest.mark.parametrize(("bound", "micro", "accumulate"), [(3, 2, 8), (5, 4, 4), (100, 16, 1)])
def test_the_micro_batch_is_a_bound_and_no_divisor(bound, micro, accumulate):
    plan = planned(small(grpo={"n_generations": 4, "prompts_per_step": 4, "micro_batch": bound}))
    assert (plan.micro_batch, plan.accumulate) == (micro, accumulate)


def test_fewer_contexts_than_a_step_takes_are_refused():
    with pytest.raises(DataError, match="1 contexts"):
        planned(small(), n_rows=1)


def advantages(folder, future, form):
    """Return what TRL makes of rewards that are given to it."""
    rewards = paired(n_generations=4)
    rewards.future_reward = lambda prompts, completions, **columns: list(future)
    rewards.format_reward = lambda prompts, completions, **columns: list(form)
    for name in ("future_reward", "format_reward"):
        getattr(rewards, name).__name__ = name
    ours = small(grpo={"prompts_per_step": 1}, max_steps=1)
    trainer = trainer_of(ours, TrainingRun(folder), rewards=rewards)
    trained(trainer, TrainingRun(folder))
    return list(trainer._logs["advantages"])


@pytest.mark.parametrize(
    ("future", "form", "expected"),
    [
        ((0.62, 0.41, 0.55, 0.30), (1, 1, 0, 1), (1.158499, 0.273827, -1.242753, -0.189572)),
        ((0.5, 0.5, 0.5, 0.5), (1, 1, 1, 1), (0, 0, 0, 0)),
        ((0.62, 0.41, None, 0.30), (1, 1, None, 1), (1.085954, -0.204897, 0, -0.881057)),
        # What must never happen: a reply of which only the form is known passes for a poor one.
        ((0.62, 0.41, None, 0.30), (1, 1, 1, 1), (None, None, -1.286385, None)),
    ],
    ids=["all measured", "all equal", "one unmeasured", "the trap"],
)
def test_the_advantages_that_trl_computes(tmp_path, future, form, expected):
    found = advantages(tmp_path, future, form)
    for ours, wanted in zip(found, expected, strict=True):
        assert wanted is None or ours == pytest.approx(wanted, abs=2e-5)


def test_the_trap_cannot_happen():
    texts = [f"<think>a</think> <response>reply {index}</response>" for index in range(4)]
    rewards = paired(lambda turns, replies: [None if "2" in reply else 0.5 for reply in replies])
    given = columns(4, context_ids=["c"] * 4)
    pairs = zip(
        rewards.future_reward([], said(*texts), **given), rewards.format_reward([], said(*texts), **given), strict=True
    )
    assert list(pairs) == [(0.5, 1.0), (0.5, 1.0), (None, None), (0.5, 1.0)]


@pytest.mark.parametrize(("delta", "expected"), [(0.1, 0.005171), (-0.1, 0.004837)])
def test_the_kl_estimator(tmp_path, delta, expected):
    trainer = trainer_of(small(grpo={"beta": 1.0}), TrainingRun(tmp_path))
    trainer.model.eval()
    ids, ones = torch.tensor([[40, 41, 42, 43]]), torch.ones(1, 2, dtype=torch.long)
    with torch.no_grad():
        log_p = trainer._get_per_token_logps_and_entropies(trainer.model, ids, torch.ones_like(ids), 2)[0]
        loss = trainer._compute_loss(
            trainer.model,
            {
                "prompt_ids": ids[:, :2],
                "prompt_mask": ones,
                "completion_ids": ids[:, 2:],
                "completion_mask": ones,
                "advantages": torch.zeros(1),
                "ref_per_token_logps": log_p + delta,
                "num_items_in_batch": torch.tensor(2),
            },
        )
    assert loss.item() == pytest.approx(expected, abs=2e-6)


def test_a_toy_reward_is_learnt(tmp_path):
    run = TrainingRun(tmp_path)
    fitted(small(grpo={"max_completion_tokens": 6}, max_steps=20), run, watching(run, every=4))
    future = [json.loads(line)["rl/reward/future"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert future[-1] > future[0] + 0.2


def test_a_nan_stops_the_run_before_it_reaches_the_weights(tmp_path):
    rewards, run = paired(), TrainingRun(tmp_path)
    diverged = Diverged(run, lambda: rewards.context_ids)
    callbacks = [watching(run, diverged), EngineGuard(lambda: trainer, diverged.stop), Poison(2)]
    trainer = trainer_of(small(save_every=1, max_steps=5), run, *callbacks, rewards=rewards)
    with pytest.raises(TrainingError, match="at step 2"):
        trained(trainer, run, diverged)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    facts = json.loads((tmp_path / "diverged.json").read_text())
    assert (facts["step"], len(facts["rows"]), len(facts["input_ids"])) == (2, 2, 8)
    assert (tmp_path / "states/checkpoint-2/adapter_model.safetensors").is_file()


def test_a_resumed_training_equals_a_whole_one_bit_for_bit(tmp_path):
    whole = fitted(small(max_steps=8, epochs=2), TrainingRun(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        fitted(small(save_every=5, max_steps=8, epochs=2), TrainingRun(tmp_path / "cut"), Stop(6))
    # Four steps make an epoch, so the run goes on in the middle of the second one.
    run = resumed(tmp_path / "cut")
    assert run.resumed_step == 5
    again = fitted(small(max_steps=8, epochs=2), run)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_batch_that_is_used_twice_is_never_cut_by_a_state(tmp_path):
    twice = {"iterations": 2, "max_completion_tokens": 6}
    run = TrainingRun(tmp_path / "whole")
    whole = fitted(small(grpo=twice, max_steps=8), run, watching(run))
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert ["rl/reward/future" in row for row in rows] == [True, False] * 4
    with pytest.raises(KeyboardInterrupt):
        fitted(small(save_every=3, grpo=twice, max_steps=8), TrainingRun(tmp_path / "cut"), Stop(6))
    # Of the outputs of step 3 a state would hold nothing.
    assert [path.name for path in (tmp_path / "cut/states").glob("checkpoint-*")] == ["checkpoint-4"]
    again = fitted(small(grpo=twice, max_steps=8), resumed(tmp_path / "cut"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_run_cut_after_its_last_state_takes_no_further_step(tmp_path):
    whole = fitted(small(max_steps=3), TrainingRun(tmp_path))
    run = resumed(tmp_path)
    trainer = trainer_of(small(max_steps=3), run)
    again = trained(trainer, run)
    assert trainer.state.global_step == 3
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_last_batch_that_would_be_used_in_part_is_refused():
    with pytest.raises(ConfigError, match="max_steps 5 with 2 updates"):
        planned(small(grpo={"iterations": 2}, max_steps=5))


def test_only_attention_and_mlp_get_an_adapter(tmp_path):
    trainer = trainer_of(small(), TrainingRun(tmp_path))
    names = {
        name.split(".lora_")[0].rpartition(".")[2] for name, p in trainer.model.named_parameters() if p.requires_grad
    }
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def dev_set(rewards, n=4, **options) -> tuple[DevSet, object]:
    model, tokenizer = build("tiny-random")
    policy = learner_of(model, tokenizer)
    settings = {"max_tokens": 6, "batch_size": 3, **options}
    return DevSet(rows(policy, n), rewards, tokenizer, tuple(policy.chat.stop_ids), **settings), model


def test_dev_replies_are_greedy_and_leave_the_model_alone():
    dev, model = dev_set(paired(SCORE))
    prompts = [row["prompt"] for row in dev.rows]
    model.train()
    before = torch.get_rng_state()
    together = dev.write(model, prompts)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
    assert together == [dev.write(model, [each])[0] for each in prompts]
    metrics = dev.measure(model, 0)
    assert metrics["dev/format_share"] == 0.0
    assert 0.0 <= metrics["dev/reward/future"] <= 1.0


class Recorded(DevSet):
    """Dev contexts with recorded answers."""

    def write(self, model, prompts):
        return ["Hi.\nPatient: Thank you!", "Patient: Thank you!"]


def test_a_dev_reply_is_read_as_it_would_be_said():
    asked = []
    rewards = paired(lambda turns, replies: asked.extend(replies) or [0.5] * len(replies))
    said_by_it = Recorded(rows(learner(), 2), rewards, None, (), max_tokens=6, batch_size=2)
    assert said_by_it.measure(None, 0)["dev/reward/future"] == 0.25
    assert asked == ["Hi."]


def test_a_failed_dev_reply_is_counted_and_no_number():
    unmeasured: PairedRewards = paired(lambda turns, replies: [None] * len(replies))
    dev, model = dev_set(unmeasured, 2, max_tokens=4, batch_size=2)
    metrics = dev.measure(model, 0)
    assert metrics == {"dev/reward/future": None, "dev/format_share": 0.0, "dev/unscored_share": 1.0}
