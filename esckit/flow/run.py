"""``esckit train-flow``: from search trees, or a corpus, to a strategy policy (AFlow, arXiv 2602.08826).

The run folder holds ``checkpoint/`` (the best state so far with its card, whole whenever it is there; later recipes
name it by the run), ``metrics.jsonl`` and ``summary.json``; while it trains also ``states/``, from which a stopped run
goes on.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from esckit.config.load import require_runs
from esckit.errors import ConfigError
from esckit.flow.data import Material, collect, counts
from esckit.flow.recipe import TrainFlowRecipe
from esckit.flow.text import policy_id, read_metadata
from esckit.models.backbones import find_backbone
from esckit.play.executor import Progress
from esckit.play.session import STATES, RunResult, StepsInPlace, finished, training
from esckit.processes import Process, this_process
from esckit.strategies.taxonomy import keep_taxonomy
from esckit.training.sections import check_trackers


def plan(recipe: TrainFlowRecipe) -> dict[str, Any]:
    """Return what a run of the recipe would learn from, without any model.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    require_runs(recipe)
    material = collect(recipe.data)
    _check(recipe, material)
    check_trackers(recipe.trackers)
    return counts(material, recipe)


def run(recipe: TrainFlowRecipe, *, out: Path, progress: Progress | None = None) -> RunResult:
    """Train a policy, or go on where an earlier go stopped.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        progress: Shows how far the run is.

    Raises:
        EsckitError: See :mod:`esckit.errors`; what is done stays on disk.
    """
    require_runs(recipe)
    material = collect(recipe.data)
    _check(recipe, material)
    process = this_process()
    with training(recipe, out, process, inputs=_inputs(recipe, material)) as folder:
        if (result := finished(out)) is not None:
            _forget_states(out, process)
            return result
        if folder is not None:
            keep_taxonomy(material.labels, out)
        from esckit.flow.report import finish
        from esckit.flow.training import fit, prepare

        began = time.perf_counter()
        session, steps = prepare(recipe, material, out, process), StepsInPlace(folder, progress)
        try:
            fit(session, steps)
        finally:
            steps.close()
        if folder is None:
            return RunResult(out, {})
        folder.update_manifest(train_s=round(time.perf_counter() - began, 1))
        summary = finish(session)
        _forget_states(out, process)
    return RunResult(out, summary)


def _check(recipe: TrainFlowRecipe, material: Material) -> None:
    """Refuse a backbone that nobody knows and a checkpoint to go on from that does not fit.

    Raises:
        ConfigError: If there is no such backbone, or recipe and checkpoint read dialogues differently.
        CheckpointError: If there is no such checkpoint, or it is of another taxonomy.
    """
    find_backbone(recipe.model.backbone)
    if recipe.model.init is None:
        return
    metadata = read_metadata(Path(recipe.model.init), strategies=material.strategies)
    wanted = {
        "model.backbone": (recipe.model.backbone, metadata.backbone),
        "model.trainable": (recipe.model.trainable, metadata.trainable),
        "encoding.strategy_tags": (recipe.encoding.strategy_tags, metadata.strategy_tags),
        "encoding.situation": (recipe.encoding.situation, metadata.situation),
    }
    for field, (ours, theirs) in wanted.items():
        if ours != theirs:
            raise ConfigError(
                f"{field}: {ours}, but model.init was trained with {theirs}", hint=f"Set {field} to {theirs}"
            )


def _inputs(recipe: TrainFlowRecipe, material: Material) -> dict[str, Any]:
    inputs = {"data": material.facts, "inputs": material.inputs}
    if recipe.model.init is not None:
        inputs["init"] = {recipe.model.init: policy_id(Path(recipe.model.init))}
    return inputs


def _forget_states(out: Path, process: Process) -> None:
    """Delete the states of a training that is over."""
    if process.is_main:
        shutil.rmtree(out / STATES, ignore_errors=True)
