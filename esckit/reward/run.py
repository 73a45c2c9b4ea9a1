"""``esckit train-reward``: from scored futures to a reward model (RLFF-ESC, arXiv 2508.12935).

The run folder holds ``checkpoint/`` (the best state so far, whole at any moment), ``metrics.jsonl``,
``dev_predictions.jsonl``, ``calibration.json`` and ``.svg``, ``summary.json``; while it trains also ``states/``, from
which a stopped run resumes.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from esckit.config.load import require_runs
from esckit.errors import DataError
from esckit.models.backbones import find_backbone
from esckit.play.futures import RewardInputs, read_inputs
from esckit.play.runner import RunResult
from esckit.protocols import Progress
from esckit.reward.examples import USUAL_LABELS, Parts, check_parts, label_name, label_parts, split_futures
from esckit.reward.recipe import TrainRewardRecipe, plan_steps
from esckit.reward.text import reward_template
from esckit.training.run import this_process, training
from esckit.training.sections import check_trackers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainRewardPlan:
    """What a run would do.

    Attributes:
        positive_share: Of the training and the dev part, by label rule; the recipe's own rule first.
        steps_at_most: Optimiser steps, before examples that are too long or pair with nothing are left out.
        warnings: Reasons to expect a weak model.
        refusal: Why a run would refuse it, None if it would not.
    """

    dialogues: dict[str, int]
    examples: dict[str, int]
    failed_futures: int
    positive_share: dict[str, dict[str, float | None]]
    delta: float | None
    steps_at_most: int
    warnings: list[str]
    refusal: DataError | None = None

    def facts(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return asdict(replace(self, refusal=None)) | {"refusal": str(self.refusal) if self.refusal else None}


def plan(recipe: TrainRewardRecipe, *, n_processes: int | None = None) -> TrainRewardPlan:
    """Return what a run of the recipe would do, without any model.

    Labels of one class only are a ``refusal`` of the plan, which shows by what rule they would be of two.

    Args:
        recipe: The recipe.
        n_processes: Processes that would share it; None takes those that a launcher started.

    Raises:
        EsckitError: If the inputs or the recipe are wrong.
    """
    check_trackers(recipe.trackers)
    inputs, parts = _read(recipe)
    train, dev = parts.train.futures, parts.dev.futures
    shares: dict[str, dict[str, float | None]] = {}
    for label in (recipe.label, *USUAL_LABELS):
        labelled = label_parts(train, dev, label)
        shares[label_name(label)] = {"train": labelled.train.positive_share, "dev": labelled.dev.positive_share}
    warnings: list[str] = []
    refusal = None
    try:
        warnings = check_parts(parts)
    except DataError as error:
        refusal = error
    n_items = len(train) if recipe.objective.kind == "classifier" else len({future.context_id for future in train})
    delta = parts.train.labelling.delta
    return TrainRewardPlan(
        dialogues={"train": parts.train.n_dialogues, "dev": parts.dev.n_dialogues},
        examples={"train": len(train), "dev": len(dev)},
        failed_futures=len(inputs.futures) - len(train) - len(dev),
        positive_share=shares,
        delta=None if delta is None else float(delta),
        steps_at_most=plan_steps(recipe.optim, n_items=n_items, n_processes=n_processes or this_process().count).steps,
        warnings=warnings,
        refusal=refusal,
    )


def run(recipe: TrainRewardRecipe, *, out: Path, progress: Progress | None = None) -> RunResult:
    """Train the reward model of the recipe; a stopped run resumes from its last state.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        progress: Shows how far the run is.

    Raises:
        EsckitError: See :mod:`esckit.errors`; what is done stays on disk.
    """
    inputs, parts = _read(recipe)
    warnings = check_parts(parts)
    plan_steps(recipe.optim, n_items=len(parts.train.futures), n_processes=this_process().count)
    facts = {"data": inputs.facts(), "prompts": {"reward_model": reward_template(recipe.prompt).prompt}}
    with training(recipe, out, inputs=facts, progress=progress) as run:
        if (result := run.finished()) is not None:
            return result
        for warning in warnings if run.process.is_main else ():
            log.warning("%s", warning)
        from esckit.reward.report import finish
        from esckit.reward.trainer import prepare, train

        session = prepare(recipe, inputs, parts, run)
        train(session)
        return RunResult(out, finish(session, warnings) if run.process.is_main else {})


def _read(recipe: TrainRewardRecipe) -> tuple[RewardInputs, Parts]:
    """Return the inputs and their labelled futures; check what else the recipe names."""
    require_runs(recipe)
    find_backbone(recipe.model.backbone)
    reward_template(recipe.prompt)
    inputs = read_inputs(recipe.inputs)
    train, dev = split_futures(inputs.futures, seed=recipe.seed, share=recipe.dev.share)
    return inputs, label_parts(train, dev, recipe.label)
