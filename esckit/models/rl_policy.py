"""The trained policy: a LoRA adapter over a backbone, and what one must know to let it speak.

::

    checkpoint/policy.json   metadata: backbone, prompt, template, reward, what it was trained on
    checkpoint/adapter/      as peft writes it (safetensors)
    checkpoint/tokenizer/    as transformers writes it, with the chat template of the training

Wherever a recipe names a chat model, ``{checkpoint: RUN}`` loads this one. What it writes holds its reasoning, so it
is read as any supporter's output is (:func:`esckit.dialogue.output.split_output`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from esckit.models.backbones import resolve_backbone
from esckit.models.checkpoints import FOLDER as FOLDER
from esckit.models.checkpoints import checkpoint_folder, read_metadata
from esckit.types import Record

if TYPE_CHECKING:
    from esckit.models.loading import Dtype
    from esckit.models.local import LocalModel

METADATA = "policy.json"
ADAPTER = "adapter"
TOKENIZER = "tokenizer"


class PolicyMetadata(Record):
    """What belongs to a trained policy.

    Attributes:
        backbone: Name, folder or hub id of the backbone.
        algorithm: How it was trained.
        prompt: Identity of the prompt it was trained with.
        reward: What it was rewarded by: the kind, and for a reward model the digest of its manifest.
        inputs: Digest of the futures per input folder (DPO).
        dialogue_ids: Dialogues trained or selected on, those inherited from reward model and inputs included.
        dev_ids: Those of them that were held out.
        selected_by: How the checkpoint was selected.
        step: Optimiser steps taken.
        metrics: What was last measured at this step.
        diverged: True if training diverged after this step.
    """

    SCHEMA: ClassVar[str] = "esckit.policy/1"

    backbone: str
    algorithm: Literal["grpo", "dpo"]
    prompt: str
    reward: dict[str, str]
    inputs: dict[str, str] = Field(default_factory=dict)
    dialogue_ids: tuple[str, ...]
    dev_ids: tuple[str, ...]
    selected_by: str
    step: int
    metrics: dict[str, float | None] = Field(default_factory=dict)
    diverged: bool = False


def read_policy(run: Path) -> PolicyMetadata:
    """Return the metadata of the policy in a run folder (or of a checkpoint folder); loads nothing heavy.

    Raises:
        CheckpointError: If there is none, or it cannot be read.
    """
    return read_metadata(PolicyMetadata, run, METADATA, what="policy", command="train-rl")


def policy_folder(run: Path) -> Path:
    """Return the folder with the checkpoint itself."""
    return checkpoint_folder(run, METADATA)


def load_policy(
    run: Path,
    *,
    dtype: Dtype = "auto",
    device: str = "auto",
    threads: int | None = None,
    max_batch_tokens: int | None = None,
) -> LocalModel:
    """Return a trained policy as a chat model, its adapter merged into the backbone.

    Args:
        run: The run folder.
        dtype: ``auto`` is bfloat16 where processor or GPU computes in it, else float32.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        threads: Threads of torch for the whole process; None leaves them as they are.
        max_batch_tokens: Tokens in flight together; None takes a default for the device.

    Raises:
        CheckpointError: If there is no policy, or its adapter does not fit its backbone.
        ConfigError: If its backbone cannot be had.
    """
    metadata = read_policy(run)
    import torch

    from esckit.models.loading import load_adapter, load_causal, load_tokenizer, pick_device, pick_dtype
    from esckit.models.local import LocalModel
    from esckit.models.stored import check_whole

    folder = policy_folder(run)
    check_whole(folder)
    place = pick_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    # Merged in float32: in a narrow type the sum of weight and update would round the update away.
    model, _ = load_causal(resolve_backbone(metadata.backbone), dtype=torch.float32)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    model = load_adapter(model, folder / ADAPTER).merge_and_unload()
    merged = model.to(place, pick_dtype(dtype, place))
    return LocalModel(merged, tokenizer, name=f"policy/{run.resolve().name}", max_batch_tokens=max_batch_tokens)
