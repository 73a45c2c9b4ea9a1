"""The DPO ablation through TRL's trainer: the better and the worse of a context's simulated candidates.

arXiv 2508.12935 reports the ablation without its settings. The reference is the model with its adapter off.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer

from esckit.train.rl_plan import DpoPlan, DpoSettings, PolicyOptim, plan_dpo
from esckit.train.rl_rows import epoch_order
from esckit.train.rl_trainer import Learner, Place, quiet, quiet_warnings, trainer_arguments
from esckit.train.sharding import one_device


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
        pairs: As :func:`esckit.train.rl_pairs.build_pairs` makes them.
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
