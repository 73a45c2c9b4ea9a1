"""What the stages of a pipeline would do, before the first one runs; the runs of earlier stages are not there yet.

A training that reads an earlier stage is planned without its inputs, as its own dry run does. Where the speaker of a
stage is still to be trained, a scripted one stands in for it: it is asked as often as the trained one will be, and all
else of the stage is checked. What cannot be planned at all waits, and is said to. A finished
stage is refused if data, taxonomy or prompts are not those that it read, as by its own command. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from esckit.config.sections import Recipe
from esckit.errors import ConfigError, EsckitError, MissingRunsError
from esckit.lineage import named_runs
from esckit.pipeline.page import Stage
from esckit.pipeline.sequence import is_complete, require_own_stage
from esckit.play.forecast import forecast

_STAND_INS = {"strategist": "strategist", "supporter": "supporter"}
"""Roles of which a scripted model may take the part in a plan, each with its script."""

_OPTIONAL = ("compare_to",)
"""Fields without which a stage asks its models for just the same."""

_AMOUNTS = ("calls", "prompt_tokens", "completion_tokens", "cost", "hours", "disk_bytes")


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What a stage would do.

    Attributes:
        stage: The stage.
        status: ``done``; ``planned``; or ``waits``, where only the earlier stages' results can tell.
        facts: What its own dry run tells; for a training, the plan of its memory.
        forecast: What it may cost at most; empty where that is unknown, and of a training.
        waits_for: The earlier stages that are not there yet, as far as it reads them.
        stands_in: The roles that scripted models took in the plan, each with the stage that will write its model.
    """

    stage: Stage
    status: Literal["done", "planned", "waits"]
    facts: Mapping[str, Any]
    forecast: Mapping[str, Any]
    waits_for: tuple[str, ...] = ()
    stands_in: Mapping[str, str] = field(default_factory=dict)


def plan_stages(
    stages: Sequence[Stage], options: Mapping[str, Mapping[str, Any]], *, rate: float | None, forecasts: bool
) -> list[StagePlan]:
    """Return the plans of stages that are to run in this order.

    Args:
        stages: The stages.
        options: What the plan of a training is given beside its recipe, by the name of the stage.
        rate: Calls per second, for the hours.
        forecasts: Whether to find out what the stages may cost.

    Raises:
        ConfigError: If a stage would be refused, whatever the earlier ones write; all such stages are named.
    """
    plans, problems = [], []
    coming: dict[str, Stage] = {}
    for stage in stages:
        try:
            plan = _plan(stage, coming, options.get(stage.name, {}), rate=rate, forecasts=forecasts)
        except EsckitError as error:
            problems.append(f"{stage.name}: {error}")
        else:
            plans.append(plan)
            if plan.status == "done":
                continue
        coming[stage.name] = stage
    if problems:
        count = "1 stage" if len(problems) == 1 else f"{len(problems)} stages"
        raise ConfigError("\n  ".join([f"{count} of {len(stages)} cannot run", *problems]))
    return plans


def _plan(
    stage: Stage, coming: Mapping[str, Stage], options: Mapping[str, Any], *, rate: float | None, forecasts: bool
) -> StagePlan:
    """Return the plan of a stage, given the earlier ones that are not done."""
    room = import_module(f"{type(stage.recipe).__module__.rpartition('.')[0]}.run")
    waits_for = tuple(name for name in stage.reads if name in coming)
    if is_complete(stage):
        if not waits_for:  # what earlier stages will write, the stage's own command compares
            require_own_stage(stage, room.known_inputs(stage.recipe))
        return StagePlan(stage, "done", {}, {})
    if any(coming[name].out.exists() for name in waits_for):
        return StagePlan(stage, "waits", {}, {}, waits_for)  # what is there is not finished, and says nothing
    if stage.trains:
        facts = room.plan(stage.recipe, **options)
        refusal = facts.get("refusal")
        if isinstance(refusal, EsckitError) and not _is_coming(refusal, coming):
            raise refusal
        staged = facts.get("staged") if forecasts else None
        return StagePlan(stage, "planned", facts, forecast(staged, rate=rate) if staged else {}, waits_for)
    recipe, stands_in = _without(stage.recipe, {str(coming[name].out): name for name in waits_for})
    try:
        plan = room.plan(recipe, **({"gates": []} if recipe.command == "evaluate" else {}))
    except MissingRunsError as error:
        if not _is_coming(error, coming):
            raise
        return StagePlan(stage, "waits", {}, {}, waits_for)
    found = forecast(plan.staged, rate=rate) if forecasts else {}
    return StagePlan(stage, "planned", plan.facts(), found, waits_for, stands_in)


def _is_coming(error: EsckitError, coming: Mapping[str, Stage]) -> bool:
    """Return whether an error says only that runs are missing that earlier stages write."""
    outs = {stage.out for stage in coming.values()}
    return isinstance(error, MissingRunsError) and {Path(path) for path in error.paths} <= outs


def _without(recipe: Recipe, missing: Mapping[str, str]) -> tuple[Recipe, dict[str, str]]:
    """Return a recipe with scripted speakers in place of those that are still to be trained.

    Args:
        recipe: The recipe.
        missing: The stages that will write the runs which are not there, by run folder.

    Returns:
        The recipe, and the stages by role.
    """
    data, roles = recipe.resolved(), dict[str, str]()
    for run in named_runs(data):
        if run.path not in missing:
            continue
        section, _, role = run.field.removesuffix(".checkpoint").partition(".")
        if run.field in _OPTIONAL:
            data[run.field] = None
        elif section == "models" and role in _STAND_INS and run.field.endswith(".checkpoint"):
            kept = ("sampling", "on_length", "max_words", "max_context_tokens")
            binding = data["models"][role]
            data["models"][role] = {"scripted": _STAND_INS[role], **{name: binding[name] for name in kept}}
            roles[role] = missing[run.path]
    return (type(recipe).model_validate(data) if data != recipe.resolved() else recipe), roles


def sum_of(plans: Sequence[StagePlan]) -> dict[str, Any]:
    """Return the sum of all forecasts by amount, None where one of them does not know it.

    The list ``unknown`` names the stages that are not in it: trainings, and those that wait.
    """
    known = [plan.forecast for plan in plans if plan.forecast]

    def total(name: str) -> Any:
        amounts = [found[name] for found in known]
        return None if None in amounts or not amounts else sum(amounts)

    unknown = [plan.stage.name for plan in plans if not plan.forecast and plan.status != "done"]
    return {name: total(name) for name in _AMOUNTS} | {"unknown": unknown}
