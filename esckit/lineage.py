"""Lineage: the runs that a recipe names, the fields that name them, and the commands that make them.

A recipe that names a run which is not there is refused before anything is read or loaded, with the command that makes
the run. Not here: what a run has seen through its inputs (:mod:`esckit.evaluate.setup`), and the run folders on a disk
(:mod:`esckit.archive`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from esckit.config.load import RecipeFile, default_out, shipped_recipes
from esckit.config.sections import Recipe
from esckit.documents import parse_yaml, read_text
from esckit.errors import DataError, MissingRunsError
from esckit.registry import nearest
from esckit.runs import MANIFEST, PIPELINE, read_manifest

PIPELINES = "pipelines/"
"""What the names of shipped pipelines begin with; ``esckit run`` goes without it."""

_MAKERS = {
    "inputs": "simulate",
    "trees": "search",
    "init": "train-flow",
    "start": "train-sft",
    "compare_to": "evaluate",
    "opponent": "predict",
    "predictions": "predict",
}

_TRAINERS = {
    "strategist": "train-flow",
    "reward": "train-reward",
    "critic": "train-reward",
    "policy": "train-sft",
}

_MODELS = ("train-rl", "train-sft", "train-flow", "train-reward")

_ONLY_MADE_BY = ("policy", "reward")
"""Roles whose checkpoint can only be what :data:`_TRAINERS` names; others are played by several kinds of models."""

_OTHER_MAKERS = {"predict": ("evaluate",)}
"""Commands whose runs a field takes as well as those of its maker."""

_IN_HEADER = re.compile(r"^#\s*(esckit .*--out (\S+))$", re.MULTILINE)


class NamedRun(NamedTuple):
    """A run that a recipe names.

    Attributes:
        field: Dotted name of the field.
        path: The run folder, as the recipe names it.
        makers: The commands that make such runs, the usual one first.
    """

    field: str
    path: str
    makers: tuple[str, ...]

    @property
    def maker(self) -> str:
        """The command that usually makes such runs."""
        return self.makers[0]


def named_runs(recipe: Mapping[str, Any]) -> Iterator[NamedRun]:
    """Yield every run that a resolved recipe names, in the order of its fields."""
    yield from _named(recipe, ())


def _named(value: Any, place: tuple[str, ...]) -> Iterator[NamedRun]:
    if not isinstance(value, Mapping):
        return
    for key, inner in value.items():
        here = (*place, key)
        if key == "checkpoint" and isinstance(inner, str):
            role = place[-1] if place else ""
            usual = _TRAINERS.get(role, "train-rl")
            others = () if role in _ONLY_MADE_BY else (name for name in _MODELS if name != usual)
            yield NamedRun(".".join(here), inner, (usual, *others))
        elif key in _MAKERS and not isinstance(inner, Mapping):
            for path in inner if isinstance(inner, list | tuple) else [inner]:
                # A single file may be anybody's; whoever reads it says what it should be.
                if isinstance(path, str) and Path(path).suffix != ".jsonl":
                    reads_trees = key == "inputs" and value.get("source") == "trees"
                    usual = "search" if reads_trees else _MAKERS[key]
                    yield NamedRun(".".join(here), path, (usual, *_OTHER_MAKERS.get(usual, ())))
        elif key == "taxonomy" and isinstance(inner, str) and _may_be_run(inner):
            yield NamedRun(".".join(here), inner, ("search", "simulate", "predict", "evaluate", *_MODELS))
        else:
            yield from _named(inner, here)


def _may_be_run(taxonomy: str) -> bool:
    """Return whether a taxonomy is named by a run that was made with it, and not by a name or a file of its own."""
    return Path(taxonomy).is_dir() or ("/" in taxonomy and Path(taxonomy).suffix == "")


def means_run(word: str) -> bool:
    """Return whether a word that may name a model is a run: one that is there, or one that is missing in runs/."""
    return (Path(word) / MANIFEST).is_file() or (word.startswith("runs/") and not Path(word).exists())


def require_runs(recipe: Recipe, *, idle: Iterable[str] = ()) -> None:
    """Refuse a recipe that names runs which are not there, before anything is read or loaded.

    Args:
        recipe: The recipe.
        idle: Dotted fields that the run will not look at, with all below them.

    Raises:
        MissingRunsError: With every field, and how to make what it names.
    """
    unread = tuple(f"{field}." for field in idle)
    missing = [
        run
        for run in named_runs(recipe.resolved())
        if not f"{run.field}.".startswith(unread) and not Path(run.path).exists()
    ]
    if not missing:
        return
    commands = _making({Path(run.path): f"esckit {run.maker} RECIPE --out {shlex.quote(run.path)}" for run in missing})
    raise MissingRunsError(
        "\n  ".join(f"{run.field}: there is no {run.path}{_did_you_mean(run.path)}" for run in missing),
        paths=tuple(run.path for run in missing),
        expected="what earlier commands wrote",
        hint="Make it with: " + "; ".join(dict.fromkeys(commands.values())),
    )


def read_run(path: Path) -> dict[str, Any]:
    """Return the manifest of a run folder that a user named.

    Raises:
        DataError: If there is none, with the command that makes it where a shipped recipe does; or as
            :func:`esckit.runs.read_manifest`.
    """
    try:
        return read_manifest(path)
    except DataError as error:
        if not (path / MANIFEST).exists() and not (path / PIPELINE).exists():
            made = _making({path: ""})[path]
            close = _did_you_mean(str(path)).removeprefix("; ")
            error.hint = f"Make it with: {made}" if made else close.capitalize() or None
        raise


def _making(commands: Mapping[Path, str]) -> dict[Path, str]:
    """Return the commands that make some runs, the shipped ones where a recipe that ships makes a run of that name."""
    found = dict(commands)
    for page in reversed(shipped_recipes()):
        text = read_text(page.path)
        made = _by_pipeline(page, text) if page.name.startswith(PIPELINES) else {}
        if not made:
            made = {default_out(page.command, page.name): f"esckit {page.command} {page.name}"}
        # A run with other settings than a recipe's: the recipe that reads it has the command in its header.
        made |= {Path(out): command for command, out in _IN_HEADER.findall(text)}
        found |= {path: made[path] for path in made.keys() & found.keys()}
    return found


def _by_pipeline(page: RecipeFile, text: str) -> dict[Path, str]:
    """Return the commands that make the runs of a shipped pipeline's stages."""
    name = page.name.removeprefix(PIPELINES)
    stages = parse_yaml(text, page.name)["stages"]
    return {Path("runs") / name / stage: f"esckit run {name} --until {stage}" for stage in stages}


def _did_you_mean(path: str) -> str:
    folder = Path(path).parent
    others = [each.name for each in folder.iterdir() if each != Path(path)] if folder.is_dir() else []
    close = nearest(Path(path).name, others)
    return f"; did you mean {folder / close}?" if close else ""
