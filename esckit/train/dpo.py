"""The DPO ablation through TRL's trainer: the better and the worse of a context's simulated candidates.

arXiv 2508.12935 reports the ablation without its settings. The reference is the model with its adapter off.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from esckit.train.rl_plan import DpoPlan, DpoSettings, PolicyOptim, plan_dpo
from esckit.train.rl_rows import epoch_order
from esckit.train.rl_trainer import Learner, Place, quiet, quiet_warnings, trainer_arguments


def dpo_arguments(settings: DpoSettings, optim: PolicyOptim, plan: DpoPlan, *, folder: Path) -> DPOConfig:
    """Return TRL's arguments; ``folder`` takes the states to resume from."""
    with quiet_warnings():
        return DPOConfig(
            **trainer_arguments(optim, steps=plan.steps, accumulate=plan.accumulate, folder=folder),
            per_device_train_batch_size=settings.micro_batch,
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


def dpo_trainer(
    learner: Learner, pairs: Sequence[dict[str, Any]], *, settings: DpoSettings, optim: PolicyOptim, place: Place
) -> DPOTrainer:
    """Return TRL's trainer, ready to train.

    Args:
        learner: The policy.
        pairs: As :func:`esckit.train.rl_pairs.build_pairs` makes them.
        settings: DPO's.
        optim: The optimiser's.
        place: Where it runs.

    Raises:
        ConfigError: If the pairs of a step cannot be shared evenly.
        DataError: If there are too few pairs.
    """
    plan = plan_dpo(settings, optim, n_pairs=len(pairs), n_processes=place.n_processes)
    order = epoch_order(len(pairs), plan.epochs, batch=plan.batch, seed=optim.seed)
    columns = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in pairs]
    with quiet_warnings():
        trainer = DPOTrainer(
            model=learner.model,
            args=dpo_arguments(settings, optim, plan, folder=place.folder),
            train_dataset=Dataset.from_list(columns).select(order),
            processing_class=learner.tokenizer,
            callbacks=list(place.callbacks),
            peft_config=learner.lora.config(),
        )
    quiet(trainer)
    return trainer
