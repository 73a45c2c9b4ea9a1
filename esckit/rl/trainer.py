"""What GRPO and DPO share: the policy to train, the arguments of the Hugging Face ``Trainer``, and what is kept.

GRPO through TRL's trainer, by composition: ours are rows, rewards, settings and callbacks (arXiv 2508.12935).

A_i = (R_i − mean) / (std + 1e-4) within the outputs of one context; the objective is the mean over the group of
min(ρA, clip(ρ, 1−ε, 1+ε)A) − β·KL, with the per-token estimator KL = e^Δ − Δ − 1, Δ = log π_ref − log π, and π_ref the
model with its adapter off. **Every value is passed explicitly**, since TRL's defaults differ between versions.

The DPO ablation through TRL's trainer: the better and the worse of a context's simulated candidates.

arXiv 2508.12935 reports the ablation without its settings. The reference is the model with its adapter off.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from torch import Tensor
from transformers import GenerationConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from esckit.models.backbones import resolve_backbone
from esckit.models.capabilities import checkpointing_arguments
from esckit.models.chat import ChatFormat
from esckit.models.loading import check_lora_targets, check_stored, load_causal, tidy_adapter
from esckit.records import dump_line, fresh_folder, write_atomic
from esckit.rl.policy import ADAPTER, METADATA, TOKENIZER, PolicyMetadata, training_format
from esckit.rl.recipe import (
    DpoPlan,
    DpoSettings,
    GrpoPlan,
    GrpoSettings,
    PolicyOptim,
    VllmSettings,
    plan_dpo,
    plan_grpo,
)
from esckit.rl.rewards import PairedRewards
from esckit.rl.rows import epoch_order
from esckit.training.sections import check_trackers
from esckit.training.sharding import one_device

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class PolicyLora:
    """The adapter; ``targets`` are names of modules, or ``all-linear`` for those of attention and MLP."""

    rank: int = 8
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] | str = "all-linear"

    def config(self) -> LoraConfig:
        """Return peft's configuration."""
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets if isinstance(self.targets, str) else list(self.targets),
            task_type="CAUSAL_LM",
        )


@dataclass(frozen=True, slots=True)
class Learner:
    """The policy before training.

    Attributes:
        model: The causal language model without adapter; its generation settings name all ends of an output.
        tokenizer: With the template of the training.
        chat: That template, and how messages come into it.
        lora: The adapter, which the trainer builds after it seeded the generators.
    """

    model: Any
    tokenizer: Any
    chat: ChatFormat
    lora: PolicyLora


@dataclass(frozen=True, slots=True)
class Place:
    """Where training runs.

    Attributes:
        folder: Takes the states to resume from.
        n_processes: How many processes train together.
        callbacks: What watches it, the guard first.
    """

    folder: Path
    n_processes: int = 1
    callbacks: tuple[TrainerCallback, ...] = ()


def learner_of(model: Any, tokenizer: Any, lora: PolicyLora) -> Learner:
    """Return a model as a policy to train: chat template, ends of an output, and no sampling habits of its own.

    Raises:
        ConfigError: If its chat template lacks what training needs and none of ours fits, or the model lacks layers
            that the adapter names.
    """
    if not isinstance(lora.targets, str):
        check_lora_targets(model, lora.targets)
    eos = model.generation_config.eos_token_id
    chat = training_format(tokenizer, [] if eos is None else [eos] if isinstance(eos, int) else list(eos))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.generation_config = GenerationConfig(
        eos_token_id=sorted(chat.stop_ids), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
    )
    return Learner(model, tokenizer, chat, lora)


def load_learner(backbone: str, lora: PolicyLora, *, precision: Precision) -> Learner:
    """Load a backbone to train an adapter on; with bfloat16 its frozen weights are kept in it too.

    Raises:
        ConfigError: If there is no such backbone, or it cannot be trained.
    """
    dtype = torch.bfloat16 if wants_bf16(precision) else torch.float32
    return learner_of(*load_causal(resolve_backbone(backbone), dtype=dtype), lora)


def wants_bf16(precision: Precision) -> bool:
    """Return whether to compute in bfloat16."""
    return precision == "bfloat16" or (precision == "auto" and torch.cuda.is_available())


def trainer_arguments(optim: PolicyOptim, *, steps: int, accumulate: int, folder: Path) -> dict[str, Any]:
    """Return what TRL's trainers share, as arguments of their configurations."""
    check_trackers(optim.trackers)
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "seed": optim.seed % 2**32,
        "data_seed": optim.seed % 2**32,
        "gradient_accumulation_steps": accumulate,
        "max_steps": steps,
        "learning_rate": optim.lr,
        "lr_scheduler_type": "constant_with_warmup" if optim.schedule == "constant" else optim.schedule,
        "warmup_steps": math.ceil(optim.warmup_share * steps),
        "weight_decay": optim.weight_decay,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": optim.max_grad_norm,
        "optim": "adamw_torch",
        "use_cpu": not on_gpu,
        "bf16": wants_bf16(optim.precision),
        "fp16": False,
        **checkpointing_arguments(TrainingArguments, wanted=optim.gradient_checkpointing),
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": optim.save_every,
        "save_total_limit": 1,
        "logging_strategy": "steps",
        "logging_steps": 1,  # every step is looked at for divergence; what is written is thinned out later
        "logging_nan_inf_filter": False,
        "report_to": list(optim.trackers) or "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": on_gpu,
        "dataloader_num_workers": 0,
        "ddp_find_unused_parameters": False,
    }


def save_policy(
    model: Any, state: Mapping[str, Tensor], tokenizer: Any, metadata: PolicyMetadata, folder: Path
) -> None:
    """Write adapter, tokenizer and metadata in place of the last checkpoint; a folder that is there is whole.

    Args:
        model: The model with its adapter; its weights may be shared out between processes.
        state: The trained tensors, whole (:func:`esckit.training.sharding.gathered_state`).
        tokenizer: With the template of the training.
        metadata: What to know of it.
        folder: Where to; replaced as a whole.

    Raises:
        CheckpointError: If what was written is not what was trained; the old folder stays.
    """
    with fresh_folder(folder) as fresh:
        model.save_pretrained(str(fresh / ADAPTER), state_dict=dict(state), selected_adapters=["default"])
        tidy_adapter(fresh / ADAPTER, metadata.backbone)
        tokenizer.save_pretrained(str(fresh / TOKENIZER))
        check_stored(state, fresh)
        write_atomic(fresh / METADATA, dump_line(metadata) + "\n")


def quiet(trainer: Any) -> None:
    """Keep the Trainer from printing: our own callbacks say what there is to say."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Keep back conversations that TRL would log."""
    trl_log = logging.getLogger("trl.trainer.grpo_trainer")
    trl_log.addFilter(_holds_no_conversation)
    try:
        yield
    finally:
        trl_log.removeFilter(_holds_no_conversation)


def _holds_no_conversation(record: logging.LogRecord) -> bool:
    """Return False for the dump of a row that could not be measured: such rows are counted, and may be confidential."""
    return "All reward functions returned None" not in record.getMessage()


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
        rows: As :func:`esckit.rl.rows.build_rows` makes them.
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


def dpo_arguments(settings: DpoSettings, optim: PolicyOptim, plan: DpoPlan, *, folder: Path) -> DPOConfig:
    """Return TRL's arguments; ``folder`` takes the states to resume from."""
    arguments = DPOConfig(
        **trainer_arguments(optim, steps=plan.steps, accumulate=plan.accumulate, folder=folder),
        per_device_train_batch_size=plan.micro_batch,
        beta=settings.beta,
        loss_type=["sigmoid"],
        f_divergence_type="reverse_kl",
        label_smoothing=0.0,
        # Above what pairs can be long: the default would cut the end, which is the reply.
        max_length=settings.max_prompt_tokens + settings.max_completion_tokens + 1,
        truncation_mode="keep_start",
        padding_free=False,
        precompute_ref_log_probs=False,
        use_weighting=False,
        sync_ref_model=False,
        disable_dropout=True,
        train_sampling_strategy="sequential",  # the pairs are laid out in the order of training
    )
    one_device(arguments)
    return arguments


class Batches(TrainerCallback):
    """The pairs in the order of training, and whose those of the current step are.

    Args:
        pairs: As :func:`esckit.rl.rows.build_pairs` makes them.
        settings: DPO's.
        optim: The optimiser's.
        n_processes: How many processes train together.

    Raises:
        ConfigError: If the pairs of a step cannot be shared evenly.
        DataError: If there are too few pairs.
    """

    def __init__(
        self, pairs: Sequence[dict[str, Any]], *, settings: DpoSettings, optim: PolicyOptim, n_processes: int
    ) -> None:
        self.plan = plan_dpo(settings, optim, n_pairs=len(pairs), n_processes=n_processes)
        order = epoch_order(len(pairs), self.plan.epochs, batch=self.plan.batch, seed=optim.seed)
        # No more than will be used: the Trainer would take one step more when it is resumed from the last state.
        self.pairs = [pairs[index] for index in order[: self.plan.steps * self.plan.batch]]
        self.context_ids: list[str] = []

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look up the step's pairs."""
        first = state.global_step * self.plan.batch
        self.context_ids = [pair["context_id"] for pair in self.pairs[first : first + self.plan.batch]]


def dpo_trainer(
    learner: Learner, batches: Batches, *, settings: DpoSettings, optim: PolicyOptim, place: Place
) -> DPOTrainer:
    """Return TRL's trainer, ready to train.

    Args:
        learner: The policy.
        batches: What it learns from.
        settings: DPO's.
        optim: The optimiser's.
        place: Where it runs.
    """
    if not sys.stderr.isatty():
        disable_progress_bars()
    columns = [{name: pair[name] for name in ("prompt", "chosen", "rejected")} for pair in batches.pairs]
    with quiet_warnings():
        trainer = DPOTrainer(
            model=learner.model,
            args=dpo_arguments(settings, optim, batches.plan, folder=place.folder),
            train_dataset=Dataset.from_list(columns),
            processing_class=learner.tokenizer,
            callbacks=[batches, *place.callbacks],
            peft_config=learner.lora.config(),
        )
    quiet(trainer)
    return trainer
