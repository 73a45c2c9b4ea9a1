"""Which recipe class belongs to which command; a command stands here once its engine exists."""

from __future__ import annotations

from esckit.registry import Registry

RECIPES = Registry(
    "command",
    {
        "simulate": "esckit.config.simulate:SimulateRecipe",
        "search": "esckit.config.search:SearchRecipe",
        "train-flow": "esckit.config.train_flow:TrainFlowRecipe",
        "train-reward": "esckit.config.train_reward:TrainRewardRecipe",
        "train-rl": "esckit.config.train_rl:TrainRlRecipe",
        "evaluate": "esckit.config.evaluate:EvaluateRecipe",
        "predict": "esckit.config.predict:PredictRecipe",
    },
)
