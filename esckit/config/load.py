"""From a recipe's name or file and ``--set`` to one validated recipe, or one error that names every problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from esckit.config.catalogue import find_recipe
from esckit.config.commands import RECIPES
from esckit.config.overrides import apply_overrides
from esckit.config.problems import describe_problems
from esckit.config.recipe import Recipe
from esckit.config.source import Source, parse_source
from esckit.errors import ConfigError
from esckit.registry import did_you_mean


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A validated recipe and the name it goes by."""

    name: str
    recipe: Recipe

    def default_out(self) -> Path:
        """Return ``runs/<command>-<name>``; the command's word is not said twice.

        ``smoke/simulate`` runs in ``runs/simulate-smoke``, ``mine.yaml`` in ``runs/simulate-mine``.
        """
        command = self.recipe.command
        words = [part for part in self.name.replace("/", "-").split("-") if part]
        own = command.replace("-", "_")
        kept = [word.removeprefix(own).strip("_") for word in words]
        return Path("runs") / "-".join([command, *(word for word in kept if word)])


def load_recipe(ref: str, *, command: str | None = None, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a recipe.

    Args:
        ref: Name of a shipped recipe, or a YAML file.
        command: The command that is to run it; None takes the one that the recipe names.
        overrides: ``a.b=c`` each, see :func:`~esckit.config.overrides.apply_overrides`.

    Raises:
        ConfigError: If there is no such recipe, it is for another command, or anything in it is wrong.
    """
    found = find_recipe(ref)
    source, changed = apply_overrides(parse_source(_read(found.path, ref), ref), overrides)
    named = _command_of(source, command)
    kind: type[Recipe] = RECIPES.resolve(named)
    try:
        recipe = kind.model_validate(source.data, strict=True)
    except ValidationError as error:
        problems = describe_problems(error, kind, source, changed)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(
            "\n  ".join([f"recipe {ref}: {count}", *problems]),
            hint=f"'esckit recipes schema {named}' lists every field",
        ) from error
    return LoadedRecipe(found.name, recipe)


def _read(path: Path, ref: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{ref}: bytes that are not UTF-8", expected="a YAML file") from error
    except OSError as error:
        raise ConfigError(f"{ref} cannot be read: {error.strerror or error}") from error


def _command_of(source: Source, wanted: str | None) -> str:
    """Return the command that a recipe is for, after comparing it with the one that was called."""
    named = source.data.get("command")
    if not isinstance(named, str):
        raise ConfigError(
            f"recipe {source.origin} does not say which command it is for",
            expected="a line such as 'command: simulate'",
        )
    if wanted is not None and named != wanted:
        raise ConfigError(
            f"recipe {source.origin} is for the command {named!r}",
            expected=f"a recipe for {wanted!r}",
            hint=f"Run: esckit {named} {source.origin}" if named in RECIPES.targets else None,
        )
    if named not in RECIPES.targets:
        raise ConfigError(
            f"recipe {source.origin} is for the command {named!r}, which this version of esckit does not have",
            expected=f"one of {', '.join(RECIPES.names())}",
            hint=did_you_mean(named, RECIPES.targets) or None,
        )
    return named
