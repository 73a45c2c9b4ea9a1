"""Trained reward models for the pipelines that use them, held to the prompt as it is today."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esckit.errors import CheckpointError
from esckit.prompts.prompt import load_prompt, prompt_names
from esckit.protocols import Part
from esckit.reward.text import SLOTS, RewardTemplate, another_prompt
from esckit.roles.asking import LABELS
from esckit.runs import MANIFEST, read_manifest, stated

if TYPE_CHECKING:
    from esckit.models.loading import Dtype
    from esckit.reward.scorer import RewardModel


log = logging.getLogger(__name__)


def reward_template(name: str) -> RewardTemplate:
    """Return a reward model's prompt as it is today.

    Raises:
        ConfigError: If there is no such prompt, or it has not the right variables.
    """
    prompt = load_prompt(name, "reward model")
    text = "\n\n".join(message.content for message in prompt.render(**SLOTS))
    return RewardTemplate.of(text, prompt=prompt.identity, seeker=LABELS["seeker"], supporter=LABELS["supporter"])


def load_reward_model(
    run: str | Path, *, dtype: Dtype = "auto", device: str = "auto", max_batch_tokens: int | None = None
) -> RewardModel:
    """Load what ``esckit train-reward`` left in a run folder.

    Args:
        run: The run folder.
        dtype: ``auto`` is float32 on a processor, bfloat16 on a GPU.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        max_batch_tokens: Tokens in one forward pass; None takes a default for the device.

    Raises:
        CheckpointError: If there is no reward model, or it was trained with another version of its prompt.
        ConfigError: If its backbone cannot be had.
    """
    from esckit.reward.scorer import RewardModel

    manifest = reward_manifest(run)
    if manifest.get("status") != "complete":
        log.warning("%s is not complete (%s): its reward model is the best so far", run, manifest.get("status"))
    template = _template_today(manifest, run)
    return RewardModel.load(Path(run), template=template, dtype=dtype, device=device, max_batch_tokens=max_batch_tokens)


class RewardKind:
    """Checkpoints of ``train-reward``: they score supporter turns."""

    parts: frozenset[Part] = frozenset({"scorer"})

    def check(self, run: Path, part: Part, strategies: tuple[str, ...] | None) -> None:
        """Refuse a model that was trained with another version of its prompt."""
        reward_manifest(run)

    def identity(self, run: Path) -> str:
        """Return ``reward_model/<digest of its recipe>``."""
        return f"reward_model/{read_manifest(run)['recipe_digest']}"

    def taxonomy(self, run: Path) -> str | None:
        """Return None: it knows no strategies."""
        return None

    def load(self, run: Path, part: Part, abbreviations: Mapping[str, str], **options: Any) -> RewardModel:
        """Return the reward model."""
        return load_reward_model(run, **options)


def reward_manifest(run: str | Path) -> dict[str, Any]:
    """Return the manifest of a run of ``train-reward``, without a look at the model.

    Raises:
        CheckpointError: If it is no such run, or its prompt has changed since.
    """
    folder = Path(run)
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{run} is no run folder", expected="a run folder of train-reward")
    manifest = read_manifest(folder)
    if manifest["command"] != "train-reward":
        raise CheckpointError(f"{run} is a run of {manifest['command']!r}", expected="one of 'train-reward'")
    trained = (manifest.get("prompts") or {}).get("reward_model")
    today = _template_today(manifest, run)
    if trained is not None and today is not None and trained != today.prompt:
        raise another_prompt(run, trained, today.prompt)
    return manifest


def _template_today(manifest: Mapping[str, Any], run: str | Path) -> RewardTemplate | None:
    name = str(stated(manifest, "recipe.prompt", path=run))
    # A prompt file of the user's own may be gone; then the model is read as it was trained.
    return reward_template(name) if name in prompt_names() or Path(name).is_file() else None
