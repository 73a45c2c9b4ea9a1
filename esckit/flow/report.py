"""What is said about a trained policy: ``summary.json`` and the card beside the checkpoint. Imports torch."""

from __future__ import annotations

from typing import Any

import torch

import esckit
from esckit.flow.data import counts
from esckit.flow.gold import test_report
from esckit.flow.model import load_flow_model
from esckit.flow.text import FlowMetadata, read_metadata
from esckit.flow.trainer import confusions
from esckit.flow.training import Session, uses_bf16
from esckit.models.checkpoint import FOLDER
from esckit.play.session import SUMMARY
from esckit.records import write_atomic, write_json
from esckit.training.checkpoint import metrics_table, render_card


def finish(session: Session) -> dict[str, Any]:
    """Measure the kept checkpoint on test, where there is one, and write summary and card; return the summary."""
    metadata = read_metadata(session.out)
    summary: dict[str, Any] = {
        "material": counts(session.material, session.recipe),
        "dropped_paths": sum(tree.n_dropped for part in session.trees.values() for tree in part),
        "tokens_per_epoch": session.tokens(),
        "updates": len(session.updates()),
        "best_update": metadata.step,
        "valid": {name.removeprefix("valid/"): value for name, value in metadata.metrics.items() if "@" not in name},
    }
    if "test" in session.trees:
        summary["test"] = _test(session)
    write_atomic(session.out / FOLDER / "README.md", _card(session, metadata, summary))
    write_json(session.out / SUMMARY, summary)
    return summary


def _test(session: Session) -> dict[str, Any]:
    """Return how well the kept checkpoint foretells the gold strategies of the test part."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_flow_model(session.out, attention=session.recipe.encoding.attention).model.to(device)
    as_it_is = torch.zeros(1, len(session.material.strategies))
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(session.recipe)):
        confusion = confusions(model, session.alone().passes("test"), as_it_is, device)[0]
    return test_report(confusion, session.material.strategies, session.counts)


def _card(session: Session, metadata: FlowMetadata, summary: dict[str, Any]) -> str:
    """Return the model card."""
    columns = {"valid": summary["valid"]}
    names = [name for name in summary["valid"] if name != "loss"]
    if "test" in summary:
        test = summary["test"]
        columns |= {"test": test, "majority": test["majority"], "frequencies": test["frequency_guessing"]}
    return render_card(
        "flow_policy",
        version=esckit.__version__,
        backbone=metadata.backbone,
        trainable=metadata.trainable,
        objective=metadata.objective["name"],
        taxonomy=f"{metadata.taxonomy}: {', '.join(metadata.strategies)}",
        flow_text=metadata.flow_text,
        strategy_tags=metadata.strategy_tags,
        situation=metadata.situation,
        round=metadata.round,
        n_train=len(metadata.dialogue_ids) - len(metadata.dev_ids),
        n_valid=len(metadata.dev_ids),
        selected_by=metadata.selected_by,
        step=metadata.step,
        steps=summary["updates"],
        metrics=metrics_table(columns, names),
    )
