"""From the one word after ``esckit chat`` to a recipe: a run, a recipe or a model.

Of a run that trained a supporter, the supporter speaks, with the prompt and the lengths that it was trained with. Of a
run that played with a cast, the same cast does, with the same settings. A bare model has the prompt of
``recipes/chat/own.yaml``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from esckit.chat.recipe import ChatPrompts, ChatRecipe
from esckit.config.load import SUFFIX, LoadedRecipe, load_recipe, shipped_recipes
from esckit.config.sections import (
    CheckpointBinding,
    ResolutionCritic,
    StrategistCheckpoint,
    SupporterCheckpoint,
    WorldProfile,
)
from esckit.errors import CheckpointError, ConfigError, DataError
from esckit.lineage import means_run, read_run
from esckit.models.backbones import find_backbone
from esckit.models.checkpoint import kind_of
from esckit.runs import MANIFEST
from esckit.strategies.taxonomy import KEPT
from esckit.training.policy import trained_prompt

_OWN = "chat/own"

_SHORT = {"sampling": {"temperature": 0.7, "repetition_penalty": 1.1, "max_tokens": 128}, "on_length": "last_sentence"}

_ROLES: Mapping[str, type[CheckpointBinding]] = {
    "supporter": SupporterCheckpoint,
    "strategist": StrategistCheckpoint,
    "critic": CheckpointBinding,
}
"""The roles of a chat, each with what a checkpoint in it can say."""

Fields = dict[str, Any]


def load_target(target: str, named: Mapping[str, str | None], changes: Sequence[str]) -> LoadedRecipe[ChatRecipe]:
    """Return the recipe of a chat.

    Args:
        target: A run folder, a recipe of ``esckit chat`` (a shipped name or a file), or a backbone.
        named: Model by role, as given on the command line; None leaves the target's.
        changes: ``--set`` of the command line; they come last.

    Raises:
        EsckitError: If there is no such thing, nobody in it can speak, or the recipe is wrong.
    """
    ref, fields, name = _base(target)
    for role, model in named.items():
        if model is not None:
            fields[f"models.{role}"] = bound(role, model)
            if role == "critic":
                fields["rubric"] = _rubric_of(model)
    if "models.supporter" in fields and fields["models.supporter"] is None:
        raise ConfigError(f"{target} has no supporter", expected="somebody who speaks", hint="Name one: --supporter")
    overrides = [f"{field}={json.dumps(value, ensure_ascii=False)}" for field, value in fields.items()]
    loaded = load_recipe(ref, ChatRecipe, overrides=[*overrides, *changes])
    return replace(loaded, name=name or loaded.name)


def load_kept(folder: Path) -> ChatRecipe:
    """Return the recipe of a chat that was kept.

    Raises:
        EsckitError: If the folder is no chat's.
    """
    command = _manifest(folder)["command"]
    if command != "chat":
        raise ConfigError(
            f"{folder} is a run of 'esckit {command}'",
            expected="the folder of a chat",
            hint=f"To talk to it: esckit chat {folder}",
        )
    return load_target(str(folder), {}, ()).recipe


def bound(role: str, model: str) -> Fields:
    """Return the binding that a word on the command line means: a run folder, ``world:PROFILE`` or a backbone."""
    if means_run(model):
        return {"checkpoint": model}
    if model.startswith("world:"):
        profile = model.removeprefix("world:")
        if profile not in get_args(WorldProfile):
            raise ConfigError(f"--{role} {model}", expected=f"world: and one of {', '.join(get_args(WorldProfile))}")
        return {"world": profile}
    find_backbone(model)
    return {"backbone": model, **(_SHORT if role == "supporter" else {})}


def _rubric_of(model: str) -> Fields | None:
    """Return how a critic is read: a trained reward model by itself, any other as the recipe says."""
    is_trained = (Path(model) / MANIFEST).is_file() and "scorer" in kind_of(Path(model)).parts
    return {"readout": "reward_model"} if is_trained else None


def _base(target: str) -> tuple[str, Fields, str | None]:
    """Return the recipe to begin with, the fields that replace its own, and the name of the chat if it is not its."""
    if means_run(target) and Path(target).suffix != SUFFIX:
        manifest = _manifest(Path(target))
        nobody: Fields = {f"models.{role}": None for role in _ROLES}
        found = _of_run(target, manifest["command"], manifest["recipe"])
        return _OWN, nobody | found, Path(target).resolve().name
    if Path(target).suffix == SUFFIX or any(recipe.name == target for recipe in shipped_recipes()):
        return target, {}, None
    try:
        return _OWN, {"models.supporter": bound("supporter", target)}, target.strip("/").rpartition("/")[2]
    except ConfigError as error:
        raise ConfigError(
            f"{target!r} is neither a run folder nor a recipe of 'esckit chat', nor a model: {error.found}",
            expected=error.expected,
            hint=error.hint,
        ) from error


def _manifest(run: Path) -> dict[str, Any]:
    try:
        return read_run(run)
    except DataError as error:
        error.hint = error.hint or "'esckit runs list' shows those that are there"
        raise


def _of_run(run: str, command: str, recipe: Fields) -> Fields:
    """Return the fields of a chat with those who play in a run.

    Raises:
        ConfigError: If nobody speaks there.
    """
    hint: str | None = None
    match command:
        case "train-sft" | "train-rl":
            limits = recipe.get("encoding") or recipe[recipe["algorithm"]]
            supporter = {
                "checkpoint": run,
                "sampling": {"max_tokens": limits["max_completion_tokens"]},
                "max_context_tokens": limits["max_prompt_tokens"],
            }
            return {
                "models.supporter": supporter,
                "prompts": {"supporter": trained_prompt(Path(run), recipe["prompt"])},
            }
        case "train-flow":
            return {
                "models.supporter": {"checkpoint": run, "adapter": _adapter_of(run), **_SHORT},
                "models.strategist": {"checkpoint": run},
                "prompts": {"supporter": "supporter_aflow"},
            }
        case "chat":
            kept = {name: value for name, value in recipe.items() if name not in ("command", "models")}
            return {**kept, **_cast_of(recipe)}
        case "predict" | "evaluate" | "simulate" | "search":
            # The file of a taxonomy of one's own may have moved; the run keeps a copy.
            taxonomy = {"taxonomy": run} if (Path(run) / KEPT).is_file() else {}
            return _cast_of(recipe) | _settings_of(command, recipe) | taxonomy
        case "train-reward":
            found, hint = "a reward model, which rates replies and writes none", f"Try --critic {run} with a supporter"
        case _:
            found = f"a run of 'esckit {command}'"
    raise ConfigError(f"{run} is {found}", expected="a run with a supporter or a strategist", hint=hint)


def _adapter_of(run: str) -> str:
    """Return whether a run of train-flow was trained to write."""
    try:
        kind_of(Path(run), "writer")
    except CheckpointError:
        return "off"
    return "on"


def _cast_of(recipe: Fields) -> Fields:
    """Return who plays in a run, with their prompts and strategies."""
    models = recipe.get("models") or {}
    prompts = recipe.get("prompts") or {}
    return {
        **{f"models.{role}": _known(role, models.get(role)) for role in _ROLES},
        "prompts": {role: prompts[role] for role in ChatPrompts.model_fields if role in prompts},
        "taxonomy": recipe.get("taxonomy"),
        "strategist": recipe.get("strategist") or {},
        "seed": recipe["seed"],
    }


def _known(role: str, binding: Fields | None) -> Fields | None:
    """Return a binding without fields of 0.1.0 that had no effect."""
    if binding is None or "checkpoint" not in binding or "endpoint" in binding:
        return binding
    return {name: value for name, value in binding.items() if name in _ROLES[role].model_fields}


def _settings_of(command: str, recipe: Fields) -> Fields:
    """Return how a run plays: whether a strategist leads, and how its critic is read."""
    if command == "predict":
        strategy = recipe["predict"]["strategy"]
        return {"chat": {"strategy": "none" if strategy == "gold" else strategy}}
    if command == "simulate":
        return {"chat": {"strategy": recipe["simulation"]["strategy"]}, "critic": recipe["critic"]}
    if command == "search":
        return {"chat": {"strategy": "predicted"}, "rubric": recipe["critic"]}
    dialogue = recipe["settings"]["dialogue"]
    read = {name: dialogue[name] for name in ResolutionCritic.model_fields if name in dialogue}
    return {"chat": {"strategy": dialogue["strategy"]}, "critic": {"preset": dialogue["critics"][0], **read}}
