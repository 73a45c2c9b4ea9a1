"""What ``train-reward`` leaves beside the checkpoint: calibration, model card and summary."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import esckit
from esckit.play.session import SUMMARY
from esckit.records import read_records, write_atomic, write_json
from esckit.reward.examples import Part, RewardExample
from esckit.reward.quality import baselines, calibration, quality_warnings
from esckit.reward.training import PREDICTIONS, DevPrediction, Session

if TYPE_CHECKING:
    from esckit.reward.checkpoint import RewardMetadata


log = logging.getLogger(__name__)


SUMMARY_SCHEMA = "esckit.train_reward_summary/1"


def finish(session: Session, warnings: Sequence[str]) -> None:
    """Write calibration, card and summary, and let the states go."""
    from esckit.metrics.calibration import reliability_svg
    from esckit.models.checkpoint import FOLDER
    from esckit.reward.checkpoint import read_metadata
    from esckit.reward.trainer import STATES
    from esckit.training.callbacks import read_rows

    out, metadata = session.out, read_metadata(session.out)
    rows = [row for row in read_rows(out / "metrics.jsonl") if "dev" in row]
    p = [prediction.p for prediction in read_records(DevPrediction, out / PREDICTIONS)]
    examples = session.dev.examples
    beside = baselines(
        examples,
        session.train.examples,
        untrained=next((row["dev"] for row in rows if row["step"] == 0), None),
    )
    table = calibration(p, examples, step=metadata.step)
    write_json(out / "calibration.json", table)
    write_atomic(out / "calibration.svg", reliability_svg(table, title="Reward model on dev"))
    found = [*warnings, *quality_warnings(metadata.metrics, beside)]
    for warning in found[len(warnings) :]:
        log.warning("%s", warning)
    summary = _summary(session, metadata, beside, found, steps=rows[-1]["step"])
    write_atomic(out / FOLDER / "README.md", _card(session, metadata, beside, summary))
    shutil.rmtree(out / STATES, ignore_errors=True)
    write_json(out / SUMMARY, summary)


def _share(examples: Sequence[RewardExample]) -> float:
    return sum(example.label for example in examples) / len(examples)


def _summary(
    session: Session,
    metadata: RewardMetadata,
    beside: dict[str, dict[str, Any]],
    warnings: list[str],
    *,
    steps: int,
) -> dict[str, Any]:
    return {
        "schema": SUMMARY_SCHEMA,
        "examples": {"train": len(session.train.examples), "dev": len(session.dev.examples)},
        "dialogues": {"train": _n_dialogues(session.parts.train), "dev": _n_dialogues(session.parts.dev)},
        "positive_share": {"train": _share(session.train.examples), "dev": _share(session.dev.examples)},
        "delta": None if metadata.delta is None else float(Fraction(metadata.delta)),
        "too_long": session.train.n_too_long + session.dev.n_too_long,
        "cut": session.train.n_cut + session.dev.n_cut,
        "contexts_without_pairs": session.n_without_pairs,
        "steps": steps,
        "selected_step": metadata.step,
        "dev": dict(metadata.metrics),
        **beside,
        "warnings": warnings,
    }


def _n_dialogues(part: Part) -> int:
    return len({future.dialogue_id for future in part.futures})


def _card(
    session: Session, metadata: RewardMetadata, beside: dict[str, dict[str, Any]], summary: dict[str, Any]
) -> str:
    from esckit.training.card import metrics_table, render_card

    rule = ", ".join(f"{name} {value}" for name, value in metadata.label.items())
    return render_card(
        "reward_model",
        version=esckit.__version__,
        backbone=metadata.backbone,
        trainable=metadata.trainable,
        kind=metadata.kind,
        pooling=metadata.pooling,
        prompt=metadata.template.prompt,
        max_length=metadata.max_length,
        label=rule,
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
