"""``esckit train-flow``: from search trees, or a corpus, to a strategy policy (AFlow, arXiv 2602.08826).

The run folder holds ``checkpoint/`` (the best state so far, whole at any moment; later recipes name it by the run),
``README.md`` (its card), ``metrics.jsonl`` and ``summary.json``; while it trains also ``states/``, from which a stopped
run goes on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esckit.config.train_flow import TrainFlowRecipe
from esckit.models.backbones import find_backbone
from esckit.pipelines.executor import NoProgress, Progress
from esckit.pipelines.processes import Process, this_process
from esckit.pipelines.train_flow_data import collect, counts
from esckit.runs import RunFolder

COMMAND = "train-flow"
SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class TrainFlowResult:
    """Where the policy is, and how good it is; the summary is empty in processes that do not write."""

    out: Path
    summary: dict[str, Any]


def plan(recipe: TrainFlowRecipe) -> dict[str, Any]:
    """Return what a run of the recipe would learn from, without any model.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    find_backbone(recipe.model.backbone)
    return counts(collect(recipe.data), recipe)


def run(recipe: TrainFlowRecipe, *, out: Path, progress: Progress | None = None) -> TrainFlowResult:
    """Train a policy, or go on where an earlier go stopped.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        progress: Shows how far the run is.

    Raises:
        EsckitError: See :mod:`esckit.errors`; what is done stays on disk.
    """
    find_backbone(recipe.model.backbone)
    material = collect(recipe.data)
    process, progress = this_process(), progress or NoProgress()
    with _run_folder(recipe, out, process) as folder:
        if (out / SUMMARY).is_file():
            return TrainFlowResult(out, json.loads((out / SUMMARY).read_text(encoding="utf-8")))
        if folder is not None:
            folder.update_manifest(data=material.facts, inputs=material.inputs)
        from esckit.pipelines.flow_report import finish
        from esckit.pipelines.flow_training import STATES, fit, prepare

        began = time.perf_counter()
        session = prepare(recipe, material, out, process)
        try:
            fit(session, progress)
        finally:
            progress.close()
        if folder is None:
            return TrainFlowResult(out, {})
        folder.update_manifest(train_s=round(time.perf_counter() - began, 1))
        summary = finish(session)
        shutil.rmtree(out / STATES, ignore_errors=True)
    return TrainFlowResult(out, summary)


@contextmanager
def _run_folder(recipe: TrainFlowRecipe, out: Path, process: Process) -> Iterator[RunFolder | None]:
    """Open the run folder in the main process; the others only read."""
    if not process.is_main:
        yield None
        return
    with RunFolder.open(out, command=COMMAND, recipe=recipe.resolved(), operational=recipe.OPERATIONAL) as folder:
        yield folder
