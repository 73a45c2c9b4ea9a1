"""GRPO through TRL: what is passed, what TRL makes of it, that it learns, stops, and goes on."""

import json
import math

import pytest
import torch

from esckit.errors import ConfigError, DataError, TrainingError
from esckit.models.backbones import tiny_random
from esckit.rl.monitor import DevSet, GreedyWriter, Watch
from esckit.rl.recipe import PolicyOptim, plan_grpo
from esckit.rl.rewards import PairedRewards
from esckit.rl.trainer import grpo_arguments, grpo_trainer, learner_of, quiet_warnings
from esckit.training.harness import Diverged, TrainingRun
from esckit.training.sharding import EngineGuard
from tests.rl.rl_fakes import (
    PAPER,
    SCORE,
    Poison,
    PolicyLora,
    Stop,
    columns,
    learner,
    optim,
    paired,
    place,
    rows,
    said,
)


def small(**changes):
    settings = {name: getattr(PAPER, name) for name in PAPER.__slots__}
    return type(PAPER)(**{**settings, "prompts_per_step": 2, "max_completion_tokens": 16, **changes})


def trainer_of(folder, *callbacks, settings=None, rewards=None, **changes):
    policy = learner()
    return grpo_trainer(
        policy,
        rows(policy),
        rewards or paired(),
        settings=settings or small(),
        optim=optim(**changes),
        place=place(folder / "states", *callbacks),
    )


def fit(trainer, state=None):
    with quiet_warnings():
        trainer.train(resume_from_checkpoint=state)
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def watch(folder, rewards=None, **options):
    diverged = Diverged(TrainingRun(folder), lambda: rewards.context_ids if rewards else ())
    return Watch(
        folder,
        **{"every": 1, "resumed_step": 0, "steps_per_epoch": 4, "diverged": diverged, "max_unscored": 0.05, **options},
    )


def test_every_value_of_the_paper_and_ours_is_passed(tmp_path):
    settings = PolicyOptim(seed=7, lr=1e-6, epochs=2)
    plan = plan_grpo(PAPER, settings, n_rows=10_191, n_processes=1)
    assert (plan.accumulate, plan.steps_per_epoch, plan.steps) == (4, 2547, 5094)
    found = grpo_arguments(PAPER, settings, plan, folder=tmp_path)
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
    settings = small(n_generations=generations, prompts_per_step=prompts, micro_batch=micro)
    with pytest.raises(ConfigError, match=rf"16 outputs .* over {processes} processes.*divides them: 1, 2, 4, 8, 16"):
        plan_grpo(settings, optim(), n_rows=64, n_processes=processes)


@pytest.mark.parametrize(("processes", "micro", "accumulate"), [(1, 4, 4), (2, 4, 2), (4, 4, 1), (8, 2, 1)])
def test_the_papers_step_is_shared_by_one_to_eight_devices(processes, micro, accumulate):
    plan = plan_grpo(PAPER, optim(), n_rows=64, n_processes=processes)
    assert (plan.micro_batch, plan.accumulate, plan.steps_per_epoch) == (micro, accumulate, 16)


@pytest.mark.parametrize(("bound", "micro", "accumulate"), [(3, 2, 8), (5, 4, 4), (100, 16, 1)])
def test_the_micro_batch_is_a_bound_and_no_divisor(bound, micro, accumulate):
    settings = small(n_generations=4, prompts_per_step=4, micro_batch=bound)
    plan = plan_grpo(settings, optim(), n_rows=64, n_processes=1)
    assert (plan.micro_batch, plan.accumulate) == (micro, accumulate)


def test_fewer_contexts_than_a_step_takes_are_refused():
    with pytest.raises(DataError, match="1 contexts"):
        plan_grpo(small(), optim(), n_rows=1, n_processes=1)


def advantages(folder, future, form):
    """Return what TRL makes of rewards that are given to it."""
    rewards = paired(n_generations=4)
    rewards.future_reward = lambda prompts, completions, **columns: list(future)
    rewards.format_reward = lambda prompts, completions, **columns: list(form)
    for name in ("future_reward", "format_reward"):
        getattr(rewards, name).__name__ = name
    trainer = trainer_of(folder, settings=small(prompts_per_step=1), rewards=rewards, max_steps=1)
    fit(trainer)
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
    trainer = trainer_of(tmp_path, settings=small(beta=1.0))
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
    settings = small(max_completion_tokens=6)
    trainer = trainer_of(tmp_path, watch(tmp_path, every=4), settings=settings, max_steps=20)
    fit(trainer)
    future = [json.loads(line)["rl/reward/future"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert future[-1] > future[0] + 0.2


def test_a_nan_stops_the_run_before_it_reaches_the_weights(tmp_path):
    rewards = paired()
    watching = watch(tmp_path, rewards)
    guard = EngineGuard(lambda: trainer, watching._diverged.stop)
    trainer = trainer_of(tmp_path, watching, guard, Poison(2), rewards=rewards, max_steps=5, save_every=1)
    with pytest.raises(TrainingError, match="at step 2"):
        fit(trainer)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    facts = json.loads((tmp_path / "diverged.json").read_text())
    assert (facts["step"], len(facts["rows"]), len(facts["input_ids"])) == (2, 2, 8)
    assert (tmp_path / "states/checkpoint-2/adapter_model.safetensors").is_file()


def test_k_steps_resumed_by_k_steps_equal_two_k_steps_bit_for_bit(tmp_path):
    whole = fit(trainer_of(tmp_path / "whole", max_steps=8, epochs=2, save_every=100))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer_of(tmp_path / "cut", Stop(6), max_steps=8, epochs=2, save_every=5))
    # Four steps make an epoch, so the run goes on in the middle of the second one.
    resumed = fit(trainer_of(tmp_path / "cut", max_steps=8, epochs=2), str(tmp_path / "cut/states/checkpoint-5"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_batch_that_is_used_twice_is_never_cut_by_a_state(tmp_path):
    twice = small(iterations=2, max_completion_tokens=6)
    whole = fit(trainer_of(tmp_path / "whole", watch(tmp_path / "whole"), settings=twice, max_steps=8))
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert ["rl/reward/future" in row for row in rows] == [True, False] * 4
    with pytest.raises(KeyboardInterrupt):
        fit(trainer_of(tmp_path / "cut", Stop(6), settings=twice, max_steps=8, save_every=3))
    # Of the outputs of step 3 a state would hold nothing.
    assert [path.name for path in (tmp_path / "cut/states").glob("checkpoint-*")] == ["checkpoint-4"]
    resumed = fit(trainer_of(tmp_path / "cut", settings=twice, max_steps=8), str(tmp_path / "cut/states/checkpoint-4"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_cut_after_its_last_state_takes_no_further_step(tmp_path):
    whole = fit(trainer_of(tmp_path, max_steps=3))
    trainer = trainer_of(tmp_path, max_steps=3)
    again = fit(trainer, str(tmp_path / "states/checkpoint-3"))
    assert trainer.state.global_step == 3
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_last_batch_that_would_be_used_in_part_is_refused():
    with pytest.raises(ConfigError, match="max_steps 5 with 2 updates"):
        plan_grpo(small(iterations=2), optim(max_steps=5), n_rows=64, n_processes=1)


def test_only_attention_and_mlp_get_an_adapter_and_the_base_stays(tmp_path):
    trainer = trainer_of(tmp_path)
    names = {
        name.split(".lora_")[0].rpartition(".")[2] for name, p in trainer.model.named_parameters() if p.requires_grad
    }
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_dev_replies_are_greedy_and_leave_mode_and_random_state_alone():
    model, tokenizer = tiny_random()
    policy = learner_of(model, tokenizer, PolicyLora())
    writer = GreedyWriter(tokenizer, tuple(policy.chat.stop_ids), max_tokens=6, batch_size=3)
    prompts = [row["prompt"] for row in rows(policy, 4)]
    model.train()
    before = torch.get_rng_state()
    together = writer(model, prompts)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
    assert together == [writer(model, [each])[0] for each in prompts]
    metrics = DevSet(rows(policy, 4), writer, paired(SCORE)).measure(model, 0)
    assert metrics["dev/format_share"] == 0.0
    assert 0.0 <= metrics["dev/reward/future"] <= 1.0


def test_a_failed_dev_reply_is_counted_and_no_number():
    model, tokenizer = tiny_random()
    policy = learner_of(model, tokenizer, PolicyLora())
    writer = GreedyWriter(tokenizer, tuple(policy.chat.stop_ids), max_tokens=4, batch_size=2)
    unmeasured: PairedRewards = paired(lambda turns, replies: [None] * len(replies))
    metrics = DevSet(rows(policy, 2), writer, unmeasured).measure(model, 0)
    assert metrics == {"dev/reward/future": None, "dev/format_share": 0.0, "dev/unscored_share": 1.0}
