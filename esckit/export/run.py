"""``esckit export``: a trained model as a folder that plain transformers and peft load, without esckit.

The folder appears whole or not at all: it is filled beside its place, read back by the very code that stands in its
card (:mod:`esckit.export.plain`), compared with the model in esckit, and only then gets its name. Torch is imported
only when weights are written.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import esckit
from esckit.errors import CheckpointError, ConfigError
from esckit.export.card import Measured, read_evaluation, write_text
from esckit.export.source import POLICIES, ExportSource, find_source, recorded_texts
from esckit.models.checkpoint import KINDS
from esckit.records import fresh_folder, write_atomic

if TYPE_CHECKING:
    from esckit.export.weights import Proof

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

TOLERANCE = 1e-5
"""Largest difference between a number of the export and esckit's own."""


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """A checked export.

    Attributes:
        source: What is exported.
        folder: Where to.
        adapter: Whether only the adapter is exported.
        dtype: Type of the stored weights.
        measured: What an evaluation found; None is unknown.
    """

    source: ExportSource
    folder: Path
    adapter: bool
    dtype: Dtype
    measured: Measured | None

    def facts(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        backbone = self.source.backbone
        return {
            "run": str(self.source.run),
            "folder": str(self.folder),
            "model": KINDS[self.source.command].what,
            "form": "adapter" if self.adapter else _FORMS[self.source.command],
            "backbone": self.source.metadata.backbone,
            "base_model": None if backbone is None else backbone.hub,
            "dtype": self.dtype,
            "corpora": list(self.source.corpora),
            "metrics": 0 if self.measured is None else len(self.measured.rows),
        }


_FORMS = {
    "train-rl": "AutoModelForCausalLM",
    "train-sft": "AutoModelForCausalLM",
    "train-reward": "AutoModelForSequenceClassification, one logit",
    "train-flow": "AutoModel, and heads.safetensors",
}


def plan(
    run: Path, folder: Path, *, adapter: bool = False, dtype: Dtype = "auto", evaluation: Path | None = None
) -> ExportPlan:
    """Check everything that needs no weights.

    Args:
        run: The run folder of a training.
        folder: Where to; must not be there yet.
        adapter: Export a supporter's adapter alone.
        dtype: Type of the stored weights.
        evaluation: An evaluation of this model, for the card.

    Raises:
        EsckitError: If the run cannot be exported, or the folder is there.
    """
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} already exists", expected="a folder that does not exist yet")
    if adapter and dtype != "auto":
        raise ConfigError(f"--dtype {dtype} with --adapter", expected="one of them: an adapter stays as it was trained")
    source = find_source(run, adapter=adapter)
    measured = None if evaluation is None else read_evaluation(evaluation, source)
    return ExportPlan(source, folder, adapter, dtype, measured)


def export(planned: ExportPlan) -> dict[str, Any]:
    """Write the folder of a plan, and return what it holds.

    Raises:
        CheckpointError: If the export's numbers differ from esckit's by more than :data:`TOLERANCE`; nothing is left.
        StorageError: If it cannot be written.
        EsckitError: If a weight cannot be loaded.
    """
    folder = planned.folder
    with fresh_folder(folder) as fresh:
        proof, notes = _write(planned, fresh)
        gc.collect()  # before it is read back: two models may not fit
        difference = _compare(planned, fresh, proof)
        notes += _compared(proof, difference)
        card = write_text(
            planned.source, name=folder.name, adapter=planned.adapter, measured=planned.measured, notes=notes
        )
        write_atomic(fresh / "README.md", card)
        _allow_reading(fresh)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        **planned.facts(),
        "compared": len(proof.expected),
        "largest_difference": difference,
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
    }


def _write(planned: ExportPlan, fresh: Path) -> tuple[Proof, list[str]]:
    from esckit.export import weights
    from esckit.models.backbones import quiet_off_terminal

    quiet_off_terminal()
    source, dtype = planned.source, planned.dtype
    facts = {
        "schema": "esckit.export/1",
        "esckit": esckit.__version__,
        "model": KINDS[source.command].what,
        "recipe_digest": source.manifest["recipe_digest"],
        "backbone": source.metadata.backbone,
        "backbone_revision": None if source.backbone is None else source.backbone.revision,
    }
    if planned.adapter:
        return weights.write_adapter(source, fresh, facts), []
    weights.require_room(source)
    if source.command in POLICIES:
        return weights.write_policy(source, fresh, facts, dtype), []
    texts, where = recorded_texts(source)
    write: Callable[..., Proof] = weights.write_reward if source.command == "train-reward" else weights.write_flow
    return write(source, fresh, facts, dtype, texts), [f"The texts that were compared: {where}."]


def _allow_reading(folder: Path) -> None:
    """Give all files the permissions of new ones; safetensors lets only their owner read them."""
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def _compare(planned: ExportPlan, fresh: Path, proof: Proof) -> float | None:
    """Return the largest difference between the export and esckit.

    Raises:
        CheckpointError: If it is too large.
    """
    if not proof.expected:
        return None
    try:
        found = proof.found(str(fresh))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the export cannot be loaded: {' '.join(str(error).split())}", hint="Please report this"
        ) from error
    differences = [abs(a - b) / max(1.0, abs(a)) for a, b in zip(proof.expected, found, strict=True)]
    largest = max(differences, key=lambda each: math.inf if math.isnan(each) else each)
    if not largest <= TOLERANCE:
        raise CheckpointError(
            f"{proof.what} of the export differ from esckit's by up to {largest:.2g}",
            expected=f"at most {TOLERANCE:g}",
            hint="Use --dtype float32" if planned.dtype not in ("auto", "float32") else "Please report this",
        )
    return largest


def _compared(proof: Proof, difference: float | None) -> list[str]:
    if difference is None:
        return [f"Compared when it was exported: {proof.what}.", *proof.notes]
    return [
        f"Compared when it was exported, by the code above: {len(proof.expected)} {proof.what}. The largest difference "
        f"from esckit's own is {difference:.1e}.",
        *proof.notes,
    ]
