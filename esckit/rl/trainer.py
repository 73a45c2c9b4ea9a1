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
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import util
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from datasets import Dataset, disable_progress_bars
from transformers import TrainerCallback, TrainingArguments
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from esckit.errors import ConfigError, DataError, MissingExtraError
from esckit.models.backbones import resolve_backbone
from esckit.models.checkpoint import checkpoint_folder
from esckit.models.loading import load_causal
from esckit.prompts.prompt import load_prompt
from esckit.rl.dialogues import DialogueDev, DialoguePlayer, DialogueRollout
from esckit.rl.monitor import DevEvaluation, DevSet, Samples, Watch, means, sample_row, watched
from esckit.rl.recipe import Correction, TrainRlRecipe, plan_steps
from esckit.rl.rewards import PairedRewards, open_measure, open_players
from esckit.rl.rows import RlMaterial, build_pairs, build_rows
from esckit.training.checkpoint import adapter_config
from esckit.training.harness import Diverged, frozen_as, frozen_dtype, set_up
from esckit.training.learner import (
    DevRecord,
    Learner,
    fit_and_keep,
    learner_of,
    train_in_float32,
    trl_arguments,
    write_supporter,
)
from esckit.training.monitor import Monitor
from esckit.training.policy import PolicyMetadata, PolicyPrompt, load_start
from esckit.training.run import StepPlan, TrainingRun, training_order
from esckit.training.sharding import EngineGuard

A = TypeVar("A", bound=TrainingArguments)

Rows = Sequence[dict[str, Any]]

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
    return trl_arguments(
        kind,
        recipe.optim,
        plan,
        run,
        seed=recipe.seed,
        trackers=recipe.trackers,
        # No state holds the outputs that further updates would use.
        save_steps=ceil(recipe.logging.save_every / iterations) * iterations,
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
    rewards: PairedRewards | DialogueRollout | None,
    plan: StepPlan,
    run: TrainingRun,
    callbacks: Sequence[TrainerCallback] = (),
) -> GRPOTrainer | DPOTrainer:
    """Return TRL's trainer of the recipe's algorithm, ready to train.

    Args:
        recipe: The recipe.
        learner: The policy.
        rows: As :func:`esckit.rl.rows.build_rows` makes them, for DPO as :func:`esckit.rl.rows.build_pairs` does.
        rewards: The two callables, which in dialogues play them too; None for DPO.
        plan: The steps over the rows.
        run: Where states to resume from lie.
        callbacks: What watches it.

    Raises:
        ConfigError: If the model lacks layers that the adapter names.
    """
    order = training_order(len(rows), n_batches=plan.n_batches, batch=plan.batch, seed=recipe.seed)
    rollout = rewards if isinstance(rewards, DialogueRollout) else None
    if rollout is not None:
        order = [index for index in order for _ in range(recipe.turns_per_output)]
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
            arguments = grpo_arguments(recipe, plan, run)
            trainer = GRPOTrainer(reward_funcs=functions, args=arguments, rollout_func=rollout, **shared)
    train_in_float32(trainer.model)
    return trainer


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Keep back conversations that TRL would log, which may be confidential, and that its rollouts may change."""

    def holds_no_conversation(record: logging.LogRecord) -> bool:
        return "All reward functions returned None" not in record.getMessage()

    trl_log = logging.getLogger("trl.trainer.grpo_trainer")
    trl_log.addFilter(holds_no_conversation)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
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
        dev: What was measured on dev.
    """

    recipe: TrainRlRecipe
    material: RlMaterial
    run: TrainingRun
    learner: Learner
    prompt: PolicyPrompt
    trainer: Any = None
    facts: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    dev: DevRecord = field(default_factory=lambda: DevRecord(_DEV_SCORE, lower_is_better=False))

    def keep(self, step: int, metrics: Mapping[str, float | None], *, diverged: bool = False) -> None:
        """Keep the policy as it is, see :func:`esckit.training.learner.write_supporter`."""
        material = self.material

        def metadata() -> PolicyMetadata:
            return PolicyMetadata(
                backbone=material.backbone,
                frozen_as=frozen_as(self.recipe.models.policy, self.recipe.optim.precision),
                algorithm=self.recipe.algorithm,
                prompt=self.prompt.prompt.identity,
                reward=material.reward_facts,
                start=material.start,
                inputs=material.inputs,
                dialogue_ids=material.dialogue_ids,
                dev_ids=material.dev_ids,
                selected_by=self.recipe.optim.select,
                step=step,
                metrics=dict(metrics),
                diverged=diverged,
            )

        start = None if material.start is None else checkpoint_folder(Path(material.start.run))
        prompt = self.prompt.prompt
        write_supporter(self.learner, self.trainer, self.run, metadata, diverged=diverged, prompt=prompt, start=start)


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
    training.dev.restore(run)
    with ExitStack() as stack, quiet_warnings():
        diverged = _dpo(training) if recipe.algorithm == "dpo" else _grpo(training, stack)
        fit_and_keep(
            training.trainer,
            run,
            diverged,
            kind=PolicyMetadata,
            optim=recipe.optim,
            dev=training.dev,
            keep=training.keep,
        )
    return training


def _grpo(training: Training, stack: ExitStack) -> Diverged:
    """Make the trainer for GRPO; the models that judge or play are closed with the stack."""
    recipe, run, learner = training.recipe, training.run, training.learner
    built = build_rows(training.material.train, training.prompt)
    training.counts = built.counts
    if built.counts["too_long"] and len(built.rows) < recipe.grpo.prompts_per_step:
        raise DataError(
            f"{len(built.rows)} contexts to train on, once {built.counts['too_long']} that are too long are left out",
            expected=f"at least {recipe.grpo.prompts_per_step}, those of one step (grpo.prompts_per_step)",
            hint="Raise grpo.max_prompt_tokens",
        )
    plan = plan_steps(recipe, n_rows=len(built.rows), n_processes=run.process.count)
    dev_rows = build_rows(training.material.dev[: recipe.dev.max_contexts], training.prompt).rows
    in_dialogues = recipe.episode == "dialogue"
    judging = (
        _dialogues(training, stack, built.rows, dev_rows, plan) if in_dialogues else _replies(training, stack, dev_rows)
    )
    rewards, sampled, dev, advice = judging
    diverged = Diverged(run, lambda: rewards.context_ids, advice=advice)
    monitor, *callbacks = _watching(training, diverged, plan)
    if (every := recipe.monitor.sample_every) is not None:
        callbacks.append(Samples(run, every=every, n=recipe.monitor.samples, rows=sampled))
    if recipe.monitor.dev_every is not None and dev_rows:

        def measured(step: int, metrics: Mapping[str, float | None]) -> None:
            monitor.row(step, metrics)
            if training.dev.note(step, metrics) and recipe.optim.select == "best_dev":
                training.keep(step, metrics)

        callbacks.append(
            DevEvaluation(dev, recipe.monitor.dev_every, run.resumed_step, measured, lambda: training.trainer)
        )
    training.trainer = make_trainer(
        recipe, learner, built.rows, rewards=rewards, plan=plan, run=run, callbacks=[monitor, *callbacks]
    )
    return diverged


class Judging(NamedTuple):
    """How the outputs of a training are judged.

    Attributes:
        rewards: The two callables.
        sampled: Returns this process's outputs of the last batch for reading.
        dev: Measures held-out contexts.
        advice: What to do about a reward that is not finite; None gives the same advice as otherwise.
    """

    rewards: PairedRewards | DialogueRollout
    sampled: Callable[[], Sequence[Mapping[str, Any]]]
    dev: DevSet | DialogueDev
    advice: str | None


def _replies(training: Training, stack: ExitStack, dev_rows: Rows) -> Judging:
    """Judge single replies to contexts."""
    recipe, learner = training.recipe, training.learner
    measure, training.facts = stack.enter_context(open_measure(recipe, training.material.by_id, training.run))
    rewards = PairedRewards(
        measure,
        n_generations=recipe.grpo.n_generations,
        process_index=training.run.process.rank,
        shuffle_seed=recipe.seed if recipe.reward.shuffled else None,
    )
    stop_ids = sorted(learner.chat.stop_ids)
    dev = DevSet(
        dev_rows, rewards, learner.tokenizer, stop_ids, recipe.grpo.max_completion_tokens, recipe.grpo.micro_batch
    )
    weights = recipe.reward.weights
    advice = "What measures the replies returned it, which is not trained here: fix reward.kind or its model"
    return Judging(rewards, lambda: [sample_row(each, weights) for each in rewards.last], dev, advice)


def _dialogues(training: Training, stack: ExitStack, rows: Rows, dev_rows: Rows, plan: StepPlan) -> Judging:
    """Play whole dialogues and judge their turns."""
    recipe, run, by_id = training.recipe, training.run, training.material.by_id
    players = stack.enter_context(open_players(recipe, run))
    training.facts = players.facts
    player = DialoguePlayer(recipe, training.prompt, training.learner.tokenizer, players)
    order = training_order(len(rows), n_batches=plan.n_batches, batch=plan.batch, seed=recipe.seed)
    contexts = [by_id[rows[index]["context_id"]] for index in order]
    rewards = DialogueRollout(player, contexts, plan=plan, run=run)
    return Judging(rewards, rewards.rows, DialogueDev(player, [by_id[row["context_id"]] for row in dev_rows]), None)


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
