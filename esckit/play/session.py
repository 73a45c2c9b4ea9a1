"""What a run that plays with models does around its work: it holds its folder, says what took part, and books the cost.

The work itself lies in :mod:`esckit.play.runner`; trainings have a frame of their own (:mod:`esckit.training.run`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esckit.config.sections import Recipe, RoleOptions
from esckit.roles.pool import ModelPool, checkpoint_ids
from esckit.runs import RunFolder

SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where the results are, and what they look like; the summary is empty in processes that do not write."""

    out: Path
    summary: dict[str, Any]


@contextmanager
def playing(
    recipe: Recipe,
    out: Path,
    pool: ModelPool,
    *,
    bindings: Iterable[RoleOptions],
    inputs: Mapping[str, Any],
) -> Iterator[RunFolder]:
    """Hold the folder of a run that plays with models.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        pool: The run's models.
        bindings: Who plays; a run does not go on with another checkpoint under the same name.
        inputs: What else the run is known by beside its recipe.

    Raises:
        StorageError: If the folder is moved or deleted meanwhile.
    """
    checkpoints = checkpoint_ids(bindings)
    known = {**inputs, "checkpoints": checkpoints} if checkpoints else inputs
    with RunFolder.open(
        out, command=recipe.command, recipe=recipe.resolved(), operational=recipe.OPERATIONAL, inputs=known
    ) as folder:
        folder.update_manifest(determinism=pool.determinism(), **pool.facts())
        try:
            yield folder
        finally:
            folder.book(pool.spent())
            folder.update_manifest(**pool.facts())
