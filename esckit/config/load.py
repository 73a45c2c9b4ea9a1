"""From a recipe's name or file and ``--set`` to one validated recipe, or one error that names every problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from pydantic import ValidationError

from esckit.config.catalogue import find_recipe
from esckit.config.commands import RECIPES
from esckit.config.overrides import apply_overrides
from esckit.config.problems import describe_problems
from esckit.config.recipe import Recipe
from esckit.documents import Place
from esckit.config.source import Source, parse_source
from esckit.documents import read_text
from esckit.errors import ConfigError, DataError
from esckit.registry import did_you_mean
from esckit.resources import expand_home

RecipeT = TypeVar("RecipeT", bound=Recipe)


@dataclass(frozen=True, slots=True)
class LoadedRecipe(Generic[RecipeT]):
    """A validated recipe and the name it goes by."""

    name: str
    recipe: RecipeT

    def default_out(self) -> Path:
        """Return ``runs/<command>-<name>``; the command's word is not said twice.

        ``smoke/simulate`` runs in ``runs/simulate-smoke``, ``mine.yaml`` in ``runs/simulate-mine``.
        """
        return default_out(self.recipe.command, self.name)


def default_out(command: str, name: str) -> Path:
    """Return the run folder of a recipe's name, see :meth:`LoadedRecipe.default_out`."""
    words = [part for part in name.replace("/", "-").split("-") if part]
    own = command.replace("-", "_")
    kept = [word.removeprefix(own).strip("_") for word in words]
    return Path("runs") / "-".join([command, *(word for word in kept if word)])


def load_recipe(ref: str, kind: type[RecipeT], *, overrides: Sequence[str] = ()) -> LoadedRecipe[RecipeT]:
    """Load a recipe for one command.

    Args:
        ref: Name of a shipped recipe, or a YAML file.
        kind: Recipe class of the command that is to run it.
        overrides: ``a.b=c`` each, see :func:`~esckit.config.overrides.apply_overrides`.

    Raises:
        ConfigError: If there is no such recipe, it is for another command, or anything in it is wrong.
    """
    found = find_recipe(ref)
    source, changed = apply_overrides(parse_source(_read(found.path, ref), ref), overrides)
    named = _command_of(source)
    (wanted,) = get_args(kind.model_fields["command"].annotation)
    if named != wanted:
        raise ConfigError(
            f"recipe {ref} is for the command {named!r}",
            expected=f"a recipe for {wanted!r}",
            hint=f"Run: esckit {named} {ref}" if named in RECIPES.targets else None,
        )
    return LoadedRecipe(found.name, _validated(kind, source, changed))


def load_any_recipe(ref: str, *, overrides: Sequence[str] = ()) -> LoadedRecipe[Recipe]:
    """Load a recipe for whichever command it names.

    Raises:
        ConfigError: If there is no such recipe or command, or anything in it is wrong.
    """
    found = find_recipe(ref)
    source, changed = apply_overrides(parse_source(_read(found.path, ref), ref), overrides)
    named = _command_of(source)
    if named not in RECIPES.targets:
        raise ConfigError(
            f"recipe {ref} is for the command {named!r}, which this version of esckit does not have",
            expected=f"one of {', '.join(RECIPES.names())}",
            hint=did_you_mean(named, RECIPES.targets).capitalize() or None,
        )
    return LoadedRecipe(found.name, _validated(RECIPES.resolve(named), source, changed))


def _validated(kind: type[RecipeT], source: Source, changed: frozenset[Place]) -> RecipeT:
    try:
        return kind.model_validate(_at_home(source.data), strict=True)
    except ValidationError as error:
        problems = describe_problems(error, kind, source, changed)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(
            "\n  ".join([f"recipe {source.origin}: {count}", *problems]),
            hint=f"'esckit recipes schema {source.data['command']}' lists every field",
        ) from error


def _at_home(value: Any) -> Any:
    """Return recipe data with every path under ``~`` written out: no other text of a recipe begins so."""
    if isinstance(value, str):
        return expand_home(value)
    if isinstance(value, Mapping):
        return {key: _at_home(inner) for key, inner in value.items()}
    return tuple(_at_home(item) for item in value) if isinstance(value, tuple) else value


def _read(path: Path, ref: str) -> str:
    try:
        return read_text(path)
    except DataError as error:
        raise ConfigError(f"{ref}: {error.found}", expected="a recipe") from error


def _command_of(source: Source) -> str:
    """Return the command that a recipe says it is for."""
    named = source.data.get("command")
    if not isinstance(named, str):
        raise ConfigError(
            f"recipe {source.origin} does not say which command it is for",
            expected="a line such as 'command: simulate'",
        )
    return named
