"""GRPO through TRL's trainer, by composition: ours are rows, rewards, settings and callbacks (arXiv 2508.12935).

A_i = (R_i − mean) / (std + 1e-4) within the outputs of one context; the objective is the mean over the group of
min(ρA, clip(ρ, 1−ε, 1+ε)A) − β·KL, with the per-token estimator KL = e^Δ − Δ − 1, Δ = log π_ref − log π, and π_ref the
model with its adapter off. **Every value is passed explicitly**, since TRL's defaults differ between versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from esckit.train.rl_plan import GrpoPlan, GrpoSettings, PolicyOptim, VllmSettings, plan_grpo
from esckit.train.rl_rewards import PairedRewards
from esckit.train.rl_rows import epoch_order
from esckit.train.rl_trainer import Learner, Place, quiet, quiet_warnings, trainer_arguments
from esckit.train.sharding import one_device


def grpo_arguments(settings: GrpoSettings, optim: PolicyOptim, plan: GrpoPlan, *, folder: Path) -> GRPOConfig:
    """Return TRL's arguments; ``folder`` takes the states to resume from."""
    vllm = settings.vllm or VllmSettings()
    optim = replace(optim, save_every=ceil(optim.save_every / settings.iterations) * settings.iterations)
    arguments = GRPOConfig(
        **trainer_arguments(optim, steps=plan.steps, accumulate=plan.accumulate, folder=folder),
        per_device_train_batch_size=plan.micro_batch,
        num_generations=settings.n_generations,
        generation_batch_size=None,
        steps_per_generation=plan.accumulate,  # one batch of outputs is one optimiser step
        num_iterations=settings.iterations,
        beta=settings.beta,
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon,
        delta=None,
        loss_type=settings.loss_type,
        importance_sampling_level="token",
        scale_rewards="group",
        multi_objective_aggregation="sum_then_normalize",
        reward_weights=list(settings.weights),
        use_bias_correction_kl=False,
        sync_ref_model=False,
        mask_truncated_completions=False,
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        entropy_coef=0.0,
        use_adaptive_entropy=False,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=None,
        repetition_penalty=1.0,
        max_completion_length=settings.max_completion_tokens,
        cache_implementation=None,
        generation_kwargs=None,
        use_transformers_continuous_batching=False,
        pad_to_multiple_of=None,
        shuffle_dataset=False,  # the rows are laid out in the order of training, see epoch_order
        disable_dropout=True,
        cast_lm_head_to_fp32=False,
        log_completions=False,
        use_vllm=settings.vllm is not None,
        vllm_mode=vllm.mode,
        vllm_server_base_url=vllm.server_base_url if settings.vllm and vllm.mode == "server" else None,
        vllm_gpu_memory_utilization=vllm.gpu_memory_utilization,
        vllm_tensor_parallel_size=vllm.tensor_parallel_size,
        vllm_enable_sleep_mode=vllm.sleep,
        vllm_max_model_length=settings.max_prompt_tokens + settings.max_completion_tokens,
        vllm_importance_sampling_correction=True,
    )
    one_device(arguments)
    return arguments


def grpo_trainer(
    learner: Learner,
    rows: Sequence[dict[str, Any]],
    rewards: PairedRewards,
    *,
    settings: GrpoSettings,
    optim: PolicyOptim,
    place: Place,
) -> GRPOTrainer:
    """Return TRL's trainer, ready to train.

    Args:
        learner: The policy.
        rows: As :func:`esckit.train.rl_rows.build_rows` makes them.
        rewards: The two callables.
        settings: GRPO's.
        optim: The optimiser's.
        place: Where it runs.

    Raises:
        ConfigError: See :func:`plan_grpo`.
        DataError: If there are too few rows.
    """
    plan = plan_grpo(settings, optim, n_rows=len(rows), n_processes=place.n_processes)
    order = epoch_order(len(rows), plan.epochs, batch=settings.prompts_per_step, seed=optim.seed)
    # No more than will be used: the Trainer would take one step more when it is resumed from the last state.
    order = order[: plan.steps // settings.iterations * settings.prompts_per_step]
    with quiet_warnings():
        trainer = GRPOTrainer(
            model=learner.model,
            reward_funcs=[rewards.future_reward, rewards.format_reward],
            args=grpo_arguments(settings, optim, plan, folder=place.folder),
            train_dataset=Dataset.from_list(list(rows)).select(order),
            processing_class=learner.tokenizer,
            callbacks=list(place.callbacks),
            peft_config=learner.lora.config(),
        )
    quiet(trainer)
    return trainer
