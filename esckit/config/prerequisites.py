"""What a recipe needs of earlier runs: which fields name them, and the command that makes what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from esckit.config.catalogue import shipped_recipes
from esckit.config.load import default_out
from esckit.config.recipe import Recipe
from esckit.errors import ConfigError
from esckit.registry import nearest

_MAKERS = {
    "inputs": "simulate",
    "trees": "search",
    "init": "train-flow",
    "compare_to": "evaluate",
    "opponent": "predict",
    "predictions": "predict",
}
_TRAINERS = {"strategist": "train-flow", "reward": "train-reward", "critic": "train-reward"}


def require_runs(recipe: Recipe, *, idle: Iterable[str] = ()) -> None:
    """Refuse a recipe that names runs which are not there, before anything is read or loaded.

    Args:
        recipe: The recipe.
        idle: Dotted fields that the run will not look at, with all below them.

    Raises:
        ConfigError: With every field, and how to make what it names.
    """
    unread = tuple(f"{field}." for field in idle)
    missing = [
        (field, path, maker)
        for field, path, maker in _named(recipe.resolved(), ())
        if not f"{field}.".startswith(unread) and not Path(path).exists()
    ]
    if not missing:
        return
    lines = [f"{field}: there is no {path}{_did_you_mean(path)}" for field, path, _ in missing]
    made = {path: maker for _, path, maker in missing}
    raise ConfigError(
        "\n  ".join(lines),
        expected="what earlier commands wrote",
        hint="Make it with: " + "; ".join(_command(maker, path) for path, maker in made.items()),
    )


def _named(value: Any, place: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """Yield every field that names a run: its dotted place, the path, and the command that makes such runs."""
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        here = (*place, key)
        if key == "checkpoint" and isinstance(inner, str):
            yield ".".join(here), inner, _TRAINERS.get(place[-1], "train-rl")
        elif key in _MAKERS:
            for path in inner if isinstance(inner, list) else [inner]:
                # A single file may be anybody's; whoever reads it says what it should be.
                if isinstance(path, str) and Path(path).suffix != ".jsonl":
                    yield ".".join(here), path, _MAKERS[key]
        else:
            yield from _named(inner, here)


def _did_you_mean(path: str) -> str:
    folder = Path(path).parent
    close = nearest(Path(path).name, [each.name for each in folder.iterdir()]) if folder.is_dir() else None
    return f"; did you mean {folder / close}?" if close else ""


def _command(maker: str, path: str) -> str:
    """Return the command that makes a run: that of the shipped recipe which writes there, if there is one."""
    writes = (each for each in shipped_recipes() if default_out(each.command, each.name) == Path(path))
    recipe = next(writes, None)
    return f"esckit {recipe.command} {recipe.name}" if recipe else f"esckit {maker} RECIPE --out {path}"
