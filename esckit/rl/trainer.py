"""GRPO and DPO through TRL's trainers, by composition: ours are rows, rewards, settings and callbacks.

GRPO (arXiv 2508.12935): A_i = (R_i − mean) / (std + 1e-4) within the outputs of one context; the objective is the mean
over the group of min(ρA, clip(ρ, 1−ε, 1+ε)A) − β·KL, with the per-token estimator KL = e^Δ − Δ − 1,
Δ = log π_ref − log π. **Every value is passed explicitly**, since TRL's defaults differ between versions.

DPO is the paper's ablation, reported without its settings: the better and the worse of a context's simulated
candidates. In both, π_ref is the model with its adapter off.

This module imports torch; :mod:`esckit.rl.run` says what a run does, and what is written about it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import util
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset, disable_progress_bars
from transformers import TrainerCallback, TrainingArguments
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from esckit.errors import ConfigError, DataError, MissingExtraError, TrainingError
from esckit.models.backbones import resolve_backbone
from esckit.models.checkpoint import FOLDER, checkpoint_folder, read_metadata
from esckit.models.loading import checkpointing_arguments, load_causal
from esckit.prompts.prompt import load_prompt
from esckit.rl.monitor import DevEvaluation, DevSet, Samples, Watch, means, watched
from esckit.rl.recipe import Correction, TrainRlRecipe, plan_steps
from esckit.rl.rewards import PairedRewards, open_measure
from esckit.rl.rows import RlMaterial, build_pairs, build_rows
from esckit.training.checkpoint import adapter_config, save_checkpoint
from esckit.training.harness import Diverged, fit, frozen_as, frozen_dtype, set_up, trainer_arguments
from esckit.training.learner import Learner, learner_of
from esckit.training.monitor import METRICS, Monitor, read_rows
from esckit.training.policy import PolicyMetadata, PolicyPrompt, load_start
from esckit.training.run import StepPlan, TrainingRun, gathered, training_order
from esckit.training.sharding import EngineGuard, gathered_state

A = TypeVar("A", bound=TrainingArguments)

_DEV_SCORE = "dev/reward/future"

# ---------------------------------------------------------------- TRL's trainers


def load_learner(recipe: TrainRlRecipe) -> Learner:
    """Load the backbone, or the run of ``train-sft``, to train an adapter on, its frozen weights as the recipe says.

    Raises:
        CheckpointError: If there is no such run.
        ConfigError: If there is no such backbone, or it cannot be trained.
    """
    policy = recipe.models.policy
    how: dict[str, Any] = {
        "dtype": frozen_dtype(policy, recipe.optim.precision),
        "quantisation": policy.quantisation,
        "attention": policy.attention,
    }
    if policy.checkpoint is not None:
        return learner_of(*load_start(Path(policy.checkpoint), **how))
    return learner_of(*load_causal(resolve_backbone(str(policy.backbone)), **how))


def _arguments(kind: type[A], recipe: TrainRlRecipe, plan: StepPlan, run: TrainingRun, **own: Any) -> A:
    """Return the arguments of one of TRL's trainers: what both share, and its own."""
    iterations = plan.steps // plan.n_batches
    return trainer_arguments(
        kind,
        recipe.optim,
        run=run,
        seed=recipe.seed,
        n_steps=plan.steps,
        precision=recipe.optim.precision,
        trackers=recipe.trackers,
        per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.accumulate,
        save_strategy="steps",
        # No state holds the outputs that further updates would use.
        save_steps=ceil(recipe.logging.save_every / iterations) * iterations,
        **checkpointing_arguments(TrainingArguments, wanted=recipe.optim.gradient_checkpointing),
        sync_ref_model=False,
        disable_dropout=True,
        **own,
    )


def grpo_arguments(recipe: TrainRlRecipe, plan: StepPlan, run: TrainingRun) -> GRPOConfig:
    """Return TRL's arguments of GRPO."""
    grpo, vllm, weights = recipe.grpo, recipe.grpo.vllm, recipe.reward.weights
    uses_vllm, correction = grpo.engine == "vllm", vllm.correction or Correction()
    return _arguments(
        GRPOConfig,
        recipe,
        plan,
        run,
        num_generations=grpo.n_generations,
        generation_batch_size=None,
        steps_per_generation=plan.accumulate,  # one batch of outputs is one optimiser step
        num_iterations=grpo.iterations,
        beta=grpo.beta,
        epsilon=grpo.epsilon,
        epsilon_high=grpo.epsilon,
        delta=None,
        loss_type=grpo.loss_type,
        importance_sampling_level="token",
        scale_rewards="group",
        multi_objective_aggregation="sum_then_normalize",
        reward_weights=[weights.future, weights.format],
        use_bias_correction_kl=False,
        mask_truncated_completions=False,
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        entropy_coef=0.0,
        use_adaptive_entropy=False,
        temperature=grpo.temperature,
        top_k=grpo.top_k,
        top_p=grpo.top_p,
        min_p=None,
        repetition_penalty=1.0,
        max_completion_length=grpo.max_completion_tokens,
        cache_implementation=None,
        generation_kwargs=None,
        use_transformers_continuous_batching=False,
        pad_to_multiple_of=None,
        shuffle_dataset=False,  # the rows are laid out in the order of training, see training_order
        cast_lm_head_to_fp32=False,
        log_completions=False,
        use_vllm=uses_vllm,
        vllm_mode=vllm.mode,
        vllm_server_base_url=vllm.server_base_url if uses_vllm and vllm.mode == "server" else None,
        vllm_gpu_memory_utilization=vllm.gpu_memory_utilization,
        vllm_tensor_parallel_size=vllm.tensor_parallel_size,
        vllm_enable_sleep_mode=vllm.sleep,
        vllm_max_model_length=grpo.max_prompt_tokens + grpo.max_completion_tokens,
        vllm_importance_sampling_correction=vllm.correction is not None,
        vllm_importance_sampling_mode=correction.mode,
        vllm_importance_sampling_clip_max=correction.clip_max,
        vllm_importance_sampling_clip_min=correction.clip_min,
    )


def dpo_arguments(recipe: TrainRlRecipe, plan: StepPlan, run: TrainingRun) -> DPOConfig:
    """Return TRL's arguments of DPO."""
    dpo = recipe.dpo
    return _arguments(
        DPOConfig,
        recipe,
        plan,
        run,
        beta=dpo.beta,
        loss_type=["sigmoid"],
        f_divergence_type="reverse_kl",
        label_smoothing=0.0,
        # Above what pairs can be long: the default would cut the end, which is the reply.
        max_length=dpo.max_prompt_tokens + dpo.max_completion_tokens + 1,
        truncation_mode="keep_start",
        padding_free=False,
        precompute_ref_log_probs=False,
        use_weighting=False,
        train_sampling_strategy="sequential",  # the pairs are laid out in the order of training
    )


def make_trainer(
    recipe: TrainRlRecipe,
    learner: Learner,
    rows: Sequence[dict[str, Any]],
    *,
    rewards: PairedRewards | None,
    plan: StepPlan,
    run: TrainingRun,
    callbacks: Sequence[TrainerCallback] = (),
) -> GRPOTrainer | DPOTrainer:
    """Return TRL's trainer of the recipe's algorithm, ready to train.

    Args:
        recipe: The recipe.
        learner: The policy.
        rows: As :func:`esckit.rl.rows.build_rows` makes them, for DPO as :func:`esckit.rl.rows.build_pairs` does.
        rewards: The two callables; None for DPO.
        plan: The steps over the rows.
        run: Where states to resume from lie.
        callbacks: What watches it.

    Raises:
        ConfigError: If the model lacks layers that the adapter names.
    """
    order = training_order(len(rows), n_batches=plan.n_batches, batch=plan.batch, seed=recipe.seed)
    if rewards is None:
        rows = [{name: pair[name] for name in ("prompt", "chosen", "rejected")} for pair in rows]
        if not sys.stderr.isatty():
            disable_progress_bars()
    shared: dict[str, Any] = {
        "model": learner.model,
        "train_dataset": Dataset.from_list(list(rows)).select(order),
        "processing_class": learner.tokenizer,
        "callbacks": list(callbacks),
        "peft_config": adapter_config(recipe.lora, learner.model, task_type="CAUSAL_LM"),
    }
    with quiet_warnings():
        if rewards is None:
            trainer = DPOTrainer(args=dpo_arguments(recipe, plan, run), **shared)
        else:
            functions = [rewards.future_reward, rewards.format_reward]
            trainer = GRPOTrainer(reward_funcs=functions, args=grpo_arguments(recipe, plan, run), **shared)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # on a quantised base TRL makes it bfloat16, in which small updates are lost
            parameter.data = parameter.data.float()
    return trainer


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Keep back conversations that TRL would log: a row that could not be measured may be confidential."""

    def holds_no_conversation(record: logging.LogRecord) -> bool:
        return "All reward functions returned None" not in record.getMessage()

    trl_log = logging.getLogger("trl.trainer.grpo_trainer")
    trl_log.addFilter(holds_no_conversation)
    try:
        yield
    finally:
        trl_log.removeFilter(holds_no_conversation)


# ---------------------------------------------------------------- one training


@dataclass(slots=True)
class Training:
    """One go at training, and what it has found so far.

    Attributes:
        facts: What the manifest says about the reward's models.
        counts: What became of the contexts, see :class:`esckit.rl.rows.Rows`.
        dev: Dev metrics before and after training.
        best: The best dev reward so far.
    """

    recipe: TrainRlRecipe
    material: RlMaterial
    run: TrainingRun
    learner: Learner
    prompt: PolicyPrompt
    trainer: Any = None
    facts: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    dev: dict[str, Mapping[str, float | None]] = field(default_factory=dict)
    best: float | None = None

    def note_dev(self, step: int, row: Mapping[str, Any]) -> bool:
        """Remember an evaluation; return whether it is the best so far (the untrained policy is none to keep)."""
        metrics = {name: value for name, value in row.items() if name.startswith("dev/")}
        self.dev |= {"before training" if step == 0 else "after training": metrics}
        score = metrics[_DEV_SCORE]
        if step == 0 or score is None or (self.best is not None and score <= self.best):
            return False
        self.best = score
        return True

    def has_policy(self) -> bool:
        """Return whether a policy is kept, not counting one that an earlier go left when it diverged.

        Called in all processes; the main one looks.
        """
        out = self.run.out
        return gathered([(out / FOLDER).is_dir() and not read_metadata(PolicyMetadata, out).diverged])[0][0]

    def keep(self, step: int, metrics: Mapping[str, float | None], *, diverged: bool = False) -> None:
        """Write the policy as it is; after a divergence only if all its weights are finite. Called in all processes."""
        state = gathered_state(self.trainer, trained_only=True)
        if not self.run.process.is_main or (diverged and not all(bool(t.isfinite().all()) for t in state.values())):
            return
        metadata = PolicyMetadata(
            backbone=self.material.backbone,
            frozen_as=frozen_as(self.recipe.models.policy, self.recipe.optim.precision),
            algorithm=self.recipe.algorithm,
            prompt=self.prompt.prompt.identity,
            reward=self.material.reward_facts,
            start=self.material.start,
            inputs=self.material.inputs,
            dialogue_ids=self.material.dialogue_ids,
            dev_ids=self.material.dev_ids,
            selected_by=self.recipe.optim.select,
            step=step,
            metrics=dict(metrics),
            diverged=diverged,
        )
        save_checkpoint(
            self.run.out / FOLDER,
            metadata,
            backbone=self.trainer.model,
            tokenizer=self.learner.tokenizer,
            state=state,
            start=None if self.material.start is None else checkpoint_folder(Path(self.material.start.run)),
        )


def train(recipe: TrainRlRecipe, material: RlMaterial, run: TrainingRun) -> Training:
    """Train, and keep the policy.

    Raises:
        TrainingError: If training diverged; the last finite policy is kept.
        EsckitError: See :mod:`esckit.errors`.
    """
    if recipe.algorithm == "grpo" and recipe.grpo.engine == "vllm":
        if util.find_spec("vllm") is None:
            raise MissingExtraError("grpo.engine 'vllm'", "vllm")
        if not torch.cuda.is_available():
            raise ConfigError("grpo.engine 'vllm' without a CUDA GPU", expected="one, or grpo.engine: transformers")
    set_up(run.process, seed=recipe.seed, threads=recipe.executor.threads)
    learner = load_learner(recipe)
    limit = (recipe.dpo if recipe.algorithm == "dpo" else recipe.grpo).max_prompt_tokens
    training = Training(recipe, material, run, learner, PolicyPrompt(load_prompt(recipe.prompt), learner.chat, limit))
    for row in read_rows(run.out / METRICS):
        if _DEV_SCORE in row and row["step"] <= run.resumed_step:
            training.note_dev(row["step"], row)
    with ExitStack() as stack:
        diverged = _dpo(training) if recipe.algorithm == "dpo" else _grpo(training, stack)
        try:
            with quiet_warnings():
                fit(training.trainer, run, diverged)
        except TrainingError:
            if not training.has_policy():
                training.keep(training.trainer.state.global_step, {}, diverged=True)
            raise
    if recipe.optim.select == "last" or not training.has_policy():
        training.keep(training.trainer.state.global_step, training.dev.get("after training", {}))
    return training


def _grpo(training: Training, stack: ExitStack) -> Diverged:
    """Make the trainer for GRPO; the reward's models are closed with the stack."""
    recipe, run, material, learner = training.recipe, training.run, training.material, training.learner
    by_id = {context.id: context for context in (*material.train, *material.dev)}
    measure, training.facts = stack.enter_context(open_measure(recipe, by_id, run))
    rewards = PairedRewards(measure, n_generations=recipe.grpo.n_generations, process_index=run.process.rank)
    built = build_rows(material.train, training.prompt)
    training.counts = built.counts
    if built.counts["too_long"] and len(built.rows) < recipe.grpo.prompts_per_step:
        raise DataError(
            f"{len(built.rows)} contexts to train on, once {built.counts['too_long']} that are too long are left out",
            expected=f"at least {recipe.grpo.prompts_per_step}, those of one step (grpo.prompts_per_step)",
            hint="Raise grpo.max_prompt_tokens",
        )
    plan = plan_steps(recipe, n_rows=len(built.rows), n_processes=run.process.count)
    diverged = Diverged(
        run,
        lambda: rewards.context_ids,
        advice="What measures the replies returned it, which is not trained here: fix reward.kind or its model",
    )
    monitor, *callbacks = _watching(training, diverged, plan)
    every, weights = recipe.monitor.sample_every, recipe.reward.weights
    if every is not None:
        n = recipe.monitor.samples
        callbacks.append(Samples(run, every=every, n=n, weights=(weights.future, weights.format), rewards=rewards))
    dev_rows = build_rows(material.dev[: recipe.dev.max_contexts], training.prompt).rows
    if recipe.monitor.dev_every is not None and dev_rows:

        def measured(step: int, metrics: Mapping[str, float | None]) -> None:
            monitor.row(step, metrics)
            if training.note_dev(step, metrics) and recipe.optim.select == "best_dev":
                training.keep(step, metrics)

        stop_ids = sorted(learner.chat.stop_ids)
        dev = DevSet(
            dev_rows, rewards, learner.tokenizer, stop_ids, recipe.grpo.max_completion_tokens, recipe.grpo.micro_batch
        )
        callbacks.append(
            DevEvaluation(dev, recipe.monitor.dev_every, run.resumed_step, measured, lambda: training.trainer)
        )
    training.trainer = make_trainer(
        recipe, learner, built.rows, rewards=rewards, plan=plan, run=run, callbacks=[monitor, *callbacks]
    )
    return diverged


def _dpo(training: Training) -> Diverged:
    """Make the trainer for DPO."""
    recipe, run, material = training.recipe, training.run, training.material
    built = build_pairs(
        {context.id: context for context in material.train},
        material.futures,
        training.prompt,
        require_format=recipe.dpo.require_format,
        max_completion_tokens=recipe.dpo.max_completion_tokens,
    )
    training.counts = built.counts
    plan = plan_steps(recipe, n_rows=len(built.rows), n_processes=run.process.count)
    order = training_order(len(built.rows), n_batches=plan.n_batches, batch=plan.batch, seed=recipe.seed)

    def context_ids() -> list[str]:
        first = watch.step * plan.batch
        return [built.rows[index]["context_id"] for index in order[first : first + plan.batch]]

    diverged = Diverged(run, context_ids)
    monitor, watch, guard = _watching(training, diverged, plan)
    training.trainer = make_trainer(
        recipe, training.learner, built.rows, rewards=None, plan=plan, run=run, callbacks=[monitor, watch, guard]
    )
    return diverged


def _watching(training: Training, diverged: Diverged, plan: StepPlan) -> tuple[Monitor, Watch, EngineGuard]:
    """Return the callbacks that every training has."""
    monitor = Monitor(
        training.run,
        diverged,
        watched=watched,
        means=means,
        epoch=lambda step: round(step / plan.steps_per_epoch, 4),
        every=training.recipe.monitor.log_every,
    )
    guard = EngineGuard(lambda: training.trainer, diverged.stop)
    return monitor, Watch(training.recipe.max_failure_rate), guard
