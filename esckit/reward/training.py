"""One training of a reward model: net, examples, training, what is kept of it, and what is said of it. Imports torch.

See :mod:`esckit.reward.run` for the command and its run folder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor

import esckit
from esckit.errors import DataError
from esckit.metrics.calibration import reliability_svg
from esckit.models.checkpoint import FOLDER, read_metadata
from esckit.play.futures import RewardInputs
from esckit.play.session import SUMMARY
from esckit.records import read_records, write_atomic, write_json, write_records
from esckit.reward.checkpoint import HEAD, RewardMetadata, reward_template
from esckit.reward.examples import Parts, RewardExample, build_examples
from esckit.reward.model import RewardNet, build_net
from esckit.reward.quality import baselines, calibration, dev_metrics, quality_warnings
from esckit.reward.recipe import TrainRewardRecipe
from esckit.reward.text import RewardText
from esckit.reward.trainer import (
    DevScores,
    Encoded,
    Item,
    RewardTask,
    encode_examples,
    group_items,
    single_items,
    train_reward,
)
from esckit.training.checkpoint import metrics_table, render_card, save_checkpoint
from esckit.training.harness import TrainingRun, set_up
from esckit.training.monitor import METRICS, read_rows
from esckit.types import Record

log = logging.getLogger(__name__)

PREDICTIONS = "dev_predictions.jsonl"


class DevPrediction(Record):
    """A line of ``dev_predictions.jsonl``; ``step`` is that of the checkpoint that gave p."""

    SCHEMA: ClassVar[str] = "esckit.dev_prediction/1"

    id: str
    dialogue_id: str
    p: float
    label: bool
    reward_num: int
    reward_den: int
    step: int


@dataclass(frozen=True, slots=True)
class Session:
    """Everything that training and its report need."""

    recipe: TrainRewardRecipe
    inputs: RewardInputs
    parts: Parts
    run: TrainingRun
    net: RewardNet
    tokenizer: Any
    train: Encoded
    dev: Encoded
    items: list[Item]
    n_without_pairs: int


def prepare(recipe: TrainRewardRecipe, inputs: RewardInputs, parts: Parts, run: TrainingRun) -> Session:
    """Seed the generators, then build the net and the examples.

    Raises:
        DataError: If too few examples fit.
    """
    set_up(run.process, seed=recipe.seed, threads=recipe.executor.threads)
    model = recipe.model
    net, tokenizer = build_net(
        model.backbone,
        recipe.objective.kind,
        trainable=model.trainable,
        pooling=model.pooling,
        lora=model.lora,
        gradient_checkpointing=recipe.optim.gradient_checkpointing,
    )
    text = RewardText(tokenizer, reward_template(recipe.prompt), max_length=model.max_length)
    train = encode_examples(build_examples(parts.train, inputs.contexts), text)
    dev = encode_examples(build_examples(parts.dev, inputs.contexts), text)
    n_without_pairs = 0
    if recipe.objective.kind == "classifier":
        items = single_items(train)
    else:
        items, n_without_pairs = group_items(train, margin=Fraction(recipe.objective.margin))
    for name, part in (("training", train), ("dev", dev)):
        if part.n_too_long and len({example.label for example in part.examples}) < 2:
            raise DataError(
                f"one class only in the {name} part, once {part.n_too_long} responses that are too long are left out",
                expected="both classes",
                hint="Raise model.max_length",
            )
    if not items or not dev.examples:
        raise DataError(
            "nothing to train or to select on is left",
            expected="responses that fit, and for rankers contexts whose candidates differ",
            hint="See model.max_length and objective.margin, and simulate more candidates or dialogues",
        )
    return Session(recipe, inputs, parts, run, net, tokenizer, train, dev, items, n_without_pairs)


def fit(session: Session) -> None:
    """Train, keeping the best state so far in the run folder; a stopped run goes on from its last state."""
    class_weight = None
    if session.recipe.objective.class_weight == "balanced":
        n = len(session.train.examples)
        n_positive = sum(example.label for example in session.train.examples)
        class_weight = torch.tensor([n / (2 * (n - n_positive)), n / (2 * n_positive)])
    train_reward(
        RewardTask(session.net, class_weight=class_weight),
        session.items,
        single_items(session.dev),
        recipe=session.recipe,
        run=session.run,
        judge=lambda p: dev_metrics(p, session.dev.examples),
        keep=lambda step, scores, state: _keep(session, step, scores, state),
    )


def _keep(session: Session, step: int, scores: DevScores, state: Mapping[str, Tensor]) -> None:
    """Write the best state so far, and what it says about dev."""
    recipe, delta = session.recipe, session.parts.train.labelling.delta
    write_records(
        session.run.out / PREDICTIONS,
        [
            DevPrediction(
                id=example.id,
                dialogue_id=example.dialogue_id,
                p=p,
                label=example.label,
                reward_num=example.reward.numerator,
                reward_den=example.reward.denominator,
                step=step,
            )
            for example, p in zip(session.dev.examples, scores.p, strict=True)
        ],
    )
    metadata = RewardMetadata(
        backbone=recipe.model.backbone,
        kind=recipe.objective.kind,
        trainable=recipe.model.trainable,
        pooling=recipe.model.pooling,
        max_length=recipe.model.max_length,
        template=reward_template(recipe.prompt),
        label={name: str(value) for name, value in recipe.label.model_dump().items()},
        delta=None if delta is None else str(delta),
        simulation=session.inputs.simulation,
        inputs=session.inputs.digests,
        dialogue_ids=session.inputs.dialogue_ids,
        dev_ids=tuple(dict.fromkeys(example.dialogue_id for example in session.dev.examples)),
        selected_by=recipe.dev.select_by,
        step=step,
        metrics=dict(scores.metrics),
    )
    # Last: what a crash leaves out is done again as long as the checkpoint is the older one.
    save_checkpoint(
        session.run.out / FOLDER,
        metadata,
        backbone=session.net.backbone,
        tokenizer=session.tokenizer,
        state=state,
        heads_file=HEAD,
    )


# ---------------------------------------------------------------- what is said of it


def finish(session: Session, warnings: Sequence[str]) -> dict[str, Any]:
    """Write calibration, card and summary, and let the states go; return the summary."""
    out, metadata, train, dev = (
        session.run.out,
        read_metadata(RewardMetadata, session.run.out),
        session.train,
        session.dev,
    )
    rows = [row for row in read_rows(out / METRICS) if "dev" in row]
    p = [prediction.p for prediction in read_records(DevPrediction, out / PREDICTIONS)]
    beside = baselines(
        dev.examples, train.examples, untrained=next((row["dev"] for row in rows if row["step"] == 0), None)
    )
    table = calibration(p, dev.examples, step=metadata.step)
    write_json(out / "calibration.json", table)
    write_atomic(out / "calibration.svg", reliability_svg(table, title="Reward model on dev"))
    found = quality_warnings(metadata.metrics, beside)
    for warning in found:
        log.warning("%s", warning)
    summary = {
        "schema": "esckit.train_reward_summary/1",
        "examples": {"train": len(train.examples), "dev": len(dev.examples)},
        "dialogues": {"train": session.parts.train.n_dialogues, "dev": session.parts.dev.n_dialogues},
        "positive_share": {"train": _positive_share(train.examples), "dev": _positive_share(dev.examples)},
        "delta": None if metadata.delta is None else float(Fraction(metadata.delta)),
        "too_long": train.n_too_long + dev.n_too_long,
        "cut": train.n_cut + dev.n_cut,
        "contexts_without_pairs": session.n_without_pairs,
        "steps": rows[-1]["step"],
        "selected_step": metadata.step,
        "dev": dict(metadata.metrics),
        **beside,
        "warnings": [*warnings, *found],
    }
    write_atomic(out / FOLDER / "README.md", _card(metadata, beside, summary))
    session.run.forget_states(session.recipe.trackers)
    write_json(out / SUMMARY, summary)
    return summary


def _positive_share(examples: Sequence[RewardExample]) -> float:
    return sum(example.label for example in examples) / len(examples)


def _card(metadata: RewardMetadata, beside: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    return render_card(
        "reward_model",
        version=esckit.__version__,
        backbone=metadata.backbone,
        trainable=metadata.trainable,
        kind=metadata.kind,
        pooling=metadata.pooling,
        prompt=metadata.template.prompt,
        max_length=metadata.max_length,
        label=", ".join(f"{name} {value}" for name, value in metadata.label.items()),
        delta=metadata.delta or "the goal",
        simulation=", ".join(f"{name} {value}" for name, value in metadata.simulation.items()),
        n_train=summary["examples"]["train"],
        n_dev=summary["examples"]["dev"],
        n_dialogues=len(metadata.dialogue_ids),
        positive_train=f"{summary['positive_share']['train']:.1%}",
        positive_dev=f"{summary['positive_share']['dev']:.1%}",
        selected_by=metadata.selected_by,
        step=metadata.step,
        steps=summary["steps"],
        metrics=metrics_table({"this model": metadata.metrics, **beside}, list(metadata.metrics)),
        warnings="\n".join(f"**Warning:** {warning}" for warning in summary["warnings"]),
    )
