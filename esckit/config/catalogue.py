"""The recipes that ship with esckit, found by name (``smoke/simulate``) in a checkout and in an installed wheel.

Which recipe class belongs to which command; a command stands here once its engine exists.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from esckit.errors import ConfigError
from esckit.registry import Registry, nearest, shipped_dir

SUFFIX = ".yaml"

_NOT_RECIPES = frozenset({"scripted"})

_COMMAND = re.compile(r"^command:\s*([\w-]+)", re.MULTILINE)


class RecipeFile(NamedTuple):
    """A recipe's name and file."""

    name: str
    path: Path


class ShippedRecipe(NamedTuple):
    """A recipe that ships: name, file, its command, and its first comment line."""

    name: str
    path: Path
    command: str
    title: str


def shipped_recipes() -> tuple[ShippedRecipe, ...]:
    """Return the shipped recipes, sorted by name."""
    folder = shipped_dir("recipes")
    found = []
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        relative = path.relative_to(folder)
        if relative.parts[0] in _NOT_RECIPES:
            continue
        text = path.read_text(encoding="utf-8")
        command = _COMMAND.search(text)
        title = text.partition("\n")[0].removeprefix("#").strip() if text.startswith("#") else ""
        found.append(
            ShippedRecipe(relative.with_suffix("").as_posix(), path, command.group(1) if command else "", title)
        )
    return tuple(found)


def find_recipe(ref: str) -> RecipeFile:
    """Return the recipe that a user named: a file, or the name of a shipped one.

    Raises:
        ConfigError: If there is neither; the message names the nearest one.
    """
    folder = shipped_dir("recipes")
    path = Path(ref)
    if path.is_file():
        inside = path.resolve().is_relative_to(folder.resolve())
        name = path.resolve().relative_to(folder.resolve()).with_suffix("").as_posix() if inside else path.stem
        return RecipeFile(name, path)
    if path.is_dir():
        raise ConfigError(f"{ref} is a folder", expected="a recipe's name or file")
    name = ref.removesuffix(SUFFIX)
    shipped = {recipe.name: recipe.path for recipe in shipped_recipes()}
    if name in shipped:
        return RecipeFile(name, shipped[name])
    close = nearest(name, shipped)
    raise ConfigError(
        f"no recipe {ref!r}",
        expected="a YAML file or the name of a shipped recipe",
        hint=f"Did you mean {close!r}?" if close else "'esckit recipes list' shows them",
    )


RECIPES = Registry(
    "command",
    {
        "simulate": "esckit.simulate.recipe:SimulateRecipe",
        "search": "esckit.search.recipe:SearchRecipe",
        "train-flow": "esckit.flow.recipe:TrainFlowRecipe",
        "train-reward": "esckit.reward.recipe:TrainRewardRecipe",
        "train-rl": "esckit.rl.recipe:TrainRlRecipe",
        "evaluate": "esckit.evaluate.recipe:EvaluateRecipe",
        "predict": "esckit.predict.recipe:PredictRecipe",
    },
)
