"""What GRPO and DPO share: the policy to train, the arguments of the Hugging Face ``Trainer``, and what is kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import GenerationConfig, TrainerCallback, TrainingArguments

from esckit.models.backbones import resolve_backbone
from esckit.models.capabilities import checkpointing_arguments
from esckit.models.chat import ChatFormat
from esckit.models.loading import check_lora_targets, load_causal, tidy_adapter
from esckit.models.rl_policy import ADAPTER, METADATA, TOKENIZER, PolicyMetadata
from esckit.models.stored import check_stored
from esckit.records import dump_line, fresh_folder, write_atomic
from esckit.train.optim import check_trackers
from esckit.train.rl_plan import PolicyOptim
from esckit.train.rl_template import training_format

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
        state: The trained tensors, whole (:func:`esckit.train.sharding.gathered_state`).
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
