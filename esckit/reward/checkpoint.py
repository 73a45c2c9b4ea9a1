"""Checkpoints of reward models, as other rooms find, check and load them; nothing heavy before a model is loaded.

::

    checkpoint/reward.json            metadata: prompt, label rule, objective, backbone, what it was trained on
    checkpoint/head.safetensors       the float32 head (of a ranker with an untied LM head: that)
    checkpoint/adapter/ or backbone/  as peft or transformers write them; neither if only the head was trained
    checkpoint/tokenizer/             as transformers writes it

A model is used only with the prompt it was trained with.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esckit.errors import CheckpointError
from esckit.models.checkpoint import read_metadata
from esckit.prompts.prompt import prompt_names
from esckit.protocols import Part
from esckit.reward.text import RewardMetadata, reward_template
from esckit.runs import MANIFEST, read_manifest, stated

if TYPE_CHECKING:
    from esckit.models.loading import Dtype
    from esckit.reward.model import RewardModel

log = logging.getLogger(__name__)


def reward_manifest(run: str | Path) -> dict[str, Any]:
    """Return the manifest of a run of ``train-reward`` whose model can be used today; loads nothing heavy.

    Raises:
        CheckpointError: If it is not such a run, holds no reward model, or its prompt has changed since.
    """
    folder = Path(run)
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{run} is no run folder", expected="a run folder of train-reward")
    manifest = read_manifest(folder)
    if manifest["command"] != "train-reward":
        raise CheckpointError(f"{run} is a run of {manifest['command']!r}", expected="one of 'train-reward'")
    trained = read_metadata(RewardMetadata, folder).template
    name = str(stated(manifest, "recipe.prompt", path=run))
    # A prompt file of the user's own may be gone; then the model is read as it was trained.
    today = reward_template(name) if name in prompt_names() or Path(name).is_file() else trained
    if today != trained:
        raise CheckpointError(
            f"{run} was trained with prompt {trained.prompt}",
            expected=today.prompt,
            hint="Train it again, or name the prompt's version that it was trained with",
        )
    return manifest


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
        CheckpointError: If there is no reward model, it is not whole, or it was trained with another prompt.
        ConfigError: If its backbone cannot be had.
    """
    from esckit.reward.model import RewardModel

    status = reward_manifest(run).get("status")
    if status != "complete":
        log.warning("%s is not complete (%s): its reward model is the best so far", run, status)
    return RewardModel.load(Path(run), dtype=dtype, device=device, max_batch_tokens=max_batch_tokens)


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
