"""Futures as training data: read from runs of ``simulate`` that were made alike, and labelled as good or not.

RLFF-ESC (arXiv 2508.12935) turns rewards into labels, y = 1 iff reward > δ, but does not report δ; so the rule is
always the user's choice. All comparisons are exact. How a future is played stands in :mod:`esckit.play.rollout`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from esckit.config.training import GoalLabel, Label, QuantileLabel
from esckit.errors import DataError
from esckit.records import file_sha256, read_records
from esckit.runs import read_manifest, stated
from esckit.types import Context, Future, Outcome

log = logging.getLogger(__name__)


_COMPARED = {
    "critic": ("preset", "readout", "expected_score", "threshold"),
    "simulation": ("horizon", "score_first_exchange"),
}


@dataclass(frozen=True, slots=True)
class RewardInputs:
    """What the input folders hold.

    Attributes:
        contexts: By id.
        futures: Of all folders, failed ones included.
        simulation: How all of them were simulated and read.
        digests: SHA-256 of the futures by folder.
        dialogue_ids: Dialogues that the folders name as used, in order.
        schemes: Split schemes that they were chosen by.
    """

    contexts: dict[str, Context]
    futures: tuple[Future, ...]
    simulation: dict[str, str | int | bool]
    digests: dict[str, str]
    dialogue_ids: tuple[str, ...]
    schemes: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says about the data; a model trained on it inherits the ids."""
        return {
            "inputs": self.digests,
            "simulation": self.simulation,
            "scheme": " and ".join(self.schemes) or None,
            "ids": list(self.dialogue_ids),
        }


def read_inputs(folders: Sequence[str]) -> RewardInputs:
    """Read the folders.

    Raises:
        DataError: If one is no run of ``simulate``, misses a file, or they differ in preset, read-out, horizon,
            threshold or critic prompt.
    """
    manifests = {folder: _manifest(folder) for folder in folders}
    simulation = _common(manifests)
    contexts: dict[str, Context] = {}
    futures: dict[tuple[int, str], Future] = {}
    ids: dict[str, None] = {}
    schemes: dict[str, None] = {}
    for folder, manifest in manifests.items():
        for context in read_records(Context, Path(folder) / "contexts.jsonl"):
            if contexts.setdefault(context.id, context).turns != context.turns:
                raise DataError(
                    f"context {context.id} with other turns than in another input",
                    path=folder,
                    expected="contexts that were cut alike (contexts.*, data.*)",
                )
        _add_futures(futures, folder, simulation)
        data = manifest.get("data") or {}
        ids |= dict.fromkeys(data.get("ids") or ())
        schemes |= {str(data["scheme"]): None} if data.get("scheme") else {}
    ids |= dict.fromkeys(future.dialogue_id for future in futures.values())
    return RewardInputs(
        contexts=contexts,
        futures=tuple(futures.values()),
        simulation=simulation,
        digests={folder: file_sha256(Path(folder) / "futures.jsonl") for folder in folders},
        dialogue_ids=tuple(ids),
        schemes=tuple(schemes),
    )


def _manifest(folder: str) -> dict[str, Any]:
    manifest = read_manifest(Path(folder))
    if manifest["command"] != "simulate":
        raise DataError(f"a run of {manifest['command']!r}", path=folder, expected="one of 'simulate'")
    if manifest.get("status") != "complete":
        log.warning("%s is not complete (%s): some futures may be missing", folder, manifest.get("status"))
    return manifest


def _common(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, str | int | bool]:
    """Return how the futures were made; refuse to mix what cannot be compared.

    Futures whose seeker or supporter was prompted differently still compare, but mix two populations: a warning.
    """
    for role in ("seeker", "supporter"):
        named = {str((manifest.get("prompts") or {}).get(role)) for manifest in manifests.values()}
        if len(named) > 1:
            prompts = ", ".join(sorted(named))
            log.warning("the inputs were simulated with different prompts of the %s: %s", role, prompts)
    first: dict[str, str | int | bool] = {}
    for folder, manifest in manifests.items():
        facts = _simulation(folder, manifest)
        first = first or facts
        differing = [name for name in facts if facts[name] != first.get(name)]
        if differing:
            shown = ", ".join(f"{name} {facts[name]} (elsewhere {first.get(name, 'none')})" for name in differing)
            raise DataError(
                f"futures of another kind: {shown}",
                path=folder,
                expected="one preset, read-out, horizon, threshold and critic prompt in all inputs",
                hint="Rewards of different critics do not compare: train one reward model on each",
            )
    return first


def _simulation(folder: str, manifest: Mapping[str, Any]) -> dict[str, str | int | bool]:
    facts = {
        name: stated(manifest, f"recipe.{section}.{name}", path=folder)
        for section, names in _COMPARED.items()
        for name in names
    }
    facts["critic_prompt"] = stated(manifest, "prompts.critic", path=folder)
    try:
        facts["threshold"] = str(Fraction(facts["threshold"]))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError("a threshold that is no fraction", path=folder, field="recipe.critic.threshold") from error
    if facts["readout"] != "expected":
        del facts["expected_score"]
    return facts


def _add_futures(
    futures: dict[tuple[int, str], Future], folder: str, simulation: Mapping[str, str | int | bool]
) -> None:
    path = Path(folder) / "futures.jsonl"
    digest = str(simulation["critic_prompt"]).rpartition("/")[2]
    wanted = (simulation["readout"], f"{simulation['preset']}/{digest}")
    for future in read_records(Future, path, allow_cut=True):
        key = (future.run_seed, future.id)
        if key in futures:
            raise DataError(f"future {future.id} of run seed {future.run_seed} twice", path=str(path), expected="once")
        futures[key] = future
        for exchange in future.exchanges:
            reading = exchange.reading
            if reading is not None and (reading.readout, reading.critic) != wanted:
                raise DataError(
                    f"a reading {reading.readout} of {reading.critic} in {future.id}",
                    path=str(path),
                    expected=f"{wanted[0]} of {wanted[1]}, as the manifest says",
                )


@dataclass(frozen=True, slots=True)
class Labelling:
    """Labels of scored futures.

    Attributes:
        labels: True for a good future, in the order given.
        delta: The threshold used; None for the rule ``goal``.
    """

    labels: tuple[bool, ...]
    delta: Fraction | None

    @property
    def positive_share(self) -> float | None:
        """Share of good futures, in [0, 1]; None without any."""
        return sum(self.labels) / len(self.labels) if self.labels else None


def rewards(futures: Iterable[Future]) -> list[Fraction]:
    """Return the exact rewards of scored futures.

    Raises:
        ValueError: If one of them has no reward.
    """
    found = [future.fraction for future in futures]
    if any(reward is None for reward in found):
        raise ValueError("a failed future has no reward")
    return [reward for reward in found if reward is not None]


def label_goal(futures: Sequence[Future]) -> Labelling:
    """Label a future as good if it reached the goal."""
    return Labelling(tuple(future.outcome is Outcome.RESOLVED for future in futures), None)


def label_threshold(futures: Sequence[Future], delta: Fraction) -> Labelling:
    """Label a future as good if its reward is strictly above δ."""
    return Labelling(tuple(reward > delta for reward in rewards(futures)), delta)


def quantile_delta(values: Sequence[Fraction], q: Fraction) -> Fraction:
    """Return δ = sorted rewards[⌈q·N⌉ − 1].

    Args:
        values: At least one reward.
        q: In (0, 1].
    """
    return sorted(values)[math.ceil(q * len(values)) - 1]


def label_by(rule: Label, train: Sequence[Future], dev: Sequence[Future]) -> tuple[Labelling, Labelling]:
    """Label training and dev futures by one rule; the training part alone decides the value of a quantile."""
    if isinstance(rule, GoalLabel):
        return label_goal(train), label_goal(dev)
    if isinstance(rule, QuantileLabel):
        ours = label_quantile(train, Fraction(rule.q))
    else:
        ours = label_threshold(train, Fraction(rule.delta))
    return ours, Labelling((), ours.delta) if ours.delta is None else label_threshold(dev, ours.delta)


def label_quantile(futures: Sequence[Future], q: Fraction) -> Labelling:
    """Label a future as good if its reward is strictly above the q-quantile; ties make fewer than 1 − q good."""
    if not futures:
        return Labelling((), None)
    return label_threshold(futures, quantile_delta(rewards(futures), q))
