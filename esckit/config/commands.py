"""Which recipe class belongs to which command; a command stands here once its engine exists."""

from __future__ import annotations

from esckit.registry import Registry

RECIPES = Registry(
    "command",
    {
        "simulate": "esckit.config.simulate:SimulateRecipe",
        "search": "esckit.config.search:SearchRecipe",
    },
)
