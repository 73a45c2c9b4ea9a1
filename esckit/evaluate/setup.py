"""What an evaluation will do, before any model is loaded: cases, leakage, flags, and the conditions of comparisons."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esckit.config.sections import CheckpointBinding
from esckit.data.splits import LeakageRules
from esckit.errors import ConfigError, DataError
from esckit.evaluate.conditions import conditions, model_fields, model_of
from esckit.evaluate.lineage import family_of, leakage_flags, run_folder, run_of
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.evaluate.suites.dialogue import dialogue_work
from esckit.evaluate.suites.pairwise import pairwise_work
from esckit.evaluate.suites.response import response_work
from esckit.evaluate.suites.reward import reward_inputs, reward_work
from esckit.evaluate.suites.safety import safety_work
from esckit.evaluate.suites.strategy import strategy_taxonomy, strategy_work, tree_steps
from esckit.evaluate.suites.suite import Material, Predictions, Work
from esckit.records import digest, file_sha256
from esckit.roles.pool import checkpoint_ids, look_up
from esckit.runs import read_manifest
from esckit.strategies.taxonomy import Taxonomy

if TYPE_CHECKING:
    from esckit.evaluate.measurement import Scales
    from esckit.play.futures import RewardInputs


log = logging.getLogger(__name__)


SELF_JUDGED = "self_judged"

_READING_FILES = frozenset({"strategy", "response", "pairwise"})

_JUDGING = {"pairwise": "judge", "safety": "judge", "dialogue": "turn_judge"}


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that is known of an evaluation before it begins.

    Attributes:
        works: Files of cases, in the order they are played.
        taxonomy: Of the strategies that are predicted; None where no suite has any.
        strategies: Taxonomy of the suite ``strategy``; empty where it is not run.
        flags: Per suite, what every one of its rows carries.
        conditions: Per suite, what must be equal for two runs to be compared.
        inputs: Identity of every checkpoint and file that the cases depend on.
    """

    recipe: EvaluateRecipe
    material: Material
    works: tuple[Work, ...]
    taxonomy: Taxonomy | None
    strategies: tuple[str, ...]
    flags: dict[str, tuple[str, ...]]
    conditions: dict[str, dict[str, Any]]
    inputs: dict[str, str]

    def scales(self) -> Scales:
        """Return what metrics are told beside the cases."""
        from esckit.evaluate.measurement import Scales

        told = "dialogue" in self.recipe.suites and self.recipe.settings.dialogue.strategy == "predicted"
        spoken = self.taxonomy.names if told and self.taxonomy else ()
        return Scales(self.recipe, self.strategies, spoken)


def set_up(recipe: EvaluateRecipe) -> Setup:
    """Return what an evaluation will do.

    Raises:
        EsckitError: If data, predictions or checkpoints are wrong or not there, or a leakage rule is broken.
    """
    look_up(recipe.roles().values())
    material = Material.of(recipe)
    predictions = _predictions(recipe, material)
    futures = reward_inputs(recipe) if "reward" in recipe.suites else None
    works = _works(recipe, material, predictions, futures)
    _warn_of_idle(recipe, works)
    needs_strategies = "strategist" in recipe.roles() or recipe.settings.response.strategy == "gold"
    taxonomy = material.taxonomy
    if needs_strategies and taxonomy is None and "strategy" not in recipe.suites:
        raise ConfigError("strategies of an unknown taxonomy", expected="taxonomy: NAME, or a labelled corpus")
    own = strategy_taxonomy(recipe, material) if "strategy" in recipe.suites else None
    return Setup(
        recipe=recipe,
        material=material,
        works=works,
        taxonomy=own or taxonomy,
        strategies=own.names if own else (),
        flags=_flags(recipe, works, futures),
        conditions=conditions(
            recipe,
            works,
            gold=_labels(taxonomy, material),
            predicted=_labels(own, material),
            futures=futures.digests if futures else {},
        ),
        inputs=_inputs(recipe, works),
    )


def _labels(taxonomy: Taxonomy | None, material: Material) -> dict[str, str | None]:
    """Return what strategies mean: their taxonomy, and the mapping by which the corpus's labels got into it."""
    mapping = material.merged.mapping if material.data is not None else None
    return {"taxonomy": taxonomy.digest if taxonomy else None, "mapping": mapping}


def _warn_of_idle(recipe: EvaluateRecipe, works: Sequence[Work]) -> None:
    """Say what the recipe names and nothing will ask: roles, those included whose part a file speaks, and files."""
    idle = [f"models.{role}" for role in sorted(set(recipe.models.bindings()) - playing(works))]
    if recipe.predictions is not None and not _READING_FILES & set(recipe.suites):
        idle.append("predictions")
    if idle:
        log.warning("%s: no part in the suites %s", ", ".join(idle), ", ".join(recipe.suites))


def playing(works: Iterable[Work]) -> set[str]:
    """Return the roles that are asked anything."""
    return {role for work in works for role in (*work.roles, *work.calls)}


def _predictions(recipe: EvaluateRecipe, material: Material) -> Predictions | None:
    if recipe.predictions is None:
        return None
    from esckit.predict.predictions import read_predictions

    strategy = recipe.settings.strategy
    known = material.all_context_ids(strategy.unit) if recipe.data is not None else set()
    known |= {step.id for step in tree_steps(strategy.trees)}
    path = Path(recipe.predictions)
    return read_predictions(path / "predictions.jsonl" if path.is_dir() else path, known)


def _works(
    recipe: EvaluateRecipe, material: Material, predictions: Predictions | None, futures: RewardInputs | None
) -> tuple[Work, ...]:
    """Return the files of cases; replies come before the pairs that are made of them."""
    found: list[Work] = []
    if "strategy" in recipe.suites:
        found.append(strategy_work(recipe, material, predictions))
    if "response" in recipe.suites:
        found.append(response_work(recipe, material, predictions))
    if "dialogue" in recipe.suites:
        found.append(dialogue_work(recipe, material))
    if "pairwise" in recipe.suites:
        found.append(pairwise_work(recipe, material, predictions))
    if futures is not None:
        found.append(reward_work(recipe, futures))
    if "safety" in recipe.suites:
        found += safety_work(recipe)
    return tuple(found)


# ---------------------------------------------------------------- flags


def _flags(recipe: EvaluateRecipe, works: Sequence[Work], futures: RewardInputs | None) -> dict[str, tuple[str, ...]]:
    """Return per suite what every row carries; broken leakage rules raise."""
    found: dict[str, tuple[str, ...]] = {}
    for work in works:
        flags = list(_leakage(recipe, work))
        if _is_self_judged(recipe, work):
            flags.append(SELF_JUDGED)
        found[work.suite] = tuple(dict.fromkeys((*found.get(work.suite, ()), *flags)))
    return found


def _leakage(recipe: EvaluateRecipe, work: Work) -> tuple[str, ...]:
    """Return the leakage flags of a suite; probes are in no corpus."""
    if work.suite == "safety":
        return ()
    settings, data = recipe.settings, recipe.data
    scheme = family_of(data.model_dump()) if data is not None else None
    if work.suite == "reward":
        scheme = _family_of_runs(settings.reward.inputs)
    elif work.suite == "strategy" and settings.strategy.source == "expanded":
        scheme = _family_of_runs(settings.strategy.trees)
    bindings = recipe.roles()
    runs = {
        role: run_of(binding.checkpoint)
        for role in work.roles
        if isinstance(binding := bindings.get(role), CheckpointBinding)
    }
    runs |= _runs_read(recipe, work.suite)
    rules = LeakageRules(data.allow_overlap, data.allow_cross_family) if data is not None else LeakageRules()
    return leakage_flags({unit.dialogue_id for unit in work.units}, scheme, runs, rules)


def _runs_read(recipe: EvaluateRecipe, suite: str) -> dict[str, Path]:
    """Return the runs whose strategies or replies a suite reads; a file of no run tells nothing of its making."""
    named = {
        "predictions": recipe.predictions if suite in _READING_FILES else None,
        "opponent": recipe.settings.pairwise.opponent if suite == "pairwise" else None,
    }
    return {role: run for role, name in named.items() if name and (run := run_folder(name)) is not None}


def _family_of_runs(folders: Iterable[str]) -> str | None:
    """Return the family of splits of the runs whose dialogues are evaluated."""
    recipes = [read_manifest(run_of(name))["recipe"] for name in folders]
    return " and ".join(sorted({family_of(recipe.get("data") or {}) for recipe in recipes})) or None


def _is_self_judged(recipe: EvaluateRecipe, work: Work) -> bool:
    """Return whether the judge of a suite is also the critic, or wrote the replies that it judges."""
    bindings = recipe.models.bindings()
    judge = bindings.get(_JUDGING.get(work.suite, ""))
    if judge is None:
        return False
    # Replies from a file are not the bound supporter's.
    roles = ("critic", "supporter") if "supporter" in work.roles else ("critic",)
    players = {model_of(bindings[role]) for role in roles if role in bindings}
    for run in _runs_read(recipe, work.suite).values():
        players |= set(_writers(run))
    return model_of(judge) in players


def _writers(run: Path) -> Iterator[str]:
    """Yield which models wrote the replies of a run, those included that it only read."""
    theirs = read_manifest(run)["recipe"]
    if (supporter := (theirs.get("models") or {}).get("supporter")) is not None:
        yield digest(model_fields(supporter))
    earlier = theirs.get("predictions")
    if earlier and (source := run_folder(earlier)) is not None:
        yield from _writers(source)


# ---------------------------------------------------------------- inputs


def _inputs(recipe: EvaluateRecipe, works: Sequence[Work]) -> dict[str, str]:
    """Return the identity of what the cases depend on beside the recipe: trained models, predictions, an opponent."""
    found = checkpoint_ids(recipe.roles().values())
    if recipe.predictions is not None:
        found[recipe.predictions] = _identity_of(Path(recipe.predictions))
    for work in works:
        if "opponent" in work.conditions:
            found[str(recipe.settings.pairwise.opponent)] = work.conditions["opponent"]
    return found


def _identity_of(path: Path) -> str:
    if path.is_dir():
        path = path / "predictions.jsonl"
    if not path.is_file():
        raise DataError("no such file or run folder", path=str(path), expected="predictions, or a run folder")
    return file_sha256(path)
