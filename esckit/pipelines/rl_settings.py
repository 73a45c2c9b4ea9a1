"""From the sections of a ``train-rl`` recipe to the plain settings that training takes."""

from __future__ import annotations

from esckit.config.train_rl import TrainRlRecipe
from esckit.train.rl_plan import DpoSettings, GrpoSettings, PolicyOptim, VllmSettings


def policy_optim(recipe: TrainRlRecipe) -> PolicyOptim:
    """Return the optimiser's settings."""
    return PolicyOptim(
        **recipe.optim.model_dump(exclude={"select"}),
        seed=recipe.seed,
        save_every=recipe.logging.save_every,
        trackers=recipe.trackers,
    )


def grpo_settings(recipe: TrainRlRecipe) -> GrpoSettings:
    """Return GRPO's settings."""
    grpo, weights = recipe.grpo, recipe.reward.weights
    return GrpoSettings(
        **grpo.model_dump(exclude={"engine", "vllm"}),
        weights=(weights.future, weights.format),
        vllm=VllmSettings(**grpo.vllm.model_dump()) if grpo.engine == "vllm" else None,
    )


def dpo_settings(recipe: TrainRlRecipe) -> DpoSettings:
    """Return DPO's settings."""
    return DpoSettings(**recipe.dpo.model_dump(exclude={"require_format"}))
